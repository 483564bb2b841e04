"""Forecast of the path of glucose over the next hour, with 10, 50 and 90 % quantiles.

From up to two hours of history: glucose and, where a patient has them, insulin, carbohydrates,
heart rate, steps and the time of day. A forecast is the last glucose value plus a path. Windows
are causal; what is carried forward has a mask and an age; targets are observed values alone.

Letters as in `twin.tasks.protocol`; O = 3 H: the path, then the two spreads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from conf import schema
from twin.site import Site
from twin.tasks.metrics import glucose_metrics
from twin.tasks.protocol import Examples, Forecast, Metric
from twin.tasks.windows import (
    Clock,
    Track,
    levels_before,
    microseconds,
    moments,
    seen_before,
    sums_before,
    track,
    values_after,
)

HORIZONS_MIN = (15, 30, 45, 60)
STEP_MIN = 5.0
SLOTS = 24
CARRY_MIN = 30.0
TARGET_WITHIN_MIN = 2.5
OPTIONAL_SIGNALS = ("insulin_bolus", "carbohydrates", "insulin_basal", "heart_rate", "steps")

# Order of magnitude of a change of glucose over each horizon (mg/dL): scales losses and outputs.
CHANGE_MG_DL = (10.0, 18.0, 24.0, 28.0)

# A path is a sum of so many fixed public shapes; below and above it there is one spread each.
PATH_SHAPES = 3

# Minutes back at which the table takes a difference to the last value: dense where it matters.
LAGS_MIN = (5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 90, 115)
# Edges (minutes back) of the bins in which doses are summed.
DOSE_BINS_MIN = ((0, 15), (15, 30), (30, 60), (60, 120))

_GLUCOSE, _MASK, _AGE, _BOLUS, _CARBS, _BASAL, _HEART, _STEPS = range(8)
_CHANNELS = 8
# Fixed public scales that bring a channel to order one; they are no statistic of anybody's data.
_CENTRE = (140.0, 0.0, 0.0, 0.0, 0.0, 1.0, 80.0, 0.0)
_SCALE = (50.0, 1.0, 10.0, 2.0, 30.0, 1.0, 20.0, 300.0)


def _columns() -> tuple[str, ...]:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class GlucoseTask:
    """Glucose path to +60 min. Not a dosing aid: it has no notion of what will be eaten or injected.

    Attributes:
        stride_min: minutes between two moments of prediction of a patient.
        low_mg_dl: hypoglycaemia is glucose below it.
        alarm_mg_dl: an alarm rings when the forecast path goes below it.
    """

    stride_min: int
    low_mg_dl: float
    alarm_mg_dl: float
    name: str = "glucose"
    outputs: int = 3 * len(HORIZONS_MIN)
    latents: int = PATH_SHAPES + 2
    horizons_min: tuple[int, ...] = HORIZONS_MIN
    channels: int = _CHANNELS
    columns: tuple[str, ...] = field(default_factory=_columns)

    @staticmethod
    def build(config: schema.Task) -> GlucoseTask:
        """The task as configured."""
        return GlucoseTask(
            stride_min=config.stride_min, low_mg_dl=config.low_mg_dl, alarm_mg_dl=config.alarm_mg_dl
        )

    def examples(self, site: Site) -> Examples:
        """A window for the first glucose value in each stride that has any observed target."""
        clock = Clock.over(microseconds(site.observations["time"]))
        patients = site.patients.index
        glucose = track(site.observations, "glucose", patients, clock)
        rows = moments(glucose, self.stride_min)
        patient_N, now_us_N = glucose.patient_R[rows], glucose.time_us_R[rows]
        horizons = np.asarray(HORIZONS_MIN, float)
        target_NH, observed_NH = values_after(
            glucose, clock, patient_N, now_us_N, horizons, TARGET_WITHIN_MIN
        )
        keep = observed_NH.any(axis=1)
        rows, patient_N, now_us_N = rows[keep], patient_N[keep], now_us_N[keep]
        others = {s: track(site.observations, s, patients, clock) for s in OPTIONAL_SIGNALS}
        energy = track(site.observations, "energy_intake", patients, clock)
        others["carbohydrates"] = _meals(others["carbohydrates"], energy)
        return Examples(
            series_NTC=_float(_series(glucose, others, clock, patient_N, now_us_N)),
            static_NS=_float(_static(others, clock, patient_N, now_us_N)),
            anchor_N=_float(glucose.value_R[rows]),
            target_NH=_float(target_NH[keep]),
            observed_NH=torch.from_numpy(observed_NH[keep]),
            patient_N=torch.from_numpy(patient_N),
            time_us_N=torch.from_numpy(now_us_N),
            patients=tuple(str(p) for p in patients),
        )

    def sequence(self, examples: Examples) -> Tensor:
        """Channels over time, oldest first, at fixed public scales; 0 where nothing is known."""
        centre = torch.tensor(_CENTRE, device=examples.series_NTC.device)
        scale = torch.tensor(_SCALE, device=examples.series_NTC.device)
        scaled = (examples.series_NTC - centre) / scale
        known = examples.series_NTC[:, :, _MASK] > 0
        scaled[:, :, _GLUCOSE] = torch.where(known, scaled[:, :, _GLUCOSE], 0.0)
        has = examples.static_NS[:, 4:]
        for channel, flag in ((_BASAL, 2), (_HEART, 3)):
            live = (examples.series_NTC[:, :, channel] > 0) & (has[:, flag : flag + 1] > 0)
            scaled[:, :, channel] = torch.where(live, scaled[:, :, channel], 0.0)
        return scaled.clamp(-6.0, 6.0).transpose(1, 2)

    def tabulate(self, examples: Examples) -> Tensor:
        """One row per window, in the order of `columns`."""
        x = examples.series_NTC
        level = (examples.anchor_N - 140.0) / 50.0
        change = _changes(examples)
        speed = change[:, 2] if change.shape[1] > 2 else change[:, 0]
        known = x[:, :, _MASK]
        has = examples.static_NS[:, 4:]
        parts = [
            torch.stack([level, (-level - 0.8).clamp(min=0.0), (level - 0.8).clamp(min=0.0)], dim=1),
            change,
            torch.stack([2.0 * speed.abs().clamp(max=3.0), speed * level], dim=1),
            torch.stack([1.0 - known[:, -7:].mean(1), 1.0 - known.mean(1), x[:, -2, _AGE] / 10.0], dim=1),
            (_binned(x[:, :, _BOLUS]) / 2.0).clamp(max=8.0),
            (_binned(x[:, :, _CARBS]) / 30.0).clamp(max=8.0),
            (has[:, 2] * (x[:, -1, _BASAL] - 1.0))[:, None],
            _heart(x[:, :, _HEART]),
            torch.stack([x[:, -6:, _STEPS].sum(1) / 600.0, x[:, :, _STEPS].sum(1) / 2000.0], dim=1).clamp(
                max=4.0
            ),
            examples.static_NS[:, :4],
            torch.ones_like(level)[:, None],
        ]
        return torch.cat(parts, dim=1)

    def loss(self, outputs_NO: Tensor, examples: Examples) -> Tensor:
        """Half the squared error of the path plus the pinball losses of the two outer quantiles.

        Everything in units of `CHANGE_MG_DL`, averaged over the observed horizons. The outer
        quantiles do not pull at the path.
        """
        path, below, above = self._parts(outputs_NO)
        scale = _scale(outputs_NO)
        truth = (examples.target_NH - examples.anchor_N[:, None]) / scale
        error = truth - path
        rest = error.detach()
        each = 0.5 * error.square() + _pinball(rest + below, 0.1) + _pinball(rest - above, 0.9)
        seen = examples.observed_NH.to(each.dtype)
        return (each * seen).sum(1) / seen.sum(1).clamp(min=1.0)

    def forecast(self, outputs_NO: Tensor, examples: Examples) -> Forecast:
        """Quantiles in mg/dL, within the range that sensors report (1 … 1000)."""
        path, below, above = self._parts(outputs_NO.double())
        scale = _scale(path)
        anchor = examples.anchor_N.double()[:, None]
        middle = anchor + path * scale
        low, high = middle - below * scale, middle + above * scale
        return Forecast(
            low_NH=_numpy(low.clamp(1.0, 1000.0)),
            middle_NH=_numpy(middle.clamp(1.0, 1000.0)),
            high_NH=_numpy(high.clamp(1.0, 1000.0)),
            target_NH=_numpy(examples.target_NH.double()),
            observed_NH=examples.observed_NH.cpu().numpy(),
            anchor_N=_numpy(examples.anchor_N.double()),
            patient_N=examples.patient_N.cpu().numpy(),
            time_us_N=examples.time_us_N.cpu().numpy(),
            patients=examples.patients,
        )

    def rest(self, outputs_NO: Tensor, examples: Examples) -> Tensor:
        """Target minus path in units of `CHANGE_MG_DL`, N × H; meaningless where not observed."""
        path, _, _ = self._parts(outputs_NO)
        return (examples.target_NH - examples.anchor_N[:, None]) / _scale(outputs_NO) - path

    def spreads(self, outputs_NO: Tensor) -> Tensor:
        """Distance of the 10 % and the 90 % quantile from the path, N × 2 × H, same units."""
        _, below, above = self._parts(outputs_NO)
        return torch.stack([below, above], dim=1)

    def moved(self, outputs_NO: Tensor, path_NH: Tensor, log_spread_N2H: Tensor) -> Tensor:
        """Outputs whose path is higher by `path` and whose spreads are wider by exp(`log_spread`)."""
        h = len(HORIZONS_MIN)
        wider = log_spread_N2H.flatten(1).expand(len(outputs_NO), -1)
        return torch.cat([outputs_NO[:, :h] + path_NH, outputs_NO[:, h:] + wider], dim=1)

    def metrics(self) -> tuple[Metric, ...]:
        """Errors, calibration, Clarke zones, alarms, time in range."""
        return glucose_metrics(
            horizons_min=HORIZONS_MIN,
            low_mg_dl=self.low_mg_dl,
            alarm_mg_dl=self.alarm_mg_dl,
            stride_min=self.stride_min,
        )

    def _parts(self, outputs_NO: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Path and the two spreads (positive), in units of `CHANGE_MG_DL`."""
        h = len(HORIZONS_MIN)
        spread = outputs_NO[:, h:].clamp(-5.0, 3.0).exp()
        return outputs_NO[:, :h], spread[:, :h], spread[:, h:]


def _meals(carbohydrates: Track, energy: Track) -> Track:
    """Carbohydrates (g); of patients who have none but have energy (kcal), half of it as carbohydrates.

    A public rule of thumb (45-60 % of energy, EFSA 2010, doi 10.2903/j.efsa.2010.1462; 4 kcal/g).
    """
    instead = ~np.isin(energy.patient_R, carbohydrates.patient_R)
    key_R = np.concatenate([carbohydrates.key_R, energy.key_R[instead]])
    order = np.argsort(key_R, kind="stable")
    names = ("patient_R", "time_us_R", "value_R")
    joined = {
        name: np.concatenate([getattr(carbohydrates, name), getattr(energy, name)[instead]])[order]
        for name in names
    }
    joined["value_R"] = np.where(
        np.isin(joined["patient_R"], carbohydrates.patient_R), joined["value_R"], joined["value_R"] * 0.125
    )
    return Track(key_R=key_R[order], **joined)


def _series(
    glucose: Track, others: dict[str, Track], clock: Clock, patient_N: np.ndarray, now_us_N: np.ndarray
) -> np.ndarray:
    lags = STEP_MIN * np.arange(SLOTS - 1, -1, -1.0)
    edges = STEP_MIN * np.arange(SLOTS + 1.0)
    levels = levels_before(glucose, clock, patient_N, now_us_N, lags, CARRY_MIN)
    x = np.zeros((len(now_us_N), SLOTS, _CHANNELS), np.float32)
    x[:, :, _GLUCOSE], x[:, :, _MASK], x[:, :, _AGE] = levels.value, levels.known, levels.age_min
    for name, channel in (("insulin_bolus", _BOLUS), ("carbohydrates", _CARBS), ("steps", _STEPS)):
        x[:, :, channel] = sums_before(others[name], clock, patient_N, now_us_N, edges)[:, ::-1]
    # A basal rate holds until the next one is set; a day without one means that it is not known.
    for name, channel, carry_min in (("insulin_basal", _BASAL, 1440.0), ("heart_rate", _HEART, CARRY_MIN)):
        x[:, :, channel] = levels_before(others[name], clock, patient_N, now_us_N, lags, carry_min).value
    return x


def _static(
    others: dict[str, Track], clock: Clock, patient_N: np.ndarray, now_us_N: np.ndarray
) -> np.ndarray:
    day = 2.0 * math.pi * (now_us_N % 86_400_000_000) / 86_400_000_000
    clockwork = [np.sin(day), np.cos(day), np.sin(2 * day), np.cos(2 * day)]
    seen = [seen_before(others[name], clock, patient_N, now_us_N) for name in OPTIONAL_SIGNALS]
    return np.stack([*clockwork, *seen], axis=1)


def _changes(examples: Examples) -> Tensor:
    """Last value minus the value some minutes back, in 30 mg/dL, 0 where that is not known."""
    slots = [SLOTS - 1 - int(lag / STEP_MIN) for lag in LAGS_MIN]
    past = examples.series_NTC[:, slots, _GLUCOSE]
    known = examples.series_NTC[:, slots, _MASK]
    return ((examples.anchor_N[:, None] - past) / 30.0).clamp(-6.0, 6.0) * known


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


def _pinball(error: Tensor, quantile: float) -> Tensor:
    return functional.relu(error) * quantile + functional.relu(-error) * (1.0 - quantile)


def _scale(like: Tensor) -> Tensor:
    return torch.tensor(CHANGE_MG_DL, dtype=like.dtype, device=like.device)


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
