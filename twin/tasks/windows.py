"""Looks back and forward from moments of a patient's record: all patients of a site at once.

Every function answers for many moments in one pass (binary search over one sorted key of patient
and time), so that its cost grows with the rows and the moments and not with their product.

Letters: R rows of one signal, N moments, T slots. Times are microseconds since 1970 UTC, int64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

_MARGIN_MS = 48 * 3_600_000  # no look back or forward may reach the neighbouring patient's key


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Turns patient and time into one sortable integer, unique over the patients of a site."""

    origin_us: int
    span_ms: int

    @staticmethod
    def over(time_us: np.ndarray) -> Clock:
        """The clock for records that lie within these times."""
        if len(time_us) == 0:
            return Clock(origin_us=0, span_ms=_MARGIN_MS)
        first, last = int(time_us.min()), int(time_us.max())
        return Clock(origin_us=first, span_ms=(last - first) // 1000 + 2 * _MARGIN_MS)

    def key(self, patient: np.ndarray, time_us: np.ndarray) -> np.ndarray:
        """Sortable key in milliseconds, same shape as the broadcast arguments, int64."""
        key: np.ndarray = patient.astype(np.int64) * self.span_ms + (time_us - self.origin_us) // 1000
        return key + _MARGIN_MS

    def keys(self, patient_N: np.ndarray, now_us_N: np.ndarray, ahead_us_T: np.ndarray) -> np.ndarray:
        """Keys of moments so much after some times, NT; as `key` of the sums, in whole milliseconds."""
        if (ahead_us_T % 1000).any() or (now_us_N % 1000).any():
            return self.key(patient_N[:, None], now_us_N[:, None] + ahead_us_T)
        moved: np.ndarray = self.key(patient_N, now_us_N)[:, None] + ahead_us_T // 1000
        return moved


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """One signal of all patients: rows sorted by key.

    Attributes:
        key_R: of `Clock.key`, increasing.
        patient_R: index of the patient.
        time_us_R: time.
        value_R: float64.
    """

    key_R: np.ndarray
    patient_R: np.ndarray
    time_us_R: np.ndarray
    value_R: np.ndarray


def track(observations: pd.DataFrame, signal: str, patients: pd.Index, clock: Clock) -> Track:
    """The rows of one signal, in the order of the keys; patients count as in `patients`."""
    rows = observations[observations["signal"] == signal]
    patient_R = places(rows["patient_id"], patients)
    time_us_R = microseconds(rows["time"])
    key_R = clock.key(patient_R, time_us_R)
    order = np.argsort(key_R, kind="stable")
    return Track(
        key_R=key_R[order],
        patient_R=patient_R[order],
        time_us_R=time_us_R[order],
        value_R=rows["value"].to_numpy(np.float64)[order],
    )


def places(names_R: pd.Series, patients: pd.Index) -> np.ndarray:
    """Place of each name in `patients`, int64; looked up once for each distinct name."""
    code_R, names = pd.factorize(names_R)
    found: np.ndarray = patients.get_indexer(pd.Index(names)).astype(np.int64)[code_R]
    return found


def microseconds(times: pd.Series) -> np.ndarray:
    """Times (UTC) as int64 microseconds since 1970, in whole milliseconds as the keys are."""
    naive: np.ndarray = times.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[us]")
    return naive.astype(np.int64) // 1000 * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """A level signal as it was known at moments: value (0 if not known), known, age in minutes."""

    value: np.ndarray
    known: np.ndarray
    age_min: np.ndarray


def levels_before(
    rows: Track,
    clock: Clock,
    patient_N: np.ndarray,
    now_us_N: np.ndarray,
    lags_min_T: np.ndarray,
    carry_min: float,
    *,
    holds: bool = False,
) -> Levels:
    """The signal at `now - lag`, from what was observed by `now`; arrays NT.

    Between two observations at most `carry_min` apart, both no later than `now`, the line between
    them; after the last one its value, for at most `carry_min`. A signal that `holds` (a rate that
    was set) has the last value until the next one. Age is since the last observation at or before
    the slot, and `carry_min` where nothing is known.
    """
    shape = (len(now_us_N), len(lags_min_T))
    if len(rows.key_R) == 0:
        return Levels(value=np.zeros(shape), known=np.zeros(shape, bool), age_min=np.full(shape, carry_min))
    lag_us_T = np.round(lags_min_T * 60e6).astype(np.int64)
    at_us = now_us_N[:, None] - lag_us_T
    patient = patient_N[:, None]
    right = np.searchsorted(rows.key_R, clock.keys(patient_N, now_us_N, -lag_us_T), side="right")
    left = np.maximum(right - 1, 0)
    right = np.minimum(right, len(rows.key_R) - 1)
    age_min = (at_us - rows.time_us_R[left]) / 60e6
    known = (rows.patient_R[left] == patient) & (age_min >= 0) & (age_min <= carry_min)
    gap_min = (rows.time_us_R[right] - rows.time_us_R[left]) / 60e6
    between = (
        known
        & (rows.patient_R[right] == patient)
        & (rows.time_us_R[right] <= now_us_N[:, None])
        & (gap_min > 0)
        & (gap_min <= carry_min)
    )
    share = np.where(between & (not holds), age_min / np.where(gap_min > 0, gap_min, 1.0), 0.0)
    value = rows.value_R[left] + share * (rows.value_R[right] - rows.value_R[left])
    return Levels(value=np.where(known, value, 0.0), known=known, age_min=np.where(known, age_min, carry_min))


def sums_before(
    rows: Track, clock: Clock, patient_N: np.ndarray, now_us_N: np.ndarray, edges_min: np.ndarray
) -> np.ndarray:
    """Sums of doses or counts in (now - edge[t+1], now - edge[t]], shape N × (len(edges) - 1).

    Edges increase; the first slot ends now.
    """
    if len(rows.key_R) == 0:
        return np.zeros((len(now_us_N), len(edges_min) - 1))
    edge_us_T = np.round(edges_min * 60e6).astype(np.int64)
    total = np.concatenate([[0.0], np.cumsum(rows.value_R)])
    key_NT = clock.keys(patient_N, now_us_N, -edge_us_T)
    upto: np.ndarray = total[np.searchsorted(rows.key_R, key_NT, side="right")]
    sums: np.ndarray = upto[:, :-1] - upto[:, 1:]
    return sums


def seen_before(rows: Track, clock: Clock, patient_N: np.ndarray, now_us_N: np.ndarray) -> np.ndarray:
    """Whether the patient had any row of this signal by `now`, shape N, bool."""
    if len(rows.key_R) == 0:
        return np.zeros(len(now_us_N), bool)
    before = np.searchsorted(rows.key_R, clock.key(patient_N, now_us_N), side="right")
    last = np.maximum(before - 1, 0)
    seen: np.ndarray = (before > 0) & (rows.patient_R[last] == patient_N)
    return seen


def values_after(
    rows: Track,
    clock: Clock,
    patient_N: np.ndarray,
    now_us_N: np.ndarray,
    horizons_min_H: np.ndarray,
    within_min: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The observation nearest to `now + horizon`, if one lies within `within_min` of it.

    Returns value NH (0 where none) and observed NH. Nothing is interpolated.
    """
    ahead_us_H = np.round(horizons_min_H * 60e6).astype(np.int64)
    at_us = now_us_N[:, None] + ahead_us_H
    patient = patient_N[:, None]
    right = np.searchsorted(rows.key_R, clock.keys(patient_N, now_us_N, ahead_us_H), side="left")
    left = np.maximum(right - 1, 0)
    right = np.minimum(right, len(rows.key_R) - 1)
    far_us = np.int64(2**62)
    away_left = np.where(rows.patient_R[left] == patient, np.abs(at_us - rows.time_us_R[left]), far_us)
    away_right = np.where(rows.patient_R[right] == patient, np.abs(at_us - rows.time_us_R[right]), far_us)
    nearest = np.where(away_left <= away_right, left, right)
    observed = np.minimum(away_left, away_right) <= within_min * 60e6
    return np.where(observed, rows.value_R[nearest], 0.0), observed


def moments(rows: Track, stride_min: int) -> np.ndarray:
    """Row numbers of the first observation of each patient in each stride of the clock, sorted."""
    slot_R = rows.time_us_R // (stride_min * 60_000_000)
    new = np.ones(len(slot_R), bool)
    new[1:] = (slot_R[1:] != slot_R[:-1]) | (rows.patient_R[1:] != rows.patient_R[:-1])
    return np.flatnonzero(new)


def last_rows(rows: Track) -> np.ndarray:
    """Row number of the last observation of each patient who has any, sorted."""
    if not len(rows.patient_R):
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.append(rows.patient_R[1:] != rows.patient_R[:-1], True))
