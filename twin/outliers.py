"""Values that do not fit their own stream: spikes, shifted blocks, stuck sensors, another unit.

A verdict on a row is a function of at most `PAST` rows of its stream before it and `AHEAD` rows after it, so
it does not matter in which pieces a stream comes: a row that has just come gets the verdict that its past
allows, and the rows that follow may change it. Nothing is judged against the whole record, which a live
patient does not have, and which a patient with another norm would distort.

The noise of a stream is its own: 1.4826 times the median, over the last 24 rows, of a row's distance from the
line between its neighbours (a Hampel identifier on that distance; Hampel 1974, Pearson 2002). A row is a
candidate where it leaves the row before it by more than `floor` and eight times that noise.
- spike: the next row is back, and as suddenly; or the second or third, if it left faster than the signal can
  move (`rate_per_min`, twice `floor`, ten times the noise);
- jump: it leaves so fast and comes back as suddenly within `AHEAD`
  rows (a block of another patient, of a wrong calibration); or it has left so, and fewer than three rows
  after it have come: marked until they have. A level that stays is real and marked no more;
- flatline: exactly the same value for `flat_min`, unless it is a device's LOW or HIGH;
- unit: it leaves where the median of any site lies (`Signal.usual`) by more than a factor of four from one
  row to the next, or after a gap of up to a day by about the factor between two units of its signal,
  until it comes back there.

Deviations from a Hampel filter: nothing is replaced; the row after decides; fast real falls stay, since what
does not come back suddenly is no spike.

Shapes: N rows, sorted by stream and time; C candidates; A rows ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from twin.dynamics import DYNAMICS, Dynamics
from twin.signals import SIGNALS

MARKS: Final = ("", "spike", "jump", "flatline", "unit", "drift")
"""What `quality` says, by number."""

AHEAD: Final = 24
PAST: Final = 80
_NOISE_ROWS: Final = 24
_LEAST_ROWS: Final = 6
_SIGMAS: Final = 8.0
_JUMP_SIGMAS: Final = 10.0
_SPIKE_ROWS: Final = 3
_FACTOR: Final = 4.0
_MEMORY_US: Final = 24 * 60 * 60e6
_US_PER_MIN: Final = 60e6
_CHUNK: Final = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """Rows of many streams, sorted by stream and time.

    Attributes:
        stream_N: number of the stream, non-decreasing.
        signal_N: number of the signal.
        time_us_N: microseconds since 1970 UTC, rising within a stream.
        value_N: canonical.
        since_us_N: for the first row of a stream when the run of its value began; elsewhere not read.
        mark_N: the verdict so far, of the first row of a stream; elsewhere not read.
    """

    stream_N: np.ndarray
    signal_N: np.ndarray
    time_us_N: np.ndarray
    value_N: np.ndarray
    since_us_N: np.ndarray
    mark_N: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """Of N rows: `mark_N` (number in `MARKS`) and `since_us_N`, when the run of its value began."""

    mark_N: np.ndarray
    since_us_N: np.ndarray


def judge(rows: Streams, signals: Sequence[str]) -> Verdicts:
    """The verdict on each row.

    Args:
        signals: names by number.
    """
    mark_N = np.zeros(len(rows.value_N), dtype=np.int8)
    if not len(mark_N):
        return Verdicts(mark_N=mark_N, since_us_N=rows.since_us_N)
    table = _Table(rows, signals)
    since_us_N, flat_N = _flat(rows, table)
    mark_N[flat_N] = MARKS.index("flatline")
    spike_N, jump_N = _excursions(rows, table)
    mark_N[jump_N] = MARKS.index("jump")
    mark_N[spike_N] = MARKS.index("spike")
    mark_N[_other_unit(rows, table)] = MARKS.index("unit")
    return Verdicts(mark_N=mark_N, since_us_N=since_us_N)


class _Table:
    """What is known of each row's signal and neighbours."""

    def __init__(self, rows: Streams, signals: Sequence[str]) -> None:
        never = Dynamics(floor=np.inf, rate_per_min=np.inf, near_min=0.0)
        moves = [DYNAMICS.get(name, never) for name in signals]

        def by_row(values: Sequence[float]) -> np.ndarray:
            found: np.ndarray = np.array([*values, np.nan], dtype=np.float64)[rows.signal_N]
            return found

        self.floor_N = by_row([m.floor for m in moves])
        self.rate_N = by_row([m.rate_per_min for m in moves])
        self.near_us_N = by_row([m.near_min * _US_PER_MIN for m in moves])
        self.flat_us_N = by_row([(m.flat_min or np.inf) * _US_PER_MIN for m in moves])
        self.clip_N = np.stack([by_row([m.clip[end] for m in moves]) for end in (0, 1)])
        usual = [SIGNALS[name].usual if name in DYNAMICS else None for name in signals]
        self.usual_N = np.stack([by_row([(u or (-np.inf, np.inf))[end] for u in usual]) for end in (0, 1)])
        factors = [sorted({f for f, _ in SIGNALS[name].units.values()}) for name in signals]
        most = max((len(each) for each in factors), default=0)
        self.factors_FN = [
            by_row([(each + [1.0] * most)[place] for each in factors]) for place in range(most)
        ]
        count = len(rows.value_N)
        self.first_N = np.ones(count, dtype=bool)
        self.first_N[1:] = rows.stream_N[1:] != rows.stream_N[:-1]
        self.step_us_N = np.zeros(count)
        self.step_us_N[1:] = np.diff(rows.time_us_N)
        self.change_N = np.zeros(count)
        self.change_N[1:] = np.diff(rows.value_N)
        self.follows_N = ~self.first_N & (self.step_us_N <= self.near_us_N)
        start_N = np.flatnonzero(self.first_N)
        self.start_N = np.repeat(start_N, np.diff([*start_N, count]))
        self.end_N = np.repeat([*start_N[1:], count], np.diff([*start_N, count]))


def _flat(rows: Streams, table: _Table) -> tuple[np.ndarray, np.ndarray]:
    """(when each row's run of the same value began, whether the run is too long)."""
    count = len(rows.value_N)
    new_N = ~table.follows_N | (table.change_N != 0)
    run_N = np.cumsum(new_N) - 1
    start_R = np.flatnonzero(new_N)
    began_R = rows.time_us_N[start_R].copy()
    opens_R = table.first_N[start_R]
    began_R[opens_R] = np.minimum(began_R[opens_R], rows.since_us_N[start_R[opens_R]])
    since_us_N = began_R[run_N]
    last_N = np.append(start_R[1:], count)[run_N] - 1
    seen_N = np.minimum(last_N, np.arange(count) + AHEAD)
    clipped_N = (rows.value_N <= table.clip_N[0]) | (rows.value_N >= table.clip_N[1])
    return since_us_N, (rows.time_us_N[seen_N] - since_us_N >= table.flat_us_N) & ~clipped_N


def _other_unit(rows: Streams, table: _Table) -> np.ndarray:
    """Rows of a run outside the usual range that was entered by a leap."""
    outside_N: np.ndarray = (rows.value_N < table.usual_N[0]) | (rows.value_N > table.usual_N[1])
    if not outside_N.any():
        return outside_N
    before_N = np.append(np.nan, rows.value_N[:-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_N = rows.value_N / before_N
    leap_N = table.follows_N & ((ratio_N > _FACTOR) | (ratio_N < 1 / _FACTOR))
    today_N = ~table.first_N & (table.step_us_N <= _MEMORY_US)
    for factor_N in table.factors_FN:
        lower_N, higher_N = ratio_N * factor_N, ratio_N / factor_N
        fits_N = ((lower_N > 0.25) & (lower_N < 2)) | ((higher_N > 0.35) & (higher_N < 4))
        leap_N |= today_N & (factor_N > _FACTOR) & fits_N
    leap_N |= table.first_N & (rows.mark_N == MARKS.index("unit"))
    new_N = table.first_N | ~outside_N | np.append(True, ~outside_N[:-1])
    entered_N: np.ndarray = (leap_N & new_N)[np.maximum.accumulate(np.where(new_N, np.arange(len(new_N)), 0))]
    found: np.ndarray = outside_N & entered_N
    return found


def _noise(rows: Streams, table: _Table, at_C: np.ndarray) -> np.ndarray:
    """The stream's noise before each candidate; NaN where too few rows are known."""
    time_N, value_N, count = rows.time_us_N, rows.value_N, len(rows.value_N)
    inner_N = table.follows_N.copy()
    inner_N[:-1] &= table.follows_N[1:]
    inner_N[-1:] = False
    distance_N = np.full(count, np.nan)
    i = np.flatnonzero(inner_N)
    part = (time_N[i] - time_N[i - 1]) / (time_N[i + 1] - time_N[i - 1])
    distance_N[i] = np.abs(value_N[i] - value_N[i - 1] - part * (value_N[i + 1] - value_N[i - 1]))
    noise_C = np.full(len(at_C), np.nan)
    for start in range(0, len(at_C), _CHUNK):
        at = at_C[start : start + _CHUNK]
        back = at[:, None] - 2 - np.arange(_NOISE_ROWS)
        past = np.where(back >= table.start_N[at][:, None], distance_N[np.maximum(back, 0)], np.nan)
        known = np.sum(~np.isnan(past), axis=1)
        past.sort(axis=1)
        middle = past[np.arange(len(at)), np.maximum(known - 1, 0) // 2]
        noise_C[start : start + _CHUNK] = np.where(known >= _LEAST_ROWS, 1.4826 * middle, np.nan)
    return noise_C


def _excursions(rows: Streams, table: _Table) -> tuple[np.ndarray, np.ndarray]:
    """(rows of spikes, rows of jumps)."""
    count = len(rows.value_N)
    leave_N = table.follows_N & (np.abs(table.change_N) > table.floor_N)
    at_C = np.flatnonzero(leave_N)
    if not len(at_C):
        return np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    noise_C = _noise(rows, table, at_C)
    left_C = np.abs(table.change_N[at_C])
    floor_C = table.floor_N[at_C]
    least_C = np.where(np.isnan(noise_C), 2 * floor_C, np.maximum(floor_C, _SIGMAS * noise_C))
    fast_C = np.where(np.isnan(noise_C), 3 * floor_C, np.maximum(2 * floor_C, _JUMP_SIGMAS * noise_C))
    fast_C = np.maximum(fast_C, table.rate_N[at_C] * table.step_us_N[at_C] / _US_PER_MIN)
    back_C, known_C = _return(rows, table, at_C)
    sudden_C = _suddenness(rows, at_C, back_C)
    alone_C = (back_C == 1) & (left_C > least_C)
    several_C = (back_C > 1) & (back_C <= _SPIKE_ROWS) & (left_C > fast_C)
    spike_C = (alone_C | several_C) & (sudden_C > 0.6)
    spike_N = _between(at_C[spike_C], back_C[spike_C], count)
    founded_C = ~spike_N[at_C - 1] & ~spike_N[at_C] & (left_C > fast_C)
    block_C = founded_C & (back_C > _SPIKE_ROWS) & (sudden_C > 0.6)
    jump_N = _between(at_C[block_C], back_C[block_C], count)
    founded_C &= ~jump_N[at_C - 1]
    open_C = founded_C & (back_C == 0) & (known_C < _SPIKE_ROWS) & (at_C + known_C + 1 == table.end_N[at_C])
    jump_N |= _between(at_C[open_C], known_C[open_C] + 1, count)
    return spike_N, jump_N & ~spike_N


def _return(rows: Streams, table: _Table, at_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows until the stream is back at the level before the candidate, 0 if never; rows ahead known)."""
    back_C = np.zeros(len(at_C), dtype=np.int64)
    known_C = np.zeros(len(at_C), dtype=np.int64)
    ahead_A = np.arange(1, AHEAD + 1)
    last = len(rows.value_N) - 1
    for start in range(0, len(at_C), _CHUNK):
        at = at_C[start : start + _CHUNK]
        index_CA = np.minimum(at[:, None] + ahead_A, last)
        there_CA = (at[:, None] + ahead_A < table.end_N[at][:, None]) & table.follows_N[index_CA]
        there_CA = np.logical_and.accumulate(there_CA, axis=1)
        left = table.change_N[at][:, None]
        away_CA = (rows.value_N[index_CA] - rows.value_N[at - 1][:, None]) / left
        home_CA = there_CA & (away_CA <= 0.5)
        part = slice(start, start + _CHUNK)
        back_C[part] = np.where(home_CA.any(axis=1), home_CA.argmax(axis=1) + 1, 0)
        known_C[part] = there_CA.sum(axis=1)
        first = away_CA[np.arange(len(at)), np.maximum(back_C[part] - 1, 0)]
        # It went past where it came from: no return. Without a return the row ahead may be another stream's.
        back_C[part][home_CA.any(axis=1) & (first < -0.5)] = -1
    return back_C, known_C


def _suddenness(rows: Streams, at_C: np.ndarray, back_C: np.ndarray) -> np.ndarray:
    """The step by which it came back, as a fraction of the step by which it left."""
    home_C = at_C + np.maximum(back_C, 0)
    step_C = rows.value_N[home_C - 1] - rows.value_N[home_C]
    return np.where(back_C > 0, step_C / (rows.value_N[at_C] - rows.value_N[at_C - 1]), 0.0)


def _between(start_C: np.ndarray, length_C: np.ndarray, count: int) -> np.ndarray:
    """Rows that lie in any of the stretches."""
    edges = np.zeros(count + 1, dtype=np.int64)
    np.add.at(edges, start_C, 1)
    np.add.at(edges, start_C + length_C, -1)
    return np.cumsum(edges[:-1]) > 0
