"""A model as a coordinator promotes and signs it."""

from __future__ import annotations

from collections.abc import Callable

from trust.card import Card, pack
from trust.digest import Arrays, arrays_to_bytes, sha256
from trust.plan import Plan
from trust.signing import Signer


def card_of(plan: Plan, data: bytes, serial: int = 1) -> Card:
    """What stands beside a model that this plan trained."""
    return Card(
        federation="test",
        task=plan.task.name,
        serial=serial,
        number=serial,
        sha256=sha256(data),
        size_bytes=len(data),
        run="run-0001",
        plan_sha256=plan.hash,
        base_sha256=plan.base_sha256,
        plan=plan.to_json(),
        rounds=plan.rounds,
        epsilons={"alpha": 8.0, "beta": None},
        delta=1e-4,
        metrics={},
        promoted_s=1.0,
    )


def packaged(
    plan: Plan,
    model: Arrays,
    signer: Signer,
    *,
    change: Callable[[Card], Card] = lambda card: card,
    serial: int = 1,
) -> bytes:
    """The signed package of a model, its card changed before it is signed."""
    data = arrays_to_bytes(model)
    return pack(change(card_of(plan, data, serial)), data, lambda card: signer.sign("model", card))
