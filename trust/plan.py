"""A plan: everything that a federation agrees on before it trains, as data with one hash.

A coordinator offers a plan without participants, every site answers with its rounded number of
patients or a refusal, and the plan with its participants is what sites accept, book in their
ledgers and train by. A plan is data: nothing in it is executed, and whoever carries it out runs
the code that they installed.

The canonical form is JSON in UTF-8 with sorted keys and no spaces; a number is an integer or a
finite float by its field, a float written as the shortest decimal that reads back to it (Python's
repr). The hash is the SHA-256 of that form.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from statistics import median_low
from typing import Any

from conf.schema import Model, Strategy, Task
from trust import ranges
from trust.digest import sha256
from trust.errors import PlanError

VERSION = 2
PATIENTS_STEP = 5
MOST_STEPS = 1_000_000
"""More would keep a site's accountant busy for minutes, before anybody has approved anything."""
RELEASE = "0.1"
"""Release of this software, MAJOR.MINOR: within one, the same plan trains the same network."""
AGGREGATIONS = ("plain",)
EVEN = ("clustered", "ifca")
"""Strategies that compare sites by their updates, so that all must have done as many steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a site's releases over the whole plan may reveal of any one patient.

    Attributes:
        private: False trains without clipping and noise, and promises nothing.
        noise_multiplier: standard deviation of the noise over clip_norm; 0 without privacy.
        clip_norm: greatest L2 norm of one patient's gradient.
        sampling_rate: probability that a patient takes part in a step (Poisson), in (0, 1]; without
            privacy about the share of patients in a step, who take turns.
        windows_per_patient: most windows of a patient averaged in one step.
        steps: optimiser steps over the whole plan, rounds times local steps; a site may do fewer.
        epsilon, delta: upper bound that the coordinator expects; a site computes its own.
    """

    private: bool
    noise_multiplier: float
    clip_norm: float
    sampling_rate: float
    windows_per_patient: int
    steps: int
    epsilon: float | None
    delta: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """A site and what it declared.

    Attributes:
        patients: the rounded number of its patients.
        steps: local steps that it does in a round at most, fewer than strategy.local_steps; None: as many.
    """

    site: str
    patients: int
    steps: int | None = None


@dataclass(frozen=True, kw_only=True)  # without slots: what follows from a plan is kept with it
class Plan:
    """What is trained, how, with whom, from which model, at what price in privacy.

    Attributes:
        purpose: tells plans apart that are equal otherwise (which fold, which hospital left out).
        base_sha256: of the model from which the first round starts.
        quorum: a round needs the updates of at least so many sites.
        deadline_s: after so long a round closes with a quorum of answers.
        aggregation: how updates are summed; "plain" shows the coordinator each site's update.
        versions: release of the software that the plan was made for; a site of another refuses.
        participants: sorted by site; empty while the plan is an offer.
    """

    version: int = VERSION
    purpose: str
    task: Task
    model: Model
    strategy: Strategy
    terms: Terms
    rounds: int
    base_sha256: str
    quorum: int = 1
    deadline_s: float = 3600.0
    aggregation: str = "plain"
    versions: str = RELEASE
    participants: tuple[Participant, ...] = ()

    def __post_init__(self) -> None:
        faults = _faults(self)
        if faults:
            raise PlanError(
                "This plan cannot be carried out:\n" + "\n".join(f"- {fault}" for fault in faults)
            )

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical form."""
        return sha256(self.to_json().encode())

    @property
    def offer_hash(self) -> str:
        """Hash of the offer that the plan came from: what a site's people approve."""
        return replace(self, participants=()).hash

    def to_json(self) -> str:
        """The canonical form."""
        return self._json

    @cached_property
    def _json(self) -> str:
        data = asdict(self)
        for entry in data["participants"]:
            if entry["steps"] is None:  # as plans were written before there was such a key
                del entry["steps"]
        return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def with_participants(self, declared: dict[str, int], steps: Mapping[str, int] | None = None) -> Plan:
        """The plan that sites accept, from the numbers of patients that they declared.

        Args:
            steps: local steps of sites that do fewer than the plan asks.
        """
        fewer = steps or {}
        participants = tuple(
            Participant(site=site, patients=declared[site], steps=fewer.get(site))
            for site in sorted(declared)
        )
        return replace(self, participants=participants)

    def steps_of(self, site: str) -> int:
        """Local steps of a participant in a round: what the plan asks, or what the site does at most."""
        return self._steps.get(site) or self.strategy.local_steps

    def strategy_of(self, site: str) -> Strategy:
        """The strategy as a participant carries it out, with its own number of local steps."""
        steps = self._steps.get(site)
        return self.strategy if steps is None else replace(self.strategy, local_steps=steps)

    def patients_of(self, site: str) -> int:
        """The number of patients that `site` declared.

        Raises:
            PlanError: the site is not a participant.
        """
        if site in self._patients:
            return self._patients[site]
        raise PlanError(f"Expected a participant of the plan; {site!r} is none of {self.sites}.")

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Names of the participants, sorted."""
        return tuple(participant.site for participant in self.participants)

    @cached_property
    def _steps(self) -> dict[str, int | None]:
        return {participant.site: participant.steps for participant in self.participants}

    @cached_property
    def _patients(self) -> dict[str, int]:
        return {participant.site: participant.patients for participant in self.participants}

    def names(self, site: str) -> bool:
        """Whether `site` is a participant."""
        return site in self._patients

    def asks(self, site: str, number: int) -> bool:
        """Whether round `number` asks this participant: `site in asked(number)`, without a search."""
        if number not in self._asked:
            self._asked.clear()
            self._asked[number] = frozenset(self.asked(number))
        return site in self._asked[number]

    @cached_property
    def _asked(self) -> dict[int, frozenset[str]]:
        """The sites of the round that was asked about last."""
        return {}

    def asked(self, number: int) -> tuple[str, ...]:
        """The participants that round `number` asks, sorted: all, or strategy.sites_per_round of them.

        Which ones follows from the plan's hash and the number alone, so coordinator and sites agree
        without a message, and a resumed round asks the same. It is public, so no privacy is gained by
        it: a site books the schedule as if it were asked in every round.
        """
        most = self.strategy.sites_per_round
        if most is None or most >= len(self.participants):
            return self.sites
        seed = self.hash
        drawn = sorted(self.sites, key=lambda site: sha256(f"{seed} round {number} {site}".encode()))
        return tuple(sorted(drawn[:most]))

    def weights(self) -> dict[str, float]:
        """The weight of each participant in the mean of updates; they add up to one.

        Nobody can check how many patients a site declares, so a number counts up to
        strategy.most_times_median times the median alone (of two in the middle, the lower).
        """
        equal = self.strategy.weighting == "equal"
        shares = {entry.site: 1.0 if equal else float(entry.patients) for entry in self.participants}
        if shares:
            most = self.strategy.most_times_median * median_low(shares.values())
            shares = {site: min(share, most) for site, share in shares.items()}
        total = sum(shares.values())
        return {site: share / total for site, share in shares.items()}


def from_json(text: str) -> Plan:
    """The plan that `Plan.to_json` wrote.

    Raises:
        PlanError: not JSON, unknown or missing keys, values of another type, or a plan that
            cannot be carried out.
    """
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):  # the second where brackets are nested a thousand deep
        raise PlanError("Expected a plan in JSON; the text does not parse.") from None
    plan = _build(Plan, data, "plan")
    if not isinstance(plan, Plan):  # unreachable; tells the type checker what _build returns
        raise PlanError("Expected a plan.")
    return plan


def round_patients(patients: int) -> int:
    """The number that a site declares for its patients: the nearest multiple of 5, at least 5."""
    return max(PATIENTS_STEP, PATIENTS_STEP * math.floor(patients / PATIENTS_STEP + 0.5))


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


_NESTED: dict[str, type] = {
    "task": Task,
    "model": Model,
    "strategy": Strategy,
    "terms": Terms,
}


def _build(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise PlanError(f"Expected an object at {where}; {type(data).__name__} came.")
    names = {
        field.name: field.type.__name__ if isinstance(field.type, type) else str(field.type)
        for field in fields(kind)
    }
    optional = {"steps"} if kind is Participant else set()
    unknown, missing = sorted(set(data) - set(names)), sorted(set(names) - set(data) - optional)
    if unknown or missing:
        raise PlanError(
            f"{where}: unknown keys {unknown}, missing keys {missing}; allowed are {sorted(names)}."
        )
    return kind(
        **{name: _value(name, names[name], data[name], f"{where}.{name}") for name in names if name in data}
    )


def _value(name: str, kind: str, value: Any, where: str) -> Any:
    if name in _NESTED:
        return _build(_NESTED[name], value, where)
    if name == "participants":
        if not isinstance(value, list):
            raise PlanError(f"Expected a list at {where}; {type(value).__name__} came.")
        return tuple(_build(Participant, item, f"{where}[{row}]") for row, item in enumerate(value))
    if value is None and "None" in kind:
        return None
    wanted = kind.split(" ", maxsplit=1)[0]
    allowed = {"float": (float, int), "int": (int,), "str": (str,), "bool": (bool,)}[wanted]
    if not isinstance(value, allowed) or (isinstance(value, bool) and wanted != "bool"):
        raise PlanError(f"Expected {wanted} at {where}; {type(value).__name__} came.")
    if wanted != "float":
        return value
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise PlanError(f"Expected a finite number at {where}; {number} came.")
    return number


def _faults(plan: Plan) -> list[str]:
    terms = plan.terms
    steps = plan.rounds * plan.strategy.local_steps
    checks = [
        (
            plan.version == VERSION,
            f"version: {VERSION} is understood, {plan.version} came",
        ),
        (
            terms.steps == steps,
            f"terms.steps: rounds times local_steps, here {steps}; {terms.steps} came",
        ),
        (steps <= MOST_STEPS, f"terms.steps: at most {MOST_STEPS}, {steps} came"),
        (
            terms.private or terms.noise_multiplier == 0,
            f"terms.noise_multiplier: 0 without privacy, {terms.noise_multiplier} came",
        ),
        (
            len(plan.base_sha256) == 64 and set(plan.base_sha256) <= set("0123456789abcdef"),
            "base_sha256: 64 hexadecimal digits",
        ),
        (
            1 <= plan.quorum <= ranges.MOST_PATIENTS,
            f"quorum: 1 to {ranges.MOST_PATIENTS}, {plan.quorum} came",
        ),
        (
            plan.strategy.sites_per_round is None or plan.quorum <= plan.strategy.sites_per_round,
            f"quorum: at most strategy.sites_per_round, {plan.quorum} came",
        ),
        (
            plan.strategy.name != "fedbuff" or plan.quorum <= plan.strategy.buffer_size,
            f"quorum: at most strategy.buffer_size, {plan.quorum} came",
        ),
        (
            0 < plan.deadline_s <= ranges.LONGEST_DEADLINE_S,
            f"deadline_s: above 0, at most {ranges.LONGEST_DEADLINE_S:.0f}, {plan.deadline_s:g} came",
        ),
        (
            plan.aggregation in AGGREGATIONS,
            f"aggregation: one of {', '.join(AGGREGATIONS)}, {plan.aggregation!r} came",
        ),
        (
            re.fullmatch(r"[0-9]{1,4}\.[0-9]{1,4}", plan.versions) is not None,
            "versions: a release, MAJOR.MINOR",
        ),
    ]
    told = [text for holds, text in (*checks, *_participant_checks(plan)) if not holds]
    return [*_range_faults(plan), *told]


def _participant_checks(plan: Plan) -> list[tuple[bool, str]]:
    sites = [entry.site for entry in plan.participants]
    return [
        (sites == sorted(set(sites)), "participants: sorted by site, each once"),
        (
            all(
                PATIENTS_STEP <= entry.patients <= ranges.MOST_PATIENTS
                and entry.patients % PATIENTS_STEP == 0
                for entry in plan.participants
            ),
            f"participants.patients: multiples of {PATIENTS_STEP} up to {ranges.MOST_PATIENTS}",
        ),
        (
            all(
                entry.steps is None or 1 <= entry.steps < plan.strategy.local_steps
                for entry in plan.participants
            ),
            "participants.steps: 1 or more, below strategy.local_steps; null for as many",
        ),
        (
            plan.strategy.name not in EVEN or all(entry.steps is None for entry in plan.participants),
            f"participants.steps: null with strategy={plan.strategy.name}, which compares updates",
        ),
    ]


def _range_faults(plan: Plan) -> list[str]:
    found = [*ranges.rounds_faults(plan.rounds), *ranges.terms_faults(plan.terms)]
    for name, section in (("task", plan.task), ("model", plan.model), ("strategy", plan.strategy)):
        found += ranges.section_faults(name, section)
    found += ranges.text_faults("purpose", plan.purpose)
    for row, site in enumerate(plan.sites):
        found += ranges.text_faults(f"participants[{row}].site", site)
    return [*found, *ranges.pull_faults(plan.strategy)]
