"""What the messages between coordinator and sites hold, and nothing else.

Four requests, each with one answer:
- `query.declare`: an offered plan → the site's name, its rounded number of patients and, if they are fewer
  than the plan asks, the local steps that it does in a round;
- `query.accept`: the plan with participants → the site's name;
- `train`: an accepted plan, a round of it and the global model, with some strategies also what
  the site adds to its gradients → the site's update, as one array of canonical bytes;
- `query.question`: a question (trust/question.py) → the site's noisy counts of patients.
The plan travels whole each time, so that a site need not keep it: its hash says whether the site
accepted it. With it travels the coordinator's signature over its JSON, which is empty in a simulation
and which a hospital checks. An answer with a non-empty error code holds no more than the code.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from operator import is_
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from link.errors import LinkError
from strategies import records
from strategies.errors import StrategyError
from strategies.flower import (
    ANSWER,
    CORRECTION,
    MODEL,
    ROUND,
    UPDATE,
    read_update,
    update_record,
)
from trust.digest import Arrays
from trust.packed import Packed

DECLARE = "query.declare"
ACCEPT = "query.accept"
TRAIN = "train"
QUESTION = "query.question"

PLAN = "plan"
ANSWER_KEYS = {"site": str, "plan": str, "round": int, "base": str, "patients": int, "error": str}
STEPS = "steps"
PLAN_KEYS: dict[str, type] = {"json": str, "signature": str}
ROUND_KEYS = {"plan": str, "signature": str, "round": int, "base": str}
_REQUEST = {ROUND, MODEL}
_CORRECTED = _REQUEST | {CORRECTION}
_ANSWERED = {ANSWER}
_UPDATED = {ANSWER, UPDATE}
_SAID_KEYS, _SAID_TYPES = list(ANSWER_KEYS), list(ANSWER_KEYS.values())
COUNTS = "counts"
MOST_COUNTS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """A plan (JSON) and the coordinator's signature over it."""

    plan: str
    signature: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Which round of which plan (JSON), and the SHA-256 of the model it starts from; rounds from 1."""

    plan: str
    round: int
    base: str
    signature: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a site says beside its update.

    Attributes:
        site: its name; empty if it failed before it knew.
        plan: hash of the plan that was asked about.
        round, base: of a `train` request; 0 and empty otherwise.
        patients: rounded number, in the answer to `declare`; 0 otherwise.
        steps: in the answer to `declare`, local steps that the site does in a round at most; 0, which does
            not travel, where it does what the plan asks.
        error: a code, empty if all is well.
    """

    site: str
    plan: str
    round: int = 0
    base: str = ""
    patients: int = 0
    error: str = ""
    steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """A site's answer to a question.

    Attributes:
        counts: one of each cell of the question; -1 where it is not told.
        smallest: no count that is told is below it.
    """

    counts: tuple[int, ...]
    smallest: int


def plan_request(plan_json: str, signature: str = "") -> RecordDict:
    """The content of `declare`, `accept` and, with a question in place of the plan, `question`."""
    return RecordDict({PLAN: ConfigRecord({"json": plan_json, "signature": signature})})


def read_plan_request(content: RecordDict) -> PlanRequest:
    """The plan in a request.

    Raises:
        LinkError: the request is not of this form.
    """
    if set(content) != {PLAN}:
        raise LinkError(f"Expected the one record {PLAN!r}; {sorted(content)} came.")
    values = _read(content[PLAN], PLAN_KEYS, PLAN)
    return PlanRequest(plan=str(values["json"]), signature=str(values["signature"]))


def read_train_request(content: RecordDict) -> tuple[Round, Arrays]:
    """The request that `strategies.flower` wrote.

    Raises:
        LinkError: the request is not of this form.
    """
    if not _REQUEST <= content.keys() <= _CORRECTED:
        raise LinkError(f"Expected the records {ROUND!r} and {MODEL!r}; {sorted(content)} came.")
    return _ROUND_READ.round(content[ROUND]), _MODEL_READ.arrays(content[MODEL])


def read_correction(content: RecordDict) -> Arrays | None:
    """What a `train` request asks the site to add to its gradients; None if nothing.

    Raises:
        LinkError: it is not of the agreed form.
    """
    return record_to_arrays(content[CORRECTION]) if CORRECTION in content else None


def answer(said: Answer, update: Mapping[str, np.ndarray] | None = None) -> RecordDict:
    """The content of any reply."""
    record = records.words(
        {
            "site": said.site,
            "plan": said.plan,
            "round": said.round,
            "base": said.base,
            "patients": said.patients,
            "error": said.error,
            **({STEPS: said.steps} if said.steps else {}),
        }
    )
    record.__dict__["_said"] = said
    if update is None:
        return records.content({ANSWER: record})
    return records.content({ANSWER: record, UPDATE: update_record(update)})


def read_answer(content: RecordDict) -> tuple[Answer, Packed | None]:
    """What `answer` wrote.

    Raises:
        LinkError: the reply is not of this form.
    """
    if not _ANSWERED <= content.keys() <= _UPDATED:
        raise LinkError(f"Expected the records {ANSWER!r} and {UPDATE!r}; {sorted(content)} came.")
    said = _said_here(content[ANSWER]) or _read_said(content[ANSWER])
    return said, _update(content[UPDATE]) if UPDATE in content else None


def _said_here(record: object) -> Answer | None:
    """The answer that `answer` wrote in this process, if the record still holds its very values."""
    said = record.__dict__.get("_said") if isinstance(record, ConfigRecord) else None
    if not isinstance(record, ConfigRecord) or not isinstance(said, Answer) or said.steps:
        return None
    values = (said.site, said.plan, said.round, said.base, said.patients, said.error)
    typed = list(record.keys()) == _SAID_KEYS and list(map(type, values)) == _SAID_TYPES
    return said if typed and all(map(is_, record.values(), values)) else None


def _read_said(record: object) -> Answer:
    fewer = isinstance(record, ConfigRecord) and STEPS in record
    values = _read(record, ANSWER_KEYS | {STEPS: int} if fewer else ANSWER_KEYS, ANSWER)
    if fewer and int(values[STEPS]) < 1:
        raise LinkError(f"Expected 1 or more at {ANSWER}.{STEPS}.")
    return Answer(
        site=str(values["site"]),
        plan=str(values["plan"]),
        round=int(values["round"]),
        base=str(values["base"]),
        patients=int(values["patients"]),
        error=str(values["error"]),
        steps=int(values.get(STEPS, 0)),
    )


def question_answer(said: Answer, told: Counts) -> RecordDict:
    """The content of the reply to a question that is answered; one that is not is an `answer`."""
    content = answer(said)
    content[COUNTS] = ConfigRecord({"counts": list(told.counts), "smallest": told.smallest})
    return content


def read_question_answer(content: RecordDict) -> tuple[Answer, Counts | None]:
    """What `question_answer` wrote, or an `answer` with an error.

    Raises:
        LinkError: the reply is not of this form.
    """
    if COUNTS not in content:
        said, update = read_answer(content)
        if update is not None or not said.error:
            raise LinkError("Expected counts or an error in the answer to a question.")
        return said, None
    record = content[COUNTS]
    if set(content) != {ANSWER, COUNTS} or not isinstance(record, ConfigRecord):
        raise LinkError(f"Expected the records {ANSWER!r} and {COUNTS!r}; {sorted(content)} came.")
    counts, smallest = record.get("counts"), record.get("smallest")
    if (
        set(record) != {"counts", "smallest"}
        or type(smallest) is not int
        or not isinstance(counts, list)
        or len(counts) > MOST_COUNTS
    ):
        raise LinkError(f"Expected at most {MOST_COUNTS} counts, and the smallest that is told.")
    whole = tuple(value for value in counts if type(value) is int)
    if len(whole) != len(counts):
        raise LinkError("Expected whole numbers for counts.")
    return read_answer(RecordDict({ANSWER: content[ANSWER]}))[0], Counts(counts=whole, smallest=smallest)


def _update(record: object) -> Packed:
    if not isinstance(record, ArrayRecord):
        raise LinkError(f"Expected a record of arrays; {type(record).__name__} came.")
    try:
        return read_update(record)
    except StrategyError as error:
        raise LinkError(f"Expected an update: {error}.") from None


class _RoundRead(threading.local):
    """The round that was read last, for all sites of a process that get the same one.

    It is known by its values, which cannot be changed and which are held here, and not by its record,
    which can be changed.
    """

    def __init__(self) -> None:
        self._names: list[str] | None = None
        self._values: tuple[object, ...] = ()
        self._round = Round(plan="", round=0, base="")

    def round(self, record: object) -> Round:
        words = record if isinstance(record, ConfigRecord) else ConfigRecord()
        if list(words.keys()) == self._names and all(map(is_, words.values(), self._values)):
            return self._round
        values = _read(record, ROUND_KEYS, ROUND)
        self._names, self._values = list(values), tuple(values.values())
        self._round = Round(
            plan=str(values["plan"]),
            round=int(values["round"]),
            base=str(values["base"]),
            signature=str(values["signature"]),
        )
        return self._round


_ROUND_READ = _RoundRead()


class _ModelRead(threading.local):
    """The model that was read last, for all sites of a process that get the same one in a round.

    It is known by its bytes objects, which do not change and which are held here, so that no other
    object can have their identity. The arrays can be read only: they are shared.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._parts: tuple[Array, ...] = ()
        self._data: tuple[bytes, ...] = ()
        self._arrays: Arrays = {}

    def arrays(self, record: object) -> Arrays:
        if not isinstance(record, ArrayRecord):
            return record_to_arrays(record)
        known = list(record.keys()) == self._names and all(map(is_, record.values(), self._parts))
        if known and all(map(is_, [array.data for array in self._parts], self._data)):
            return self._arrays
        arrays = record_to_arrays(record)
        for array in arrays.values():
            array.flags.writeable = False
        self._names, self._parts = list(record.keys()), tuple(record.values())
        self._data = tuple(array.data for array in self._parts)
        self._arrays = arrays
        return arrays


_MODEL_READ = _ModelRead()


def record_to_arrays(record: object) -> Arrays:
    """Named arrays of a Flower record; never unpickled.

    Raises:
        LinkError: the record holds no arrays, or its bytes do not parse.
    """
    if not isinstance(record, ArrayRecord):
        raise LinkError(f"Expected a record of arrays; {type(record).__name__} came.")
    try:
        return {name: records.values(array) for name, array in sorted(record.items())}
    except (TypeError, ValueError, EOFError):
        raise LinkError(
            "Expected arrays in numpy's format without pickled objects; the bytes do not parse."
        ) from None


def _read(record: object, keys: dict[str, type], where: str) -> dict[str, str | int]:
    values = dict(record.items()) if isinstance(record, ConfigRecord) else {}
    if values.keys() != keys.keys():
        raise LinkError(f"Expected the keys {sorted(keys)} in record {where!r}.")
    for name, kind in keys.items():
        if type(values[name]) is not kind:
            came = type(values[name]).__name__
            raise LinkError(f"Expected {kind.__name__} at {where}.{name}; {came} came.")
    return cast("dict[str, str | int]", values)
