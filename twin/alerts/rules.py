"""Rules of alerts, as data: what is measured, where it begins and ends, how long, how urgent.

Every rule has two limits. An alert begins when the measure has been beyond `on` for `on_for_min`, and ends
when it has been on the safe side of `off` for `off_for_min`; between the limits nothing changes, so a measure
that trembles about one of them rings once. Then the rule is silent for `silent_min`.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Final, Literal

from twin.alerts.alert import PRIORITIES, Priority
from twin.errors import DataError
from twin.signals import SIGNALS

Kind = Literal["value", "forecast", "anomaly", "device"]
QUANTITIES: Final[Mapping[str, tuple[str, ...]]] = {
    "value": ("last",),
    "forecast": ("middle", "low_80", "high_80", "low_90", "high_90", "probability"),
    "anomaly": ("unusual", "joint"),
    "device": ("flat_min", "gap_min", "missing_percent", "noise", "drift", "age_days", "pressed"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule.

    Attributes:
        name: unique; letters, digits, hyphens.
        kind, quantity: what is measured, of `QUANTITIES`. `unusual` is the distance to the patient's own norm
            in standard deviations, signed; `joint` of all signals together; `pressed` 1 after a
            compression low.
        of: the signal; for a forecast the task.
        side: beyond is below or above; outside takes the measure's size.
        on, off: limits; off lies on the safe side of on, or on it.
        within_min: of a forecast: the worst of the horizons up to so many minutes.
        on_for_min, off_for_min, silent_min: as the module says.
        fresh_min: an older reading measures nothing. lapse_min: an alert ends as lapsed after so long
            without a measure, since nobody knows any more.
        priority: high, medium or low, in the sense of IEC 60601-1-8.
        escalate_min: unacknowledged for so long, it is told again; 0 is never.
        snooze_most_min: nobody can snooze it for longer.
        text: what it means; no value, no person.
    """

    name: str
    kind: Kind
    quantity: str
    of: str
    side: Literal["below", "above", "outside"]
    on: float
    off: float
    text: str
    priority: Priority = "low"
    within_min: float = 60.0
    on_for_min: float = 0.0
    off_for_min: float = 15.0
    silent_min: float = 30.0
    fresh_min: float = 20.0
    lapse_min: float = 240.0
    escalate_min: float = 0.0
    snooze_most_min: float = 120.0


def faults(rule: Rule) -> list[str]:
    """Everything that is wrong with a rule; none of it names a patient."""
    found = []
    if not rule.name or not all(c.isalnum() or c == "-" for c in rule.name) or not rule.name.isascii():
        found.append("name: expected letters, digits and hyphens")
    if rule.kind not in QUANTITIES:
        found.append(f"kind: {rule.kind!r}; allowed are {', '.join(QUANTITIES)}")
    elif rule.quantity not in QUANTITIES[rule.kind]:
        found.append(f"quantity: {rule.quantity!r}; allowed are {', '.join(QUANTITIES[rule.kind])}")
    if rule.kind != "forecast" and rule.of not in SIGNALS and rule.quantity != "joint":
        found.append(f"of: {rule.of!r} is no signal of the catalogue")
    if rule.side not in ("below", "above", "outside"):
        found.append(f"side: {rule.side!r}; allowed are below, above, outside")
    if rule.priority not in PRIORITIES:
        found.append(f"priority: {rule.priority!r}; allowed are {', '.join(PRIORITIES)}")
    numbers = [f.name for f in fields(Rule) if f.name.endswith("_min")]
    found += [f"{n}: expected minutes, not negative" for n in numbers if not _minutes(getattr(rule, n))]
    if not (_number(rule.on) and _number(rule.off)):
        found.append("on, off: expected numbers")
    elif (rule.off < rule.on) if rule.side == "below" else (rule.off > rule.on):
        found.append("off must lie on the safe side of on, or on it")
    return found


def checked(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules if all hold; raises DataError with every fault of every rule."""
    rules = tuple(rules)
    found = [f"{rule.name}: {fault}" for rule in rules for fault in faults(rule)]
    names = [rule.name for rule in rules]
    found += [f"{name}: there are two of this name" for name in sorted(set(names)) if names.count(name) > 1]
    if found:
        raise DataError("The rules of alerts do not hold. " + "; ".join(found) + " (alerts.toml).")
    return rules


def read_rules(text: str, beside: Iterable[Rule] = ()) -> tuple[Rule, ...]:
    """The rules of a site's alerts.toml.

    Args:
        text: TOML with `[[rule]]` tables, whose keys are those of `Rule`; `off = ["name", …]` leaves rules
            out, `[[sink]]` tables are for `twin.alerts.sinks`. A rule with the name of one in `beside` takes
            its place.
        beside: rules that hold already, usually `DEFAULT_RULES`.

    Raises:
        DataError: every fault at once.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"alerts.toml is no TOML: {error}.") from None
    left_out = table.get("off", [])
    own, found = (
        [],
        [
            f"{key}: unknown; allowed are off, rule, sink"
            for key in sorted(set(table) - {"off", "rule", "sink"})
        ],
    )
    for index, entry in enumerate(table.get("rule", []), 1):
        told = _entry_faults(entry)
        found += [f"rule {index}: {fault}" for fault in told]
        if not told:
            typed: dict[str, Any] = {k: float(v) if _number(v) else v for k, v in entry.items()}
            own.append(Rule(**typed))
    known = {rule.name for rule in beside}
    found += [f"off: there is no rule {name!r}" for name in left_out if name not in known]
    if found:
        raise DataError("The rules of alerts do not hold. " + "; ".join(found) + " (alerts.toml).")
    replaced = {rule.name for rule in own} | set(left_out)
    return checked([*(rule for rule in beside if rule.name not in replaced), *own])


def _entry_faults(entry: Any) -> list[str]:
    if not isinstance(entry, dict):
        return ["expected a table"]
    kinds = {f.name: f.type for f in fields(Rule)}
    needed = [f.name for f in fields(Rule) if f.default is MISSING]
    found = [f"{name}: unknown" for name in sorted(set(entry) - set(kinds))]
    found += [f"{name}: missing" for name in needed if name not in entry]
    for name, value in entry.items():
        if name in kinds and (_number(value) if kinds[name] == "float" else isinstance(value, str)) is False:
            found.append(f"{name}: expected a {'number' if kinds[name] == 'float' else 'text'}")
    return found


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _minutes(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1e6


def _rule(name: str, kind: Kind, quantity: str, of: str, text: str, **rest: Any) -> Rule:
    return Rule(name=name, kind=kind, quantity=quantity, of=of, text=text, **rest)


# Glucose: levels 1 and 2 of hypo- and hyperglycaemia, Battelino et al. 2019, Diabetes Care 42:1593.
# The other limits are starting points: each site sets its own in alerts.toml. docs/alarms.md has figures;
# `joint` is in no rule of ours, since it finds less than the heart rate alone.
DEFAULT_RULES: Final = checked(
    (
        _rule(
            "low-glucose",
            "value",
            "last",
            "glucose",
            "glucose is low",
            side="below",
            on=70,
            off=75,
            priority="medium",
            escalate_min=15,
        ),
        _rule(
            "very-low-glucose",
            "value",
            "last",
            "glucose",
            "glucose is very low",
            side="below",
            on=54,
            off=60,
            priority="high",
            escalate_min=5,
            silent_min=15,
            snooze_most_min=30,
        ),
        _rule(
            "low-glucose-ahead",
            "forecast",
            "middle",
            "glucose",
            "glucose will be low within half an hour",
            side="below",
            on=70,
            off=80,
            within_min=30,
            priority="medium",
            escalate_min=15,
        ),
        _rule(
            "high-glucose",
            "value",
            "last",
            "glucose",
            "glucose has been very high for an hour",
            side="above",
            on=250,
            off=230,
            on_for_min=60,
            priority="low",
            silent_min=120,
        ),
        _rule(
            "low-spo2",
            "value",
            "last",
            "spo2",
            "oxygen saturation is low",
            side="below",
            on=88,
            off=90,
            on_for_min=0.25,
            off_for_min=1,
            silent_min=2,
            fresh_min=2,
            priority="high",
            escalate_min=2,
            snooze_most_min=10,
        ),
        _rule(
            "low-spo2-ahead",
            "forecast",
            "probability",
            "hypoxemia",
            "oxygen saturation will probably be low within minutes",
            side="above",
            on=0.5,
            off=0.3,
            off_for_min=5,
            silent_min=10,
            fresh_min=5,
            priority="medium",
            escalate_min=5,
            snooze_most_min=30,
        ),
        _rule(
            "unusual-heart-rate",
            "anomaly",
            "unusual",
            "heart_rate",
            "heart rate is far from what is usual for the patient",
            side="outside",
            on=3,
            off=2.5,
            on_for_min=10,
            fresh_min=75,
            priority="low",
            silent_min=120,
        ),
        _rule(
            "glucose-sensor-flat",
            "device",
            "flat_min",
            "glucose",
            "the glucose sensor gives one value",
            side="above",
            on=45,
            off=5,
            off_for_min=0,
            silent_min=120,
        ),
        _rule(
            "glucose-sensor-silent",
            "device",
            "gap_min",
            "glucose",
            "the glucose sensor gives no values",
            side="above",
            on=30,
            off=10,
            off_for_min=0,
            fresh_min=720,
            lapse_min=720,
        ),
        _rule(
            "glucose-sensor-noisy",
            "device",
            "noise",
            "glucose",
            "the glucose sensor has become noisy",
            side="above",
            on=4,
            off=2,
            on_for_min=15,
            silent_min=240,
        ),
        _rule(
            "glucose-sensor-pressed",
            "device",
            "pressed",
            "glucose",
            "the glucose sensor was probably lain upon",
            side="above",
            on=1,
            off=0.5,
            off_for_min=0,
            silent_min=120,
        ),
        _rule(
            "glucose-sensor-drift",
            "device",
            "drift",
            "glucose",
            "the glucose sensor differs from blood samples; calibrate or change it",
            side="outside",
            on=2.5,
            off=1.5,
            fresh_min=720,
            silent_min=720,
        ),
        _rule(
            "glucose-sensor-old",
            "device",
            "age_days",
            "glucose",
            "the glucose sensor is due for a change",
            side="above",
            on=10,
            off=1,
            off_for_min=0,
            fresh_min=720,
            silent_min=1440,
        ),
    )
)
