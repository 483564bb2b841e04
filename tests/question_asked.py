"""Questions for tests, and one way to put them to a hospital over a LocalGrid."""

from __future__ import annotations

from typing import Any

from flwr.app import Message

import client.app
from link.local import LocalGrid
from link.wire import QUESTION, Answer, Counts, plan_request, read_question_answer
from privacy.accounting import epsilon
from privacy.questions import release
from tests.hospital_home import Coordinator
from trust.question import Question, read_condition, read_quantity


def question(kind: str = "count", of: str = "", where: tuple[str, ...] = (), **more: Any) -> Question:
    """A question with noise of 4 patients and an honest price at delta 1e-4."""
    noise = more.pop("noise_multiplier", 4.0)
    price = epsilon([release(noise)], 1e-4)
    return Question(
        **{
            "purpose": "test",
            "kind": kind,
            "of": read_quantity(of) if of else None,
            "conditions": tuple(read_condition(text) for text in where),
            "noise_multiplier": noise,
            "epsilon": price,
            "delta": 1e-4,
        }
        | more
    )


def asked(
    coordinator: Coordinator, what: Question, signature: str | None = None
) -> tuple[Answer, Counts | None]:
    """What the hospital answers to a signed question."""
    text = what.to_json()
    signed = coordinator.signer.sign("question", text.encode()) if signature is None else signature
    grid = LocalGrid(client.app.app, {}, [str(coordinator.home.directory)])
    (node,) = grid.get_node_ids()
    (reply,) = grid.send_and_receive([Message(plan_request(text, signed), node, QUESTION)])
    return read_question_answer(reply.content)
