"""Inputs of a hypoxemia forecast: a history of oxygen, breathing and heart as channels and as one table.

All lengths of time are multiples of the horizon h, so that the same inputs serve a forecast of the next five
minutes from a monitor and of the next hour from hourly charts. All of it is causal: nothing later than the
moment of prediction. Scales are fixed and public; they are no statistic of anybody's data.

Letters: N windows, T slots of half a horizon (oldest first), C channels, F columns, S other signals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from twin.tasks.windows import Clock, Levels, Track, levels_before, track

SLOTS = 16
SLOT = 0.5
# For how many horizons a value counts as known: SpO2, and the signals that are charted less often.
CARRY_SPO2 = 2.0
CARRY_OTHERS = 12.0
LAGS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
BACK = (1.0, 3.0, 12.0)
NEAR_PCT = 3.0
# The oldest value that a window can see: the one that another signal's first slot still carries, of a window
# at an SpO2 value that is itself as old as may be.
LOOKS_BACK = SLOT * (SLOTS - 1) + CARRY_OTHERS + CARRY_SPO2

# Centre and scale of each other signal: round values of an adult at rest, fixed and public.
OTHERS = {
    "heart_rate": (85.0, 20.0),
    "respiratory_rate": (18.0, 6.0),
    "fio2": (30.0, 20.0),
    "etco2": (36.0, 8.0),
    "mean_bp": (85.0, 18.0),
    "temperature": (37.0, 0.8),
}
CHANNELS = 3 * (1 + len(OTHERS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracks:
    """What the windows of a site are made of: SpO2, and the other signals by name."""

    clock: Clock
    spo2: Track
    others: dict[str, Track]
    pulse: Track


def tracks(observations: pd.DataFrame, patients: pd.Index, clock: Clock) -> Tracks:
    """The signals of all patients of a site."""
    return Tracks(
        clock=clock,
        spo2=track(observations, "spo2", patients, clock),
        others={name: track(observations, name, patients, clock) for name in OTHERS},
        pulse=track(observations, "pulse_rate", patients, clock),
    )


def columns() -> tuple[str, ...]:
    """Names of the columns of the table."""
    return (
        "level",
        "near",
        "low",
        *(f"change_{lag:g}h" for lag in LAGS),
        *(f"{name}_{back:g}h" for back in BACK for name in ("mean", "spread", "below", "near")),
        "missing",
        *(f"{signal}{part}" for signal in OTHERS for part in ("", "_rise", "_known", "_age")),
        "spo2_per_fio2",
        "rox",
        "one",
    )


def series(found: Tracks, patient_N: np.ndarray, now_us_N: np.ndarray, horizon_min: float) -> np.ndarray:
    """The history of each moment, N × T × C: value at order one, known, age as a share of its carry time."""
    x = np.zeros((len(now_us_N), SLOTS, CHANNELS), np.float32)
    lags = SLOT * horizon_min * np.arange(SLOTS - 1, -1, -1.0)
    spo2 = levels_before(found.spo2, found.clock, patient_N, now_us_N, lags, CARRY_SPO2 * horizon_min)
    _channel(x, 0, spo2, (95.0, 4.0), CARRY_SPO2 * horizon_min)
    for number, (name, scale) in enumerate(OTHERS.items(), start=1):
        levels = _other(found, name, patient_N, now_us_N, lags, CARRY_OTHERS * horizon_min)
        _channel(x, number, levels, scale, CARRY_OTHERS * horizon_min)
    return x


def table(
    found: Tracks,
    series_NTC: np.ndarray,
    patient_N: np.ndarray,
    now_us_N: np.ndarray,
    anchor_N: np.ndarray,
    *,
    horizon_min: float,
    low_pct: float,
) -> np.ndarray:
    """One row per window, in the order of `columns`, N × F."""
    lags = horizon_min * np.asarray(LAGS)
    past = levels_before(found.spo2, found.clock, patient_N, now_us_N, lags, CARRY_SPO2 * horizon_min)
    change_NL = np.clip((anchor_N[:, None] - past.value) / 2.0, -4.0, 4.0) * past.known
    above = anchor_N - low_pct
    parts = [
        np.clip((anchor_N - 96.0) / 3.0, -5.0, 2.0),
        np.clip(1.0 - above / 4.0, 0.0, 4.0),
        np.clip(-above / 3.0, 0.0, 4.0),
        *change_NL.T,
    ]
    for back in BACK:
        parts += _recent(found, patient_N, now_us_N, anchor_N, back * horizon_min, low_pct)
    parts.append(1.0 - series_NTC[:, :, 1].mean(1))
    for number in range(1, 1 + len(OTHERS)):
        parts += _now(series_NTC[:, :, 3 * number : 3 * number + 3])
    parts += _quotients(series_NTC, anchor_N)
    parts.append(np.ones(len(anchor_N)))
    return np.stack(parts, axis=1).astype(np.float32)


def _other(
    found: Tracks, name: str, patient_N: np.ndarray, now_us_N: np.ndarray, lags: np.ndarray, carry_min: float
) -> Levels:
    """A signal at lags; the pulse of an oximeter stands in where no heart rate is known."""
    holds = name == "fio2"  # a setting holds until the next one
    levels = levels_before(found.others[name], found.clock, patient_N, now_us_N, lags, carry_min, holds=holds)
    if name != "heart_rate" or not len(found.pulse.key_R):
        return levels
    pulse = levels_before(found.pulse, found.clock, patient_N, now_us_N, lags, carry_min)
    return Levels(
        value=np.where(levels.known, levels.value, pulse.value),
        known=levels.known | pulse.known,
        age_min=np.where(levels.known, levels.age_min, pulse.age_min),
    )


def _channel(
    x: np.ndarray, number: int, levels: Levels, scale: tuple[float, float], carry_min: float
) -> None:
    order_one = np.clip((levels.value - scale[0]) / scale[1], -5.0, 5.0)
    x[:, :, 3 * number] = np.where(levels.known, order_one, 0.0)
    x[:, :, 3 * number + 1] = levels.known
    x[:, :, 3 * number + 2] = levels.age_min / carry_min


def _recent(
    found: Tracks,
    patient_N: np.ndarray,
    now_us_N: np.ndarray,
    anchor_N: np.ndarray,
    back_min: float,
    low_pct: float,
) -> list[np.ndarray]:
    """Mean (less the last value), spread, shares below and near the threshold of the last minutes' values."""
    value_R = found.spo2.value_R
    first, last = rows_between(
        found.spo2, found.clock, patient_N, now_us_N - round(back_min * 60e6), now_us_N
    )
    count = np.maximum(last - first, 1)

    def mean(values_R: np.ndarray) -> np.ndarray:
        total = np.concatenate([[0.0], np.cumsum(values_R)])
        return np.asarray((total[last] - total[first]) / count)

    centred = mean(value_R - 95.0)
    spread = np.sqrt(np.maximum(mean((value_R - 95.0) ** 2) - centred**2, 0.0))
    return [
        np.clip((centred + 95.0 - anchor_N) / 2.0, -4.0, 4.0),
        np.clip(spread / 2.0, 0.0, 4.0),
        mean(value_R < low_pct),
        mean(value_R < low_pct + NEAR_PCT),
    ]


def rows_between(
    rows: Track, clock: Clock, patient_N: np.ndarray, since_us_N: np.ndarray, until_us_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First row and row after the last of each patient's observations in (since, until], N and N."""
    first = np.searchsorted(rows.key_R, clock.key(patient_N, since_us_N), side="right")
    last = np.searchsorted(rows.key_R, clock.key(patient_N, until_us_N), side="right")
    return first, last


def _now(channel_NT3: np.ndarray) -> list[np.ndarray]:
    """Value now, its rise over the mean of the history, whether known, age; of one other signal."""
    value, known, age = (channel_NT3[:, :, part] for part in range(3))
    usual = value.sum(1) / np.maximum(known.sum(1), 1.0)
    rise = np.clip((value[:, -1] - usual) * known[:, -1], -4.0, 4.0)
    return [value[:, -1], rise, known[:, -1], age[:, -1] * known[:, -1]]


def _quotients(series_NTC: np.ndarray, anchor_N: np.ndarray) -> list[np.ndarray]:
    """SpO2 over inspired oxygen, and that over the respiratory rate (the ROX index), 0 where unknown.

    Roca et al. 2019, Am J Respir Crit Care Med 199(11):1368-1376, doi:10.1164/rccm.201803-0589OC.
    """
    names = list(OTHERS)
    oxygen, breaths = 3 * (1 + names.index("fio2")), 3 * (1 + names.index("respiratory_rate"))
    fio2 = np.maximum(_unscaled(series_NTC[:, -1, oxygen], "fio2"), 10.0) / 100.0
    rate = np.maximum(_unscaled(series_NTC[:, -1, breaths], "respiratory_rate"), 4.0)
    has_oxygen = series_NTC[:, -1, oxygen + 1]
    quotient = anchor_N / fio2
    return [
        np.clip((quotient - 300.0) / 100.0, -4.0, 4.0) * has_oxygen,
        np.clip((quotient / rate - 18.0) / 8.0, -4.0, 4.0) * has_oxygen * series_NTC[:, -1, breaths + 1],
    ]


def _unscaled(value_N: np.ndarray, name: str) -> np.ndarray:
    centre, scale = OTHERS[name]
    return np.asarray(centre + scale * value_N.astype(np.float64))
