"""Inputs of a glucose forecast: two hours of history as channels over time, and as one table.

All of it is causal: nothing later than the moment of prediction. Scales are fixed and public; they
are no statistic of anybody's data.

Letters: N windows, T slots of five minutes (oldest first), C channels, S static values, F columns.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from twin.tasks.windows import Clock, Track, levels_before, seen_before, sums_before

STEP_MIN = 5.0
SLOTS = 24
CARRY_MIN = 30.0
OPTIONAL_SIGNALS = ("insulin_bolus", "carbohydrates", "insulin_basal", "heart_rate", "steps")

# Minutes back at which the table takes a difference to the last value: dense where it matters.
LAGS_MIN = (5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 90, 115)
# Edges (minutes back) of the bins in which doses are summed.
DOSE_BINS_MIN = ((0, 15), (15, 30), (30, 60), (60, 120))

_GLUCOSE, _MASK, _AGE, _BOLUS, _CARBS, _BASAL, _HEART, _STEPS = range(8)
CHANNELS = 8
# What brings a channel to order one.
_CENTRE = (140.0, 0.0, 0.0, 0.0, 0.0, 1.0, 80.0, 0.0)
_SCALE = (50.0, 1.0, 10.0, 2.0, 30.0, 1.0, 20.0, 300.0)


def columns() -> tuple[str, ...]:
    """Names of the columns of the table."""
    doses = [f"{name}_{a}_{b}" for name in ("bolus", "carbs") for a, b in DOSE_BINS_MIN]
    return (
        "level",
        "level_low",
        "level_high",
        *(f"change_{lag}" for lag in LAGS_MIN),
        "speed_fast",
        "speed_by_level",
        "missing_30",
        "missing_120",
        "age",
        *doses,
        "basal",
        "heart_rate",
        "heart_rate_rise",
        "steps_30",
        "steps_120",
        "day_sin",
        "day_cos",
        "halfday_sin",
        "halfday_cos",
        "one",
    )


def meals(carbohydrates: Track, energy: Track) -> Track:
    """Carbohydrates (g), and half of the energy (kcal) that came before a patient's first carbohydrates.

    A public rule of thumb (45-60 % of energy, EFSA 2010, doi 10.2903/j.efsa.2010.1462; 4 kcal/g) for
    patients without carbohydrates. Whether some will come later is not known at the time of a meal.
    """
    size = 1 + int(max(track.patient_R.max(initial=0) for track in (carbohydrates, energy)))
    first_key_P = np.full(size, np.iinfo(np.int64).max)
    np.minimum.at(first_key_P, carbohydrates.patient_R, carbohydrates.key_R)
    instead = energy.key_R < first_key_P[energy.patient_R]
    key_R = np.concatenate([carbohydrates.key_R, energy.key_R[instead]])
    order = np.argsort(key_R, kind="stable")

    def joined(here: np.ndarray, there: np.ndarray) -> np.ndarray:
        return np.concatenate([here, there[instead]])[order]

    return Track(
        key_R=key_R[order],
        patient_R=joined(carbohydrates.patient_R, energy.patient_R),
        time_us_R=joined(carbohydrates.time_us_R, energy.time_us_R),
        value_R=joined(carbohydrates.value_R, energy.value_R * 0.125),
    )


def series(
    glucose: Track, others: dict[str, Track], clock: Clock, patient_N: np.ndarray, now_us_N: np.ndarray
) -> np.ndarray:
    """The history of each moment, N × T × C, float32."""
    lags = STEP_MIN * np.arange(SLOTS - 1, -1, -1.0)
    edges = STEP_MIN * np.arange(SLOTS + 1.0)
    levels = levels_before(glucose, clock, patient_N, now_us_N, lags, CARRY_MIN)
    x = np.zeros((len(now_us_N), SLOTS, CHANNELS), np.float32)
    x[:, :, _GLUCOSE], x[:, :, _MASK], x[:, :, _AGE] = levels.value, levels.known, levels.age_min
    for name, channel in (("insulin_bolus", _BOLUS), ("carbohydrates", _CARBS), ("steps", _STEPS)):
        if len(others[name].key_R):
            x[:, :, channel] = sums_before(others[name], clock, patient_N, now_us_N, edges)[:, ::-1]
    # A basal rate holds until the next one is set; a day without one means that it is not known.
    for name, channel, carry_min, holds in (
        ("insulin_basal", _BASAL, 1440.0, True),
        ("heart_rate", _HEART, CARRY_MIN, False),
    ):
        if len(others[name].key_R):
            x[:, :, channel] = levels_before(
                others[name], clock, patient_N, now_us_N, lags, carry_min, holds=holds
            ).value
    return x


def static(others: dict[str, Track], clock: Clock, patient_N: np.ndarray, now_us_N: np.ndarray) -> np.ndarray:
    """Time of day (four numbers), then whether each optional signal was ever seen, N × S."""
    day = 2.0 * math.pi * (now_us_N % 86_400_000_000) / 86_400_000_000
    clockwork = [np.sin(day), np.cos(day), np.sin(2 * day), np.cos(2 * day)]
    seen = [seen_before(others[name], clock, patient_N, now_us_N) for name in OPTIONAL_SIGNALS]
    return np.stack([*clockwork, *seen], axis=1)


def sequence(series_NTC: Tensor, static_NS: Tensor) -> Tensor:
    """Channels over time at order one, N × C × T; 0 where nothing is known."""
    centre = torch.tensor(_CENTRE, device=series_NTC.device)
    scale = torch.tensor(_SCALE, device=series_NTC.device)
    scaled = (series_NTC - centre) / scale
    known = series_NTC[:, :, _MASK] > 0
    scaled[:, :, _GLUCOSE] = torch.where(known, scaled[:, :, _GLUCOSE], 0.0)
    has = static_NS[:, 4:]
    for channel, flag in ((_BASAL, 2), (_HEART, 3)):
        live = (series_NTC[:, :, channel] > 0) & (has[:, flag : flag + 1] > 0)
        scaled[:, :, channel] = torch.where(live, scaled[:, :, channel], 0.0)
    return scaled.clamp(-6.0, 6.0).transpose(1, 2)


def tabulate(series_NTC: Tensor, static_NS: Tensor, anchor_N: Tensor) -> Tensor:
    """One row per window, in the order of `columns`."""
    x = series_NTC
    level = (anchor_N - 140.0) / 50.0
    change = _changes(x, anchor_N)
    speed = change[:, 2]
    known = x[:, :, _MASK]
    has = static_NS[:, 4:]
    steps = torch.stack([x[:, -6:, _STEPS].sum(1) / 600.0, x[:, :, _STEPS].sum(1) / 2000.0], dim=1)
    parts = [
        torch.stack([level, (-level - 0.8).clamp(min=0.0), (level - 0.8).clamp(min=0.0)], dim=1),
        change,
        torch.stack([2.0 * speed.abs().clamp(max=3.0), speed * level], dim=1),
        torch.stack([1.0 - known[:, -7:].mean(1), 1.0 - known.mean(1), x[:, -2, _AGE] / 10.0], dim=1),
        (_binned(x[:, :, _BOLUS]) / 2.0).clamp(max=8.0),
        (_binned(x[:, :, _CARBS]) / 30.0).clamp(max=8.0),
        (has[:, 2] * (x[:, -1, _BASAL] - 1.0))[:, None],
        _heart(x[:, :, _HEART]),
        steps.clamp(max=4.0),
        static_NS[:, :4],
        torch.ones_like(level)[:, None],
    ]
    return torch.cat(parts, dim=1)


def _changes(series_NTC: Tensor, anchor_N: Tensor) -> Tensor:
    """Last value minus the value some minutes back, in 30 mg/dL, 0 where that is not known."""
    slots = [SLOTS - 1 - int(lag / STEP_MIN) for lag in LAGS_MIN]
    past = series_NTC[:, slots, _GLUCOSE]
    known = series_NTC[:, slots, _MASK]
    return ((anchor_N[:, None] - past) / 30.0).clamp(-6.0, 6.0) * known


def _binned(doses_NT: Tensor) -> Tensor:
    parts = []
    for near, far in DOSE_BINS_MIN:
        first, last = SLOTS - int(far / STEP_MIN), SLOTS - int(near / STEP_MIN)
        parts.append(doses_NT[:, first:last].sum(1))
    return torch.stack(parts, dim=1)


def _heart(heart_NT: Tensor) -> Tensor:
    """Mean of the last quarter of an hour around 80, and its rise over the two hours; 0 if unknown."""
    known = (heart_NT > 0).to(heart_NT.dtype)
    recent = heart_NT[:, -3:].sum(1) / known[:, -3:].sum(1).clamp(min=1.0)
    usual = heart_NT.sum(1) / known.sum(1).clamp(min=1.0)
    live = known[:, -3:].amax(1)
    return torch.stack([live * (recent - 80.0) / 20.0, live * (recent - usual) / 20.0], dim=1).clamp(
        -4.0, 4.0
    )
