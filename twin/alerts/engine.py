"""Which alerts are active, raised and ended: two limits, durations, silence, snooze, escalation.

Arrays over rules and patients' rows; the clock is an argument. A condition that comes and goes within
`on_for_min` raises nothing; an alert never rings again within its durations and its silence; between
the two limits nothing changes. While a measure is not known an active alert stays, until it lapses.

Letters: N patients' rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from twin.alerts.alert import Alert, Event, Notice, moment
from twin.alerts.rules import Rule
from twin.errors import DataError

_MIN_US = 60_000_000
_TIMES = ("since", "raised", "safe_since", "known", "silent_until", "snoozed_until", "escalate_from")
_NUMBERS = ("number", "escalations", "told")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Who acknowledged an alert, when and why."""

    who: str
    at_us: int
    why: str


class Engine:
    """The alerts of a ward.

    State by rule and row: `since` when the condition began, `raised` (0: no alert), `safe_since`, `known`
    (when it was last measured), `number` of the alert, `told` whether sinks heard of it; times in
    microseconds since 1970, 0 is never.
    """

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.rules = rules
        self._index = {rule.name: index for index, rule in enumerate(rules)}
        self._state = {name: np.zeros((len(rules), 0), np.int64) for name in (*_TIMES, *_NUMBERS)}
        self._answers: dict[int, Answer] = {}
        self._last_number = 0
        self._last_notice = 0

    def reserve(self, rows: int) -> None:
        """Makes room for so many patients."""
        more = rows - self._state["since"].shape[1]
        if more > 0:
            blank = np.zeros((len(self.rules), more), np.int64)
            self._state = {n: np.concatenate([column, blank], axis=1) for n, column in self._state.items()}

    def step(
        self, rule: int, row_N: np.ndarray, value_N: np.ndarray, now_us: np.ndarray | int, names: np.ndarray
    ) -> list[Notice]:
        """Takes one measure of some patients, at most one of each; NaN is not known.

        Args:
            rule: its index. names: pseudonym of each row, for the notices.
        """
        now_N = np.broadcast_to(np.asarray(now_us, np.int64), row_N.shape)
        spec = self.rules[rule]
        own = {name: column[rule, row_N] for name, column in self._state.items()}
        known_N = np.isfinite(value_N)
        beyond_N, safe_N = _sides(spec, value_N)
        own["known"] = np.where(known_N, now_N, own["known"])
        active_N = own["raised"] > 0
        ended_N, lapsed_N = _ending(spec, own, active_N, known_N, safe_N, now_N)
        raised_N = _beginning(spec, own, active_N, known_N, beyond_N, now_N)
        self._number(own, raised_N)
        told_N = (own["raised"] > 0) & (own["told"] == 0) & (now_N >= own["snoozed_until"]) & ~ended_N
        told_N &= ~lapsed_N
        own["told"] = np.where(told_N, 1, own["told"])
        escalated_N = self._escalating(spec, own, told_N | ended_N | lapsed_N, now_N)
        for name, column in self._state.items():
            column[rule, row_N] = own[name]
        happened: tuple[tuple[Event, np.ndarray], ...] = (
            ("raised", told_N),
            ("escalated", escalated_N),
            ("resolved", ended_N),
            ("lapsed", lapsed_N),
        )
        return [
            notice
            for event, which_N in happened
            for at in np.flatnonzero(which_N)
            if (notice := self._happened(event, rule, int(row_N[at]), int(now_N[at]), names)) is not None
        ]

    def acknowledge(
        self, row: int, alert_id: str, who: str, why: str, now_us: int, names: np.ndarray
    ) -> Notice:
        """Writes down who saw an active alert and why; it is not escalated any more.

        Raises:
            DataError: no such alert is active, or `who` is empty.
        """
        rule = self._active(row, alert_id)
        if not who.strip():
            raise DataError("An acknowledgement needs the name of who gives it.")
        number = int(self._state["number"][rule, row])
        self._answers[number] = Answer(who=who, at_us=now_us, why=why)
        return self._notice("acknowledged", rule, row, now_us, names)

    def snooze(
        self, row: int, alert_id: str, minutes: float, who: str, now_us: int, names: np.ndarray
    ) -> Notice:
        """Tells nobody of the alert for some minutes; then it is raised again if it is still active.

        Raises:
            DataError: no such alert is active, or its rule allows no such time.
        """
        rule = self._active(row, alert_id)
        most = self.rules[rule].snooze_most_min
        if not 0 < minutes <= most:
            raise DataError(f"A snooze of this alert is for more than 0 and at most {most:g} minutes.")
        if not who.strip():
            raise DataError("A snooze needs the name of who asks for it.")
        self._state["snoozed_until"][rule, row] = now_us + round(minutes * _MIN_US)
        self._state["told"][rule, row] = 0
        return self._notice("snoozed", rule, row, now_us, names)

    def alerts(self, row: int, patient_id: str, now_us: int) -> tuple[Alert, ...]:
        """The active alerts of a patient, the most urgent first."""
        active = np.flatnonzero(self._state["raised"][:, row])
        found = [self._alert(int(rule), row, patient_id, now_us) for rule in active]
        order = {"high": 0, "medium": 1, "low": 2}
        return tuple(sorted(found, key=lambda alert: (order[alert.priority], alert.since)))

    def active_rows(self) -> np.ndarray:
        """Rows of patients with an active alert, sorted."""
        return np.flatnonzero(self._state["raised"].any(axis=0))

    def counts(self) -> dict[str, int]:
        """Active alerts by priority: a figure without patients."""
        active = (self._state["raised"] > 0).sum(axis=1)
        found = dict.fromkeys(("high", "medium", "low"), 0)
        for rule, count in zip(self.rules, active, strict=True):
            found[rule.priority] += int(count)
        return found

    def clear(self, row: int) -> None:
        """Forgets a patient, and who answered the patient's alerts."""
        for number in self._state["number"][:, row]:
            self._answers.pop(int(number), None)
        for column in self._state.values():
            column[:, row] = 0

    def snapshot(self, names: np.ndarray) -> str:
        """All that a restart must know, as JSON; it holds pseudonyms."""
        columns = (*_TIMES, *_NUMBERS)
        rows = [
            [self.rules[rule].name, str(names[row]), *(int(self._state[c][rule, row]) for c in columns)]
            for rule, row in np.argwhere(np.any([self._state[c] != 0 for c in columns], axis=0))
            if row < len(names) and names[row]
        ]
        answers = {str(k): [a.who, a.at_us, a.why] for k, a in self._answers.items()}
        return json.dumps(
            {
                "columns": columns,
                "rows": rows,
                "answers": answers,
                "last": self._last_number,
                "last_notice": self._last_notice,
            }
        )

    def restore(self, text: str, rows: Mapping[str, int]) -> None:
        """Takes over a snapshot; rules that are no more and patients who are not in `rows` are left out."""
        told: dict[str, Any] = json.loads(text)
        for name, patient, *values in told["rows"]:
            if name in self._index and patient in rows:
                for column, value in zip(told["columns"], values, strict=True):
                    self._state[column][self._index[name], rows[patient]] = value
        self._last_number = max(self._last_number, int(told["last"]))
        self._last_notice = max(self._last_notice, int(told["last_notice"]))
        held = set(self._state["number"][self._state["raised"] > 0].tolist())
        self._answers = {
            int(k): Answer(who=who, at_us=at, why=why)
            for k, (who, at, why) in told["answers"].items()
            if int(k) in held
        }

    def _number(self, own: dict[str, np.ndarray], raised_N: np.ndarray) -> None:
        count = int(raised_N.sum())
        own["number"][raised_N] = self._last_number + 1 + np.arange(count)
        self._last_number += count

    def _escalating(
        self, spec: Rule, own: dict[str, np.ndarray], left_out_N: np.ndarray, now_N: np.ndarray
    ) -> np.ndarray:
        """Which alerts nobody has answered for too long; each time counts anew."""
        if spec.escalate_min == 0:
            return np.zeros(len(now_N), bool)
        open_N = (own["raised"] > 0) & (own["told"] == 1) & ~left_out_N
        due_N = open_N & (now_N - own["escalate_from"] >= spec.escalate_min * _MIN_US)
        for at in np.flatnonzero(due_N):
            due_N[at] = int(own["number"][at]) not in self._answers
        own["escalate_from"] = np.where(due_N, now_N, own["escalate_from"])
        own["escalations"] = own["escalations"] + due_N
        return np.asarray(due_N)

    def _happened(self, event: Event, rule: int, row: int, now_us: int, names: np.ndarray) -> Notice | None:
        """The notice of an event; None if nobody heard of the alert that ended."""
        quiet = event in ("resolved", "lapsed") and self._state["told"][rule, row] == 0
        notice = None if quiet else self._notice(event, rule, row, now_us, names)
        if event in ("resolved", "lapsed"):
            self._answers.pop(int(self._state["number"][rule, row]), None)
            for name in ("raised", "number", "escalations", "told", "safe_since", "since"):
                self._state[name][rule, row] = 0
        return notice

    def _notice(self, event: Event, rule: int, row: int, now_us: int, names: np.ndarray) -> Notice:
        self._last_notice += 1
        return Notice(
            id=f"n{self._last_notice}",
            event=event,
            at=moment(now_us),
            alert=self._alert(rule, row, str(names[row]), now_us),
        )

    def _alert(self, rule: int, row: int, patient_id: str, now_us: int) -> Alert:
        spec = self.rules[rule]
        own = {name: int(column[rule, row]) for name, column in self._state.items()}
        answer = self._answers.get(own["number"])
        return Alert(
            id=f"{spec.name}-{own['number']}",
            patient_id=patient_id,
            rule=spec.name,
            priority=spec.priority,
            text=spec.text,
            since=moment(own["raised"]),
            escalations=own["escalations"],
            acknowledged_by=answer.who if answer else "",
            acknowledged_at=moment(answer.at_us) if answer else None,
            why=answer.why if answer else "",
            snoozed_until=moment(own["snoozed_until"]) if own["snoozed_until"] > now_us else None,
        )

    def _active(self, row: int, alert_id: str) -> int:
        name, _, number = alert_id.rpartition("-")
        rule = self._index.get(name)
        if rule is None or not number.isdecimal() or self._state["number"][rule, row] != int(number):
            raise DataError("No such alert of this patient is active; `alerts()` lists those that are.")
        if self._state["raised"][rule, row] == 0:
            raise DataError("This alert has ended.")
        return rule


def _sides(spec: Rule, value_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether a measure lies beyond the limit `on`, and on the safe side of `off`."""
    if spec.side == "below":
        return value_N < spec.on, value_N >= spec.off
    size_N = np.abs(value_N) if spec.side == "outside" else value_N
    return size_N >= spec.on, size_N < spec.off


def _ending(
    spec: Rule,
    own: dict[str, np.ndarray],
    active_N: np.ndarray,
    known_N: np.ndarray,
    safe_N: np.ndarray,
    now_N: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Which alerts end, and which lapse; writes since when a measure is safe, until when all is silent."""
    began_N = np.where(own["safe_since"] > 0, own["safe_since"], now_N)
    held_N = np.where(active_N & known_N & safe_N, began_N, np.where(known_N, 0, own["safe_since"]))
    own["safe_since"] = np.where(active_N, held_N, 0)
    long_N = now_N - own["safe_since"] >= spec.off_for_min * _MIN_US
    ended_N = active_N & known_N & safe_N & long_N
    lapsed_N = active_N & ~known_N & (now_N - own["known"] >= spec.lapse_min * _MIN_US)
    over_N = ended_N | lapsed_N
    own["silent_until"] = np.where(over_N, now_N + round(spec.silent_min * _MIN_US), own["silent_until"])
    return ended_N, lapsed_N


def _beginning(
    spec: Rule,
    own: dict[str, np.ndarray],
    active_N: np.ndarray,
    known_N: np.ndarray,
    beyond_N: np.ndarray,
    now_N: np.ndarray,
) -> np.ndarray:
    """Which alerts begin; writes since when a measure is beyond its limit."""
    began_N = np.where(own["since"] > 0, own["since"], now_N)
    own["since"] = np.where(active_N, own["since"], np.where(known_N & beyond_N, began_N, 0))
    long_N = now_N - own["since"] >= spec.on_for_min * _MIN_US
    raised_N = ~active_N & known_N & beyond_N & long_N & (now_N >= own["silent_until"])
    own["raised"] = np.where(raised_N, now_N, own["raised"])
    own["escalate_from"] = np.where(raised_N, now_N, own["escalate_from"])
    own["escalations"] = np.where(raised_N, 0, own["escalations"])
    own["told"] = np.where(raised_N, 0, own["told"])
    return np.asarray(raised_N)
