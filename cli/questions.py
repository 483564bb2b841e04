"""What a hospital's people are shown of a question: its terms, and a rehearsal."""

from __future__ import annotations

import getpass
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from client.hospital import Hospital
    from client.questions import QuestionRehearsal
    from trust.question import Question


def question_terms(hospital: Hospital, question: Question) -> dict[str, Any]:
    """What `twinward site plans` says of a question beside what it says of any offer."""
    from client.question_policy import question_cost

    return {
        "kind": "question",
        "asks": question.words(),
        "purpose": question.purpose,
        "cells": question.cells,
        "noise": question.noise_multiplier,
        "rounds": 0,
        "epsilon": round(question_cost(question, hospital.policy.delta), 4),
        "epsilon_life_after": _number(hospital.questions.spent_after(question)),
    }


def show_rehearsal(hospital: Hospital, question: Question, key: str, *, as_json: bool) -> int:
    """Rehearses a question and prints what would leave; returns the exit code."""
    done = hospital.questions.rehearse(question, key)
    hospital.rehearsed(question, who=getpass.getuser())
    if as_json:
        print(json.dumps(_facts(done), indent=2))
    else:
        _print(done)
    return 0


def _facts(done: QuestionRehearsal) -> dict[str, Any]:
    return {
        "plan": done.question.hash,
        "asks": done.question.words(),
        "policy": {"decision": done.verdict.decision, "code": done.verdict.code, "why": done.verdict.text},
        "stays_here": {"patients": done.patients, "counts": list(done.counted)},
        "leaves": {"counts": list(done.told.counts), "smallest_count": done.told.smallest},
        "cells": list(done.question.labels()),
        "noise": done.question.noise_multiplier,
        "epsilon": round(done.epsilon, 4),
        "epsilon_life": _number(done.spent),
        "epsilon_life_after": _number(done.spent_after),
        "delta": done.delta,
        "unit": "patient",
    }


def _print(done: QuestionRehearsal) -> None:
    question, told = done.question, done.told
    print(f"Question {question.hash[:12]}: {question.words()}. For: {question.purpose}. Nothing was sent.")
    print("What would leave, with other noise than here (-1: not told), and what stays here:")
    width = max(map(len, question.labels()))
    for label, leaves, stays in zip(question.labels(), told.counts, done.counted, strict=True):
        print(f"  {label:<{width}}  {leaves:>6}  ({stays} in truth)")
    if question.kind == "quantiles":
        print(
            f"Cells are gathered from the left until {told.smallest} are told; the count stands at the last."
        )
    else:
        print(f"Noisy counts below {told.smallest} are not told ([questions] smallest_count).")
    print(
        f"Cost: epsilon {done.epsilon:.4g} at delta {done.delta:g}, unit patient; over the site's life"
        f" {done.spent:.4g} becomes {done.spent_after:.4g}. Noise: {question.noise_multiplier:.4g} patients."
    )
    print(f"The policy: {done.verdict.decision}. {done.verdict.text}")


def _number(value: float) -> float | None:
    return round(value, 4) if value < float("inf") else None
