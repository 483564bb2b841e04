"""Figures of a warning of what has not begun yet: who is low already needs no forecast.

Counted are windows whose last value is at or above the threshold ("watched"). An event is a run of
watched windows of one patient, at most two strides apart, whose label is 1; the last of them plus one
stride is its beginning. It was warned of if an alarm was on at any of them. An alarm is on above a level
of the probability, and rings at most once in a block of the clock as long as the horizon; it is false if
no watched window of its block has label 1. The level is the lowest at which all patients of the forecast
together have at most the given number of false alarms per watched day. It is found on the very windows
that it is judged on, as the points of a ROC curve are: it compares models, it promises no rate elsewhere.

Shapes: N windows, W watched windows, K blocks, E events, P patients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from twin.tasks.metrics.binary import rankings
from twin.tasks.metrics.ratio import Ratio, Sums
from twin.tasks.protocol import Forecast, Metric


def onset_metrics(
    *, threshold: float, horizon_min: int, stride_min: int, false_alarms_per_day: float
) -> tuple[Metric, ...]:
    """Ranking of watched windows; warned of events, false alarms a day and warning time at a level.

    Args:
        threshold: a last value below it is no longer watched.
        horizon_min: of the forecast.
        stride_min: minutes between two predictions.
        false_alarms_per_day: that are allowed.
    """
    judge = OnsetJudge(
        threshold=threshold,
        horizon_min=horizon_min,
        stride_min=stride_min,
        false_alarms_per_day=false_alarms_per_day,
    )
    return (
        *rankings("_onset", judge.watched),
        Ratio(name="onset_sensitivity_pct", sums=_sums(judge, "detected_P", "events_P"), scale=100.0),
        Ratio(name="onset_false_alarms_per_day", sums=_sums(judge, "false_alarms_P", "watched_days_P")),
        Ratio(name="onset_lead_time_min", sums=_sums(judge, "lead_min_P", "detected_P")),
        Ratio(name="onset_events_per_day", sums=_sums(judge, "events_P", "watched_days_P")),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OnsetSums:
    """What the warnings of each patient add up to; every array has shape P."""

    events_P: np.ndarray
    detected_P: np.ndarray
    lead_min_P: np.ndarray
    false_alarms_P: np.ndarray
    watched_days_P: np.ndarray


class OnsetJudge:
    """Counts events and alarms of a forecast; remembers the last one, since several metrics ask for it."""

    def __init__(
        self, *, threshold: float, horizon_min: int, stride_min: int, false_alarms_per_day: float
    ) -> None:
        self._threshold, self._horizon_us = threshold, horizon_min * 60_000_000
        self._stride_min, self._allowed = stride_min, false_alarms_per_day
        self._last: tuple[Forecast, OnsetSums] | None = None

    def watched(self, forecast: Forecast) -> np.ndarray:
        """Windows with a label whose last value is not low (N, bool)."""
        watched: np.ndarray = forecast.observed_NH[:, 0] & (forecast.anchor_N >= self._threshold)
        return watched

    def __call__(self, forecast: Forecast) -> OnsetSums:
        """Events, alarms and watched time of each patient of the forecast."""
        if self._last is None or self._last[0] is not forecast:
            self._last = (forecast, self._judge(forecast))
        return self._last[1]

    def _judge(self, forecast: Forecast) -> OnsetSums:
        watched = np.flatnonzero(self.watched(forecast))
        order = np.lexsort((forecast.time_us_N[watched], forecast.patient_N[watched]))
        watched = watched[order]
        patient_W, time_us_W = forecast.patient_N[watched], forecast.time_us_N[watched]
        positive_W = forecast.target_NH[watched, 0] > 0.5
        said_W = forecast.middle_NH[watched, 0]
        said_W = np.where(np.isfinite(said_W), said_W, -np.inf)  # what says nothing has warned of nothing

        highest_K, patient_K = self._blocks(patient_W, time_us_W, positive_W, said_W)
        days = len(watched) * self._stride_min / 1440.0
        level = _level(highest_K, int(self._allowed * days))
        events = _events(patient_W, time_us_W, positive_W, 2 * self._stride_min * 60_000_000)
        lead_E = _lead_min(events, time_us_W, said_W > level, self._stride_min)
        detected_E = np.isfinite(lead_E)
        patient_E = patient_W[events[0]]

        def tally(patient: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
            return np.bincount(patient, weights=weights, minlength=len(forecast.patients)).astype(float)

        return OnsetSums(
            events_P=tally(patient_E),
            detected_P=tally(patient_E[detected_E]),
            lead_min_P=tally(patient_E[detected_E], lead_E[detected_E]),
            false_alarms_P=tally(patient_K[highest_K > level]),
            watched_days_P=tally(patient_W) * self._stride_min / 1440.0,
        )

    def _blocks(
        self, patient_W: np.ndarray, time_us_W: np.ndarray, positive_W: np.ndarray, said_W: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Highest probability and patient of each block without a positive."""
        if not len(patient_W):
            return np.empty(0), np.empty(0, np.int64)
        block_W = time_us_W // self._horizon_us
        first_K = np.flatnonzero(np.append(True, (np.diff(block_W) != 0) | (np.diff(patient_W) != 0)))
        quiet_K = ~np.logical_or.reduceat(positive_W, first_K)
        return np.maximum.reduceat(said_W, first_K)[quiet_K], patient_W[first_K][quiet_K]


def _level(highest_K: np.ndarray, allowed: int) -> float:
    """The lowest level above which at most so many values lie."""
    if allowed >= len(highest_K):
        return -np.inf
    return float(np.partition(highest_K, len(highest_K) - 1 - allowed)[len(highest_K) - 1 - allowed])


def _events(
    patient_W: np.ndarray, time_us_W: np.ndarray, positive_W: np.ndarray, apart_us: int
) -> tuple[np.ndarray, np.ndarray]:
    """First and last window of each event (E, E)."""
    if not len(patient_W):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    joined_W = np.append(False, (np.diff(patient_W) == 0) & (np.diff(time_us_W) <= apart_us))
    before_W = np.append(False, positive_W[:-1])
    starts_W = positive_W & ~(joined_W & before_W)
    goes_on_W = np.append(joined_W[1:] & positive_W[1:], False)
    return np.flatnonzero(starts_W), np.flatnonzero(positive_W & ~goes_on_W)


def _lead_min(
    events: tuple[np.ndarray, np.ndarray], time_us_W: np.ndarray, on_W: np.ndarray, stride_min: int
) -> np.ndarray:
    """Minutes from the first alarm of each event to its beginning, NaN without an alarm (E,)."""
    first_E, last_E = events
    on = np.append(np.flatnonzero(on_W), len(on_W))
    alarm_E = on[np.searchsorted(on, first_E)]
    found_E = alarm_E <= last_E
    alarm_E = np.where(found_E, alarm_E, last_E)
    lead_E = (time_us_W[last_E] - time_us_W[alarm_E]) / 60e6 + stride_min
    return np.where(found_E, lead_E, np.nan)


def _sums(judge: OnsetJudge, above: str, below: str) -> Callable[[Forecast], Sums]:
    def sums(forecast: Forecast) -> Sums:
        figures = judge(forecast)
        return getattr(figures, above), getattr(figures, below)

    return sums
