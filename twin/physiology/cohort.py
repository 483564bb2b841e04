"""Groups of virtual people: drawn each from its own stream of chance, then simulated in one batch.

Letters: T moments of five minutes, P people.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twin.physiology.habits import PER_DAY, Profile, Schedule, draw_schedule
from twin.physiology.hovorka import Array, Subjects, concatenate
from twin.physiology.life import Choices, Record, live, side_by_side
from twin.physiology.parameters import HEALTHY, PREDIABETES, TYPE_1, TYPE_2, draw_subjects
from twin.physiology.sensor import Sensor, SensorError, draw_error
from twin.physiology.therapy import Therapy, titrate

KINDS = {"type 1": TYPE_1, "type 2": TYPE_2, "prediabetes": PREDIABETES, "none": HEALTHY}
RESCUE_TREATED_MG_DL, RESCUE_UNTREATED_MG_DL = 70.0, 58.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """People of one kind with the same population habits and the same make of sensor.

    Attributes:
        diabetes: a key of `KINDS`.
        profile: habits of the population.
        sensor: make of sensor.
        sensor_scale: factor on its additive error (`sensor.draw_error`).
        step_min: minutes between two readings that are kept, a multiple of 5.
        signals: what the hospital records, names of the canonical catalogue.
        gaps_per_day, gap_min: losses of the sensor's signal.
    """

    diabetes: str
    profile: Profile
    sensor: Sensor
    sensor_scale: float = 1.0
    step_min: int = 5
    signals: tuple[str, ...]
    gaps_per_day: float = 0.3
    gap_min: float = 70.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lives:
    """One group's people and what happened to them, arrays of shape (T, P) in the parts."""

    group: Group
    subjects: Subjects
    therapy: Therapy
    schedule: Schedule
    error: SensorError
    record: Record


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    subjects: Subjects
    therapy: Therapy
    schedule: Schedule
    error: SensorError
    choices: Choices


def simulate(groups: list[tuple[Group, int, np.random.SeedSequence]], days: int) -> tuple[Lives, ...]:
    """Draw each group's people from its own seed and let all groups live for `days` days.

    Args:
        groups: group, number of people (at least 1), seed. A group's record depends on these
            three and on `days` alone, not on the groups beside it.
        days: at least 1.
    """
    drawn = [_draw(group, count, seed, days) for group, count, seed in groups]
    record = live(
        concatenate([d.subjects for d in drawn]),
        side_by_side([d.schedule for d in drawn]),
        _errors([d.error for d in drawn]),
        _choices([d.choices for d in drawn]),
    )
    ends = np.cumsum([count for _, count, _ in groups])
    return tuple(
        Lives(
            group=group,
            subjects=d.subjects,
            therapy=d.therapy,
            schedule=d.schedule,
            error=d.error,
            record=_columns(record, int(end) - count, int(end)),
        )
        for (group, count, _), d, end in zip(groups, drawn, ends, strict=True)
    )


def stream(seed: np.random.SeedSequence, name: str) -> np.random.Generator:
    """A generator for one purpose: a child of `seed` that does not change `seed`."""
    child = (*seed.spawn_key, *name.encode())
    return np.random.default_rng(np.random.SeedSequence(entropy=seed.entropy, spawn_key=child))


def _draw(group: Group, count: int, seed: np.random.SeedSequence, days: int) -> _Drawn:
    people_rng, habits_rng, sensor_rng = (stream(seed, name) for name in ("people", "habits", "sensor"))
    subjects = draw_subjects(KINDS[group.diabetes], count, people_rng)
    treated = group.diabetes == "type 1"
    therapy = titrate(subjects) if treated else _no_therapy(count)
    schedule = draw_schedule(group.profile, therapy, days, habits_rng)
    error = draw_error(
        group.sensor,
        (days * PER_DAY, count),
        group.sensor_scale,
        group.gaps_per_day,
        group.gap_min,
        sensor_rng,
    )
    return _Drawn(
        subjects=subjects,
        therapy=therapy,
        schedule=schedule,
        error=error,
        choices=_habits_of_choice(group.profile, treated, count),
    )


def _no_therapy(count: int) -> Therapy:
    never = np.full(count, np.inf)
    return Therapy(basal_u_h=np.zeros(count), ratio_g_u=never, correction_mg_dl_u=never)


def _habits_of_choice(profile: Profile, treated: bool, count: int) -> Choices:
    def everyone(value: float) -> Array:
        return np.full(count, value)

    return Choices(
        treated_P=np.full(count, treated),
        target_P=everyone(profile.target_mg_dl),
        correct_above_P=everyone(profile.correction_mg_dl),
        correct_chance_P=everyone(profile.correction_per_hour / 12.0),
        rescue_below_P=everyone(RESCUE_TREATED_MG_DL if treated else RESCUE_UNTREATED_MG_DL),
        bolus_step_P=everyone(profile.bolus_step_u),
    )


def _errors(parts: list[SensorError]) -> SensorError:
    return SensorError(
        gain_TP=np.concatenate([e.gain_TP for e in parts], axis=1),
        offset_TP=np.concatenate([e.offset_TP for e in parts], axis=1),
        missing_TP=np.concatenate([e.missing_TP for e in parts], axis=1),
    )


def _choices(parts: list[Choices]) -> Choices:
    names = Choices.__dataclass_fields__
    return Choices(**{name: np.concatenate([getattr(c, name) for c in parts]) for name in names})


def _columns(record: Record, start: int, stop: int) -> Record:
    names = Record.__dataclass_fields__
    return Record(**{name: getattr(record, name)[:, start:stop] for name in names})
