"""Alarms of hypoglycaemia, judged by events: what was warned of, how early, and how often for nothing.

An event is the onset of a stretch of observed glucose below `low_mg_dl` that lasts at least 15
minutes; it ends after 15 minutes at or above it (Danne et al. 2017, Diabetes Care 40(12):1631-1640).
The start must have been seen: the reading before, at most 30 minutes earlier, is at or above the
limit. The alarm is on at a prediction when the lowest point of the forecast's middle path lies
below `alarm_mg_dl` and the last observed value is not low already. Sensitivity, false alarms a day
and warning time together judge it, as in Harvey et al. 2012, Diabetes Technol Ther 14(8):719-727,
doi:10.1089/dia.2011.0198. Choices of our own: the hour, and that an alarm which sounded is silent
for an hour and then sounds again if it is still on, so that one which is always on is not free.

Shapes: N windows, H horizons, P patients, R readings, E events, K soundings of the alarm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from twin.tasks.protocol import Forecast

HOUR_MIN = 60.0
EVENT_MIN = 15.0
GAP_MIN = 30.0
# Times of different patients on one axis: farther apart than any record is long (in minutes).
_APART_MIN = 1e8


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmSums:
    """What the alarms of each patient add up to; every array has shape P."""

    events_P: np.ndarray
    detected_P: np.ndarray
    lead_min_P: np.ndarray
    false_alarms_P: np.ndarray
    watched_days_P: np.ndarray


class AlarmJudge:
    """Counts events and alarms of a forecast; remembers the last one, since several metrics ask for it."""

    def __init__(
        self, *, horizons_min: tuple[int, ...], low_mg_dl: float, alarm_mg_dl: float, stride_min: int
    ) -> None:
        self._horizons_min = np.asarray(horizons_min, dtype=float)
        self._low_mg_dl, self._alarm_mg_dl, self._stride_min = low_mg_dl, alarm_mg_dl, stride_min
        self._last: tuple[Forecast, AlarmSums] | None = None

    def __call__(self, forecast: Forecast) -> AlarmSums:
        """Events, alarms and watched time of each patient of the forecast."""
        if self._last is None or self._last[0] is not forecast:
            self._last = (forecast, self._judge(forecast))
        return self._last[1]

    def _judge(self, forecast: Forecast) -> AlarmSums:
        patients = len(forecast.patients)
        time_N = forecast.patient_N * _APART_MIN + _minutes(forecast)
        time_R, value_R = _readings(forecast, time_N, self._horizons_min)
        # A forecast that is not finite rings no alarm: it has warned of nothing.
        lowest_N = np.where(np.isfinite(forecast.middle_NH), forecast.middle_NH, np.inf).min(
            1, initial=np.inf
        )
        on_N = time_N[(lowest_N < self._alarm_mg_dl) & (forecast.anchor_N >= self._low_mg_dl)]
        low_R = time_R[value_R < self._low_mg_dl]
        onset_E = event_onsets(time_R, value_R, self._low_mg_dl)
        onset_E = onset_E[_count(time_N, onset_E - HOUR_MIN, onset_E) > 0]
        detected_E = _count(on_N, onset_E - HOUR_MIN, onset_E) > 0
        warned_E = onset_E[detected_E]
        lead_E = warned_E - on_N[np.searchsorted(on_N, warned_E - HOUR_MIN)]
        sounding_K = _soundings(on_N)
        seen_K = _count(time_R, sounding_K, sounding_K + HOUR_MIN, last_too=True) > 0
        false_K = seen_K & (_count(low_R, sounding_K, sounding_K + HOUR_MIN, last_too=True) == 0)
        watched_N = forecast.observed_NH.any(1)
        return AlarmSums(
            events_P=_tally(onset_E, patients),
            detected_P=_tally(warned_E, patients),
            lead_min_P=_tally(warned_E, patients, lead_E),
            false_alarms_P=_tally(sounding_K[false_K], patients),
            watched_days_P=_tally(time_N[watched_N], patients) * self._stride_min / 1440.0,
        )


def event_onsets(time_R: np.ndarray, value_R: np.ndarray, low_mg_dl: float) -> np.ndarray:
    """When each event of hypoglycaemia begins (E,), on the time axis of the readings.

    Args:
        time_R: minutes, strictly increasing; a gap of more than 30 ends whatever was going on.
        value_R: observed glucose, mg/dL.
        low_mg_dl: readings below it are low. A reading stands until the next one, or for 15
            minutes before a gap.
    """
    if not len(time_R):
        return np.empty(0)
    gap_R = np.diff(time_R) > GAP_MIN
    until_R = np.append(np.where(gap_R, time_R[:-1] + EVENT_MIN, time_R[1:]), time_R[-1] + EVENT_MIN)
    low_R = value_R < low_mg_dl
    starts_R = np.append(True, gap_R | (low_R[1:] != low_R[:-1]))
    first, last = np.flatnonzero(starts_R), np.append(np.flatnonzero(starts_R)[1:], len(time_R)) - 1
    begin, end, low = time_R[first], until_R[last], low_R[first]
    after_gap = np.append(True, gap_R)[first]
    onsets, inside = [], False
    for run in range(len(first)):
        lasting = end[run] - begin[run] >= EVENT_MIN
        inside = inside and not after_gap[run]
        if low[run] and lasting and not inside and not after_gap[run]:
            onsets.append(begin[run])
        inside = (inside or lasting) if low[run] else (inside and not lasting)
    return np.asarray(onsets, dtype=float)


def _minutes(forecast: Forecast) -> np.ndarray:
    if not len(forecast.time_us_N):
        return np.empty(0)
    return np.asarray((forecast.time_us_N - forecast.time_us_N.min()) / 60e6)


def _readings(
    forecast: Forecast, time_N: np.ndarray, horizons_min: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The observed targets as one trace: times without repetition (R,) and values (R,)."""
    time_NH = np.round(time_N[:, None] + horizons_min, 3)
    time_R, index_R = np.unique(time_NH[forecast.observed_NH], return_index=True)
    return time_R, forecast.target_NH[forecast.observed_NH][index_R]


def _soundings(on_N: np.ndarray) -> np.ndarray:
    """When an alarm sounds that is silent for an hour after it did (K,)."""
    sounded, silent_until = [], -np.inf
    for time in on_N.tolist():
        if time >= silent_until:
            sounded.append(time)
            silent_until = time + HOUR_MIN
    return np.asarray(sounded, dtype=float)


def _count(times: np.ndarray, since: np.ndarray, until: np.ndarray, last_too: bool = False) -> np.ndarray:
    """How many `times` lie in each [since, until), or in each (since, until] with `last_too`."""
    side: Literal["left", "right"] = "right" if last_too else "left"
    return np.asarray(np.searchsorted(times, until, side=side) - np.searchsorted(times, since, side=side))


def _tally(times: np.ndarray, patients: int, weights: np.ndarray | None = None) -> np.ndarray:
    """How many times, or what sum of weights, each patient has (P,)."""
    # Minutes since the first of all are not negative, so the quotient is the patient's index.
    index = (times // _APART_MIN).astype(np.int64)
    return np.bincount(index, weights=weights, minlength=patients).astype(float)
