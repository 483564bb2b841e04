"""What operators do with questions, and what they are shown of the answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from privacy.questions import SUPPRESSED, quantiles, total
from server.errors import ServerError
from server.questions import WITHDRAWN, Asked, Questions, Said
from server.record import Record
from trust.question import Question, from_json
from twin.signals import SIGNALS


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiries:
    """Asks and withdraws; threads may share it.

    Attributes:
        members: names of the members that may be asked.
        record: writes into the audit log.
    """

    questions: Questions
    members: Callable[[], Collection[str]]
    record: Record

    def ask(self, who: str, text: str, *, request: str, approval_s: float, sites: list[str]) -> Asked:
        """The question, which is put to the sites from now on.

        Args:
            text: canonical JSON. sites: names; empty asks all members.

        Raises:
            PlanError: the text is no question. ServerError: an unknown signal or site.
        """
        question, members = from_json(text), sorted(self.members())
        _check_signals(question)
        unknown = sorted(set(sites) - set(members))
        if unknown or not members:
            raise ServerError(f"Expected sites of this federation; {unknown or 'there are none'}.")
        self.record("question_asked", who=who, why=question.purpose, plan=question.hash, request=request[:64])
        return self.questions.ask(question, sites or members, approval_s, who=who, request=request)

    def withdraw(self, who: str, question: str, *, why: str) -> Asked:
        """The question, which no site is asked any more; what was answered stays, and stays spent.

        Raises:
            ServerError: there is none, or it is ended.
        """
        self.record("question_withdrawn", who=who, why=why, question=self.questions.get(question).id)
        return self.questions.end(question, WITHDRAWN)


def answered(asked: Asked) -> dict[str, Any]:
    """A question with all answers and their totals, JSON-ready."""
    return {
        "id": asked.id,
        "state": asked.state,
        "who": asked.who,
        "asked_s": asked.asked_s,
        "approval_s": asked.approval_s,
    } | summary(asked.question, asked.said)


def summary(question: Question, said: Mapping[str, Said]) -> dict[str, Any]:
    """What sites say to a question, and totals over those that answered, JSON-ready."""
    counts = {site: entry.counts for site, entry in said.items() if not entry.code}
    return {
        "words": question.words(),
        "question_sha256": question.hash,
        "question": json.loads(question.to_json()),
        "cells": list(question.labels()),
        "sites": {
            site: {"code": entry.code, "counts": list(entry.counts), "smallest_count": entry.smallest}
            for site, entry in said.items()
        },
        "answered": sorted(counts),
        "noise": question.noise_multiplier,
        "epsilon": question.epsilon,
        "delta": question.delta,
    } | (_quantiles(question, counts) if question.kind == "quantiles" else _totals(question, counts))


def _totals(question: Question, counts: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    columns = zip(*counts.values(), strict=True) if counts else [()] * question.cells
    return {"totals": [asdict(total(column, question.noise_multiplier)) for column in columns]}


def _quantiles(question: Question, counts: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Quantiles over sites; the number of patients holds the noise of all cells of a site that told any."""
    told = [sum(value for value in site if value != SUPPRESSED) for site in counts.values()]
    telling = sum(any(value != SUPPRESSED for value in site) for site in counts.values())
    error = math.sqrt(telling * question.cells * (question.noise_multiplier**2 + 1 / 12))
    found = quantiles(counts, question.edges, question.levels, question.noise_multiplier)
    return {
        "patients": {
            "patients": sum(told),
            "standard_error": error,
            "told": telling,
            "suppressed": len(counts) - telling,
        },
        "quantiles": [asdict(quantile) for quantile in found],
    }


def _check_signals(question: Question) -> None:
    asked = [condition.of for condition in question.conditions]
    asked += [] if question.of is None else [question.of]
    unknown = sorted({of.name for of in asked if of.summary and of.name not in SIGNALS})
    if unknown:
        raise ServerError(f"Expected signals of the catalogue {sorted(SIGNALS)}; {unknown} are none.")
