"""Hospitals of virtual people with type 1 diabetes, and the public population behind the prior.

`virtual_sites` is the embedded default data: everything follows from its seed. `public_population`
has a fixed seed of its own, other habits and another sensor, and people without diabetes as well.
Neither holds anything of a real person. What differs between hospitals is in `CLINICS`.

Letters: P people, G signals, T moments of five minutes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from twin.errors import DataError
from twin.physiology.cohort import Group, Lives, simulate, stream
from twin.physiology.habits import Profile
from twin.physiology.hovorka import Array
from twin.physiology.sensor import (
    G5,
    G6,
    GRID_MIN,
    HIGHEST_MG_DL,
    LOWEST_MG_DL,
    NAVIGATOR,
    draw_gaps,
)
from twin.site import Quality, Site

START_US = np.datetime64("2024-01-01T00:00:00", "us").astype(np.int64)
SOURCE = "virtual"
MEASURED = "ok"
PUBLIC_SEED = 20_040_905
BASAL_EVERY_MIN = 30
WATCH_OFF_PER_DAY, WATCH_OFF_MIN = 1.0, 90.0

THERAPY = ("carbohydrates", "insulin_basal", "insulin_bolus")
WATCH = ("heart_rate", "steps")

CLINICS: tuple[Group, ...] = (
    Group(
        diabetes="type 1",
        profile=Profile(),
        sensor=G6,
        signals=("glucose", *THERAPY, *WATCH),
    ),
    Group(
        diabetes="type 1",
        profile=Profile(
            meal_g=(38.0, 60.0, 62.0, 20.0, 15.0),
            meal_time_h=(8.2, 13.6, 20.6, 17.0, 22.5),
            bolus_delay_min=(-15, 5),
            bolus_step_u=0.5,
            basal_sd=0.20,
            target_mg_dl=130.0,
            correction_mg_dl=230.0,
            exercise_per_day=0.2,
        ),
        sensor=NAVIGATOR,
        step_min=15,
        signals=("glucose", "carbohydrates", "insulin_bolus"),
        gaps_per_day=0.8,
        gap_min=150.0,
    ),
    Group(
        diabetes="type 1",
        profile=Profile(
            meal_g=(55.0, 70.0, 80.0, 25.0, 25.0),
            meal_sd=0.35,
            meal_time_sd_h=0.8,
            counting_sd=0.35,
            missed_bolus=0.22,
            bolus_delay_min=(0, 30),
            therapy_sd=0.25,
            basal_sd=0.20,
            target_mg_dl=140.0,
            correction_mg_dl=250.0,
            correction_per_hour=0.2,
            wander_sd=0.20,
        ),
        sensor=G6,
        signals=("glucose",),
        gaps_per_day=0.6,
        gap_min=90.0,
    ),
    Group(
        diabetes="type 1",
        profile=Profile(
            meal_g=(48.0, 62.0, 72.0, 18.0, 15.0),
            meal_time_h=(6.8, 12.0, 18.2, 15.5, 21.0),
            counting_sd=0.20,
            missed_bolus=0.08,
            therapy_sd=0.15,
            basal_sd=0.14,
            target_mg_dl=125.0,
            correction_mg_dl=200.0,
            correction_per_hour=0.6,
            exercise_per_day=0.6,
        ),
        sensor=NAVIGATOR,
        signals=("glucose", *THERAPY, "heart_rate"),
        gaps_per_day=0.2,
        gap_min=45.0,
    ),
)

_PUBLIC_T1D = Profile(
    meal_g=(50.0, 55.0, 75.0, 20.0, 22.0),
    meal_time_h=(7.9, 13.1, 19.6, 16.4, 22.0),
    meal_time_sd_h=0.7,
    counting_sd=0.30,
    missed_bolus=0.12,
    bolus_delay_min=(-5, 25),
    therapy_sd=0.20,
    basal_sd=0.15,
    correction_mg_dl=210.0,
    correction_per_hour=0.4,
    rhythm=(0.0, 0.25),
    wander_sd=0.20,
    exercise_per_day=0.4,
)
_PUBLIC_OTHER = Profile(
    meal_g=(35.0, 45.0, 52.0, 20.0, 18.0),
    meal_time_h=(8.0, 12.9, 19.3, 16.0, 21.8),
    meal_probability=(0.85, 0.95, 0.97, 0.70, 0.50),
    fast=(0.1, 0.6),
    meal_time_sd_h=0.8,
    meal_sd=0.35,
    wander_sd=0.08,
    rhythm=(0.0, 0.15),
    exercise_per_day=0.4,
    dawn=(0.0, 0.10),
)


def _public(diabetes: str, scale: float, step_min: int, *signals: str) -> Group:
    profile = _PUBLIC_T1D if diabetes == "type 1" else _PUBLIC_OTHER
    return Group(
        diabetes=diabetes,
        profile=profile,
        sensor=G5,
        sensor_scale=scale,
        step_min=step_min,
        signals=("glucose", *signals),
        gaps_per_day=0.5,
        gap_min=80.0,
    )


PUBLIC: tuple[tuple[int, Group], ...] = (
    (4, _public("type 1", 1.0, 5, *THERAPY, *WATCH)),
    (2, _public("type 1", 1.0, 5, "carbohydrates", "insulin_bolus")),
    (2, _public("type 1", 1.0, 5)),
    (2, _public("type 1", 1.0, 15, *THERAPY)),
    (3, _public("type 2", 0.9, 5, "carbohydrates")),
    (4, _public("prediabetes", 0.75, 5)),
    (2, _public("none", 0.7, 5, *WATCH)),
    (4, _public("none", 0.7, 5)),
    (1, _public("none", 0.7, 15)),
)
"""Shares of the public population, of 24."""


def virtual_sites(*, sites: int, patients_per_site: int, days: int, seed: int) -> tuple[Site, ...]:
    """Hospitals "hospital_1" … of virtual people with type 1 diabetes.

    Args:
        sites: number of hospitals, at least 1. Hospital k is of the kind `CLINICS[(k - 1) % 4]`;
            from the fifth on habits vary around the kind's.
        patients_per_site: at least 1.
        days: length of every record, at least 1.
        seed: at least 0. A hospital follows from (seed, its number, patients_per_site, days);
            more hospitals do not change the earlier ones.

    Raises:
        DataError: an argument is out of range.
    """
    _check(sites=sites, patients_per_site=patients_per_site, days=days)
    seeds = [np.random.SeedSequence(entropy=seed, spawn_key=(k,)) for k in range(sites)]
    groups = [(_clinic(k, seeds[k]), patients_per_site, seeds[k]) for k in range(sites)]
    lives = simulate(groups, days)
    return tuple(_site(f"hospital_{k + 1}", [(life, seeds[k])]) for k, life in enumerate(lives))


def public_population(*, patients: int = 96, days: int = 10) -> Site:
    """The public people behind the prior: a mix, 5 and 15 minutes, always the same draw.

    Args:
        patients: at least 1; kinds of people in the proportions of `PUBLIC`.
        days: length of every record, at least 1.

    Raises:
        DataError: an argument is out of range.
    """
    _check(patients=patients, days=days)
    counts = _shares(np.array([share for share, _ in PUBLIC]), patients)
    seeds = np.random.SeedSequence(PUBLIC_SEED).spawn(len(PUBLIC))
    chosen = [
        (group, int(count), seed)
        for (_, group), count, seed in zip(PUBLIC, counts, seeds, strict=True)
        if count > 0
    ]
    lives = simulate(chosen, days)
    return _site("public", [(life, seed) for life, (_, _, seed) in zip(lives, chosen, strict=True)])


def _clinic(number: int, seed: np.random.SeedSequence) -> Group:
    """The kind of hospital `number`, counted from 0; beyond the kinds, its habits are its own."""
    kind = CLINICS[number % len(CLINICS)]
    if number < len(CLINICS):
        return kind
    rng, profile = stream(seed, "clinic"), kind.profile
    meal_g = np.array(profile.meal_g) * np.exp(rng.normal(0.0, 0.12))
    meal_time_h = np.array(profile.meal_time_h) + rng.normal(0.0, 0.5)
    own = replace(
        profile,
        meal_g=tuple(meal_g),
        meal_time_h=tuple(meal_time_h),
        missed_bolus=float(np.clip(profile.missed_bolus * np.exp(rng.normal(0.0, 0.4)), 0.0, 0.4)),
        basal_sd=float(profile.basal_sd * np.exp(rng.normal(0.0, 0.2))),
        therapy_sd=float(profile.therapy_sd * np.exp(rng.normal(0.0, 0.2))),
        correction_mg_dl=float(profile.correction_mg_dl + rng.normal(0.0, 15.0)),
    )
    return replace(kind, profile=own, gaps_per_day=float(kind.gaps_per_day * np.exp(rng.normal(0.0, 0.3))))


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise DataError(f"virtual people: {name} must be a whole number of at least 1; got {value}")


def _shares(weights: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """`total` split in proportion to `weights`, by largest remainder."""
    exact = weights * (total / weights.sum())
    counts: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return counts


def _site(name: str, parts: list[tuple[Lives, np.random.SeedSequence]]) -> Site:
    """One hospital from the lives of its groups; people are numbered through."""
    tables: list[pd.DataFrame] = []
    patients: list[pd.DataFrame] = []
    steps: dict[str, list[float]] = {}
    gaps = censored = 0
    all_ids = _ids(name, sum(len(life.subjects) for life, _ in parts))
    for life, seed in parts:
        first = sum(len(p) for p in patients)
        ids = all_ids[first : first + len(life.subjects)]
        values_PGT, signals, lost, clipped = _values(life, stream(seed, "records"))
        tables.append(_table(values_PGT, signals, ids))
        patients.append(
            pd.DataFrame(
                {"diabetes": life.group.diabetes, "weight_kg": np.round(life.subjects.weight_kg, 1)},
                index=pd.Index(ids, name="patient_id"),
            )
        )
        for signal in signals:
            steps.setdefault(signal, []).append(_step_min(signal, life.group))
        gaps += lost
        censored += clipped
    observations = pd.concat(tables, ignore_index=True)
    return Site(
        name=name,
        observations=observations,
        patients=pd.concat(patients),
        step_min={signal: float(np.median(values)) for signal, values in sorted(steps.items())},
        quality=Quality(
            rows_read=len(observations) + gaps,
            rows_kept=len(observations),
            dropped={"sensor gap: glucose": gaps},
            fixed={"set to the sensor's limit of 40 or 400 mg/dL: glucose": censored},
        ),
    )


def _ids(name: str, count: int) -> NDArray[np.object_]:
    """Pseudonyms "<name>-001" …, wide enough that their order is that of their numbers."""
    width = max(3, len(str(count)))
    return np.array([f"{name}-{k + 1:0{width}d}" for k in range(count)], dtype=object)


def _step_min(signal: str, group: Group) -> float:
    if signal == "glucose":
        return float(group.step_min)
    return {"insulin_basal": float(BASAL_EVERY_MIN), "heart_rate": 5.0, "steps": 5.0}.get(signal, 240.0)


def _values(life: Lives, rng: np.random.Generator) -> tuple[Array, list[str], int, int]:
    """Values of shape (P, G, T), NaN where there is no row; signals sorted; gaps; censored rows."""
    record, schedule, every = life.record, life.schedule, life.group.step_min // GRID_MIN
    shape_TP = record.sensor_TP.shape
    moment_T1 = np.arange(shape_TP[0])[:, None]
    read_TP = (moment_T1 + rng.integers(0, every, shape_TP[1])) % every == 0
    kept_TP = read_TP & ~life.error.missing_TP
    limited_TP = np.clip(np.round(record.sensor_TP), LOWEST_MG_DL, HIGHEST_MG_DL)
    clipped_TP = kept_TP & (limited_TP != np.round(record.sensor_TP))
    rescue_written_TP = record.rescue_g_TP * (rng.random(shape_TP) < life.group.profile.logged)
    eaten_TP = schedule.written_g_TP + rescue_written_TP
    worn_TP = ~draw_gaps(shape_TP, WATCH_OFF_PER_DAY, WATCH_OFF_MIN, rng)
    on_the_hour_T1 = moment_T1 % (BASAL_EVERY_MIN // GRID_MIN) == 0
    whole = {
        "glucose": np.where(kept_TP, limited_TP, np.nan),
        "carbohydrates": np.where(eaten_TP > 0.0, eaten_TP, np.nan),
        "insulin_bolus": np.where(record.bolus_u_TP > 0.0, np.round(record.bolus_u_TP, 2), np.nan),
        "insulin_basal": np.where(on_the_hour_T1, schedule.basal_u_h_TP, np.nan),
        "heart_rate": np.where(worn_TP, schedule.heart_rate_TP, np.nan),
        "steps": np.where(worn_TP, schedule.steps_TP, np.nan),
    }
    signals = sorted(life.group.signals)
    values_PGT = np.stack([whole[s] for s in signals]).transpose(2, 0, 1)
    return values_PGT, signals, int((read_TP & life.error.missing_TP).sum()), int(clipped_TP.sum())


def _table(values_PGT: Array, signals: list[str], ids: NDArray[np.object_]) -> pd.DataFrame:
    """Rows of all values that are there, sorted by patient, signal, time."""
    person, signal, moment = np.nonzero(~np.isnan(values_PGT))
    time_us = START_US + moment * (GRID_MIN * 60_000_000)
    return pd.DataFrame(
        {
            "patient_id": pd.Series(ids[person], dtype="str"),
            "signal": pd.Series(np.array(signals, dtype=object)[signal], dtype="str"),
            "time": pd.Series(time_us.astype("datetime64[us]")).dt.tz_localize("UTC"),
            "value": values_PGT[person, signal, moment],
            "source": SOURCE,
            "quality": MEASURED,
        }
    )
