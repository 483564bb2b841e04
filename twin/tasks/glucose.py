"""Forecast of the path of glucose over the next hour, with 10, 50 and 90 % quantiles.

From up to two hours of history: glucose and, where a patient has them, insulin, carbohydrates,
heart rate, steps and the time of day. A forecast is the last glucose value plus a path. Windows
are causal; what is carried forward has a mask and an age; targets are observed values alone.

Letters as in `twin.tasks.protocol`; O = 3 H: the path, then the two spreads.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from conf import schema
from twin.site import Site
from twin.tasks import glucose_inputs as inputs
from twin.tasks.metrics import glucose_metrics
from twin.tasks.protocol import Examples, Forecast, Metric
from twin.tasks.windows import Clock, Track, last_rows, microseconds, moments, track, values_after

HORIZONS_MIN = (15, 30, 45, 60)
TARGET_WITHIN_MIN = 2.5
# Order of magnitude of a change of glucose over each horizon (mg/dL): scales losses and outputs.
CHANGE_MG_DL = (10.0, 18.0, 24.0, 28.0)

# A path is a sum of so many fixed public shapes; below and above it there is one spread each.
PATH_SHAPES = 3
LEAST_SPREAD, MOST_SPREAD = -5.0, 3.0
"""Logarithms of the spreads' ends, in units of `CHANGE_MG_DL`."""


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
    channels: int = inputs.CHANNELS
    columns: tuple[str, ...] = field(default_factory=inputs.columns)

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
        target_NH, observed_NH = values_after(
            glucose,
            clock,
            glucose.patient_R[rows],
            glucose.time_us_R[rows],
            np.asarray(HORIZONS_MIN, float),
            TARGET_WITHIN_MIN,
        )
        keep = observed_NH.any(axis=1)
        return _windows(site, clock, glucose, rows[keep], target_NH[keep], observed_NH[keep])

    def latest(self, site: Site, now_us: int) -> Examples:
        """The window at the last glucose value of each patient who has one in the last half hour."""
        live = site.observations[microseconds(site.observations["time"]) <= now_us]
        clock = Clock.over(microseconds(live["time"]))
        glucose = track(live, "glucose", site.patients.index, clock)
        rows = last_rows(glucose)
        rows = rows[glucose.time_us_R[rows] >= now_us - round(inputs.CARRY_MIN * 60e6)]
        none_NH = np.zeros((len(rows), len(HORIZONS_MIN)))
        return _windows(replace(site, observations=live), clock, glucose, rows, none_NH, none_NH > 0)

    def sequence(self, examples: Examples) -> Tensor:
        """Channels over time, oldest first, at order one; 0 where nothing is known."""
        return inputs.sequence(examples.series_NTC, examples.static_NS)

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

    def loss_gradient(self, outputs_NO: Tensor, examples: Examples) -> Tensor:
        """Of the path its error, of a spread the slope of its pinball loss; at its end it moves no more."""
        path, below, above = self._parts(outputs_NO)
        rest = (examples.target_NH - examples.anchor_N[:, None]) / _scale(outputs_NO) - path
        seen = examples.observed_NH.to(rest.dtype)
        share = seen / seen.sum(1, keepdim=True).clamp(min=1.0)
        slopes = (
            -rest,
            below * _pinball_slope(rest + below, 0.1),
            -above * _pinball_slope(rest - above, 0.9),
        )
        change_NO = torch.cat([slope * share for slope in slopes], dim=1)
        spread = outputs_NO[:, len(HORIZONS_MIN) :]
        change_NO[:, len(HORIZONS_MIN) :] *= (spread >= LEAST_SPREAD) & (spread <= MOST_SPREAD)
        return change_NO

    def forecast(self, outputs_NO: Tensor, examples: Examples) -> Forecast:
        """Quantiles in mg/dL, within the range that sensors report (1 … 1000)."""
        path, below, above = self._parts(outputs_NO.double())
        scale = _scale(path)
        anchor = examples.anchor_N.double()[:, None]
        middle = anchor + path * scale
        low, high = middle - below * scale, middle + above * scale
        return Forecast.of(
            examples,
            low_NH=_numpy(low.clamp(1.0, 1000.0)),
            middle_NH=_numpy(middle.clamp(1.0, 1000.0)),
            high_NH=_numpy(high.clamp(1.0, 1000.0)),
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
        spread = outputs_NO[:, h:].clamp(LEAST_SPREAD, MOST_SPREAD).exp()
        return outputs_NO[:, :h], spread[:, :h], spread[:, h:]


def _windows(
    site: Site,
    clock: Clock,
    glucose: Track,
    rows: np.ndarray,
    target_NH: np.ndarray,
    observed_NH: np.ndarray,
) -> Examples:
    """The windows at some rows of the glucose track, with their targets."""
    patients = site.patients.index
    patient_N, now_us_N = glucose.patient_R[rows], glucose.time_us_R[rows]
    others = {s: track(site.observations, s, patients, clock) for s in inputs.OPTIONAL_SIGNALS}
    energy = track(site.observations, "energy_intake", patients, clock)
    others["carbohydrates"] = inputs.meals(others["carbohydrates"], energy)
    series_NTC = _float(inputs.series(glucose, others, clock, patient_N, now_us_N))
    static_NS = _float(inputs.static(others, clock, patient_N, now_us_N))
    anchor_N = _float(glucose.value_R[rows])
    return Examples(
        series_NTC=series_NTC,
        static_NS=static_NS,
        table_NF=inputs.tabulate(series_NTC, static_NS, anchor_N),
        anchor_N=anchor_N,
        target_NH=_float(target_NH),
        observed_NH=torch.from_numpy(observed_NH),
        patient_N=torch.from_numpy(patient_N),
        time_us_N=torch.from_numpy(now_us_N),
        patients=tuple(str(p) for p in patients),
    )


def _pinball(error: Tensor, quantile: float) -> Tensor:
    return functional.relu(error) * quantile + functional.relu(-error) * (1.0 - quantile)


def _pinball_slope(error: Tensor, quantile: float) -> Tensor:
    return (error > 0).to(error.dtype) * quantile - (error < 0).to(error.dtype) * (1.0 - quantile)


def _scale(like: Tensor) -> Tensor:
    return torch.tensor(CHANGE_MG_DL, dtype=like.dtype, device=like.device)


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
