"""What is known of every patient and signal at this moment, as arrays that each reading updates.

A stream is one signal of one patient; its number is the patient's row times the number of signals plus the
signal's. Readings of one stream must come in the order of time: what comes late is counted and changes no
estimate. Rows that cleaning marked as suspect change none either; they are counted as well.

Letters: N readings, P patients' rows, S signals, Z streams (P × S), B blocks of the day.
"""

from __future__ import annotations

import numpy as np

from twin.ward import norm
from twin.ward.dynamics import Public
from twin.ward.filter import Beliefs, Dynamics, ahead, begin, seen

_MIN_US = 60_000_000
# Readings over which the spread of surprises is averaged: of now, and of the stream's own past.
_NOISE_NOW, _NOISE_PAST = 12.0, 600.0
_SURPRISE_LIMIT = 25.0
# The share of time without readings is that of about a day.
_MISSING_MEMORY_MIN = 1440.0
# A reading stands for so many of the stream's own steps.
_COVERED_STEPS = 1.6
# A new sensor warms up for an hour or more (Dexcom G5: two hours; FreeStyle Libre: one hour).
_NEW_SENSOR_GAP_MIN = 60.0
# A compression low falls and returns faster than glucose does, within some twenty minutes to an hour or two.
_SUDDEN, _PRESSED_MIN = 4.0, 120.0
_BELIEFS = ("level", "rate", "level_var", "cross", "rate_var")
_FLOATS = (*_BELIEFS, "value", "surprise", "noise_now", "noise_past", "missing", "log_step")
_INTS = (
    "time_us",
    "count",
    "equal_since_us",
    "session_us",
    "device",
    "late",
    "suspect",
    "norm_us",
    "fell_us",
    "pressed_us",
)


class State:
    """The arrays, by name; every one has Z in front.

    Attributes:
        level, rate, level_var, cross, rate_var: as `twin.ward.filter.Beliefs`, at the last reading's time.
        value, time_us: of the last reading; time is 0 before the first. count: readings taken.
        surprise: of the last reading, standard deviations. noise_now, noise_past: mean squares of it.
        equal_since_us: since when the value is the same. missing: share of the last day without readings.
        log_step: log of the usual minutes between readings. device, session_us: which sensor, since when.
        fell_us, pressed_us: of the last sudden fall, and of the last return from one.
        late, suspect: readings that changed no estimate.
        centre, spread, hours: the norm, ZB.
    """

    def __init__(self, public: Public, rows: int = 64) -> None:
        self.public = public
        self.signals = public.signals
        self._float: dict[str, np.ndarray] = {name: np.zeros(0) for name in _FLOATS}
        self._int: dict[str, np.ndarray] = {name: np.zeros(0, np.int64) for name in _INTS}
        self.centre = np.zeros((0, norm.BLOCKS))
        self.spread, self.hours = self.centre.copy(), self.centre.copy()
        self.rows = 0
        self.reserve(rows)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._float[name] if name in self._float else self._int[name]

    def reserve(self, rows: int) -> None:
        """Makes room for so many patients, at least doubling what there is."""
        if rows <= self.rows:
            return
        more = max(rows, 2 * self.rows) - self.rows
        size = more * len(self.signals)
        for table in (self._float, self._int):
            for name, column in table.items():
                table[name] = np.concatenate([column, np.zeros(size, column.dtype)])
        blank = np.zeros((size, norm.BLOCKS))
        self.centre = np.concatenate([self.centre, blank])
        self.hours = np.concatenate([self.hours, blank])
        usual = np.tile(self.public.spread_S, more)[:, None] + blank
        self.spread = np.concatenate([self.spread, usual])
        self.rows += more

    def clear(self, row: int) -> None:
        """Forgets a patient."""
        own = slice(row * len(self.signals), (row + 1) * len(self.signals))
        for table in (self._float, self._int):
            for column in table.values():
                column[own] = 0
        self.centre[own], self.hours[own] = 0.0, 0.0
        self.spread[own] = self.public.spread_S[:, None]

    def take(
        self,
        stream_N: np.ndarray,
        time_us_N: np.ndarray,
        value_N: np.ndarray,
        device_N: np.ndarray,
        suspect_N: np.ndarray,
    ) -> None:
        """Updates by readings of any number of streams, each stream's in the order of its times."""
        if suspect_N.any():
            np.add.at(self._int["suspect"], stream_N[suspect_N], 1)
            good_N = ~suspect_N
            stream_N, time_us_N = stream_N[good_N], time_us_N[good_N]
            value_N, device_N = value_N[good_N], device_N[good_N]
        if len(stream_N) == 1:
            self._step(stream_N, time_us_N, value_N, device_N)
            return
        order = np.lexsort((time_us_N, stream_N))
        stream_N = stream_N[order]
        first_N = np.append(True, stream_N[1:] != stream_N[:-1])[: len(stream_N)]
        start_N = np.maximum.accumulate(np.where(first_N, np.arange(len(stream_N)), 0))
        turn_N = np.arange(len(stream_N)) - start_N
        by_turn = np.argsort(turn_N, kind="stable")
        ends: list[int] = np.cumsum(np.bincount(turn_N)).tolist() if len(turn_N) else []
        begin_at = 0
        for end_at in ends:
            now = by_turn[begin_at:end_at]
            rows = order[now]
            self._step(stream_N[now], time_us_N[rows], value_N[rows], device_N[rows])
            begin_at = end_at

    def beliefs(self, stream_N: np.ndarray, now_us: int | np.ndarray) -> Beliefs:
        """The estimates carried on to a moment; those of a moment before the last reading stay."""
        minutes_N = np.maximum(now_us - self["time_us"][stream_N], 0) / _MIN_US
        return ahead(self._held(stream_N), self._dynamics(stream_N), minutes_N)

    def norms(self, stream_N: np.ndarray) -> norm.Norms:
        return norm.Norms(
            centre=self.centre[stream_N], spread=self.spread[stream_N], hours=self.hours[stream_N]
        )

    def _held(self, stream_N: np.ndarray) -> Beliefs:
        return Beliefs(**{f"{name}_N": self._float[name][stream_N] for name in _BELIEFS})

    def _dynamics(self, stream_N: np.ndarray) -> Dynamics:
        return self.public.dynamics(stream_N % len(self.signals))

    def _step(
        self, stream_N: np.ndarray, time_us_N: np.ndarray, value_N: np.ndarray, device_N: np.ndarray
    ) -> None:
        """At most one reading of a stream."""
        late_N = time_us_N <= self["time_us"][stream_N]
        if late_N.any():
            self._int["late"][stream_N[late_N]] += 1
            on_N = ~late_N
            stream_N, time_us_N = stream_N[on_N], time_us_N[on_N]
            value_N, device_N = value_N[on_N], device_N[on_N]
        if not len(stream_N):
            return
        minutes_N = (time_us_N - self["time_us"][stream_N]) / _MIN_US
        new_N = self["count"][stream_N] == 0
        level_N = self.public.filtered_S[stream_N % len(self.signals)]
        self._watch(stream_N, time_us_N, value_N, device_N, minutes_N, new_N)
        self._filter(stream_N[level_N], value_N[level_N], minutes_N[level_N], new_N[level_N])
        self._falls(stream_N[level_N], time_us_N[level_N])
        self._learn(stream_N[level_N], time_us_N[level_N])
        self._int["time_us"][stream_N] = time_us_N
        self._int["count"][stream_N] += 1
        self._float["value"][stream_N] = value_N

    def _filter(
        self, stream_N: np.ndarray, value_N: np.ndarray, minutes_N: np.ndarray, new_N: np.ndarray
    ) -> None:
        dynamics = self._dynamics(stream_N)
        first = begin(value_N, dynamics)
        expected = ahead(self._held(stream_N), dynamics, np.where(new_N, 0.0, minutes_N))
        after, surprise_N = seen(expected, dynamics, value_N)
        for name in _BELIEFS:
            key = f"{name}_N"
            self._float[name][stream_N] = np.where(new_N, getattr(first, key), getattr(after, key))
        surprise_N = np.where(new_N, 0.0, surprise_N)
        square_N = np.minimum(np.square(surprise_N), _SURPRISE_LIMIT)
        self._float["surprise"][stream_N] = surprise_N
        count_N = self["count"][stream_N]
        for name, most in (("noise_now", _NOISE_NOW), ("noise_past", _NOISE_PAST)):
            old_N = self[name][stream_N]
            share_N = 1.0 / np.minimum(np.maximum(count_N, 1), most)
            self._float[name][stream_N] = np.where(new_N, 0.0, old_N + (square_N - old_N) * share_N)

    def _falls(self, stream_N: np.ndarray, time_us_N: np.ndarray) -> None:
        """A sudden fall and a sudden return soon after: a sensor that was lain upon."""
        surprise_N = self["surprise"][stream_N]
        fell_N = surprise_N < -_SUDDEN
        self._int["fell_us"][stream_N[fell_N]] = time_us_N[fell_N]
        back_N = (surprise_N > _SUDDEN) & (time_us_N - self["fell_us"][stream_N] <= _PRESSED_MIN * _MIN_US)
        self._int["pressed_us"][stream_N[back_N]] = time_us_N[back_N]

    def _learn(self, stream_N: np.ndarray, time_us_N: np.ndarray) -> None:
        """The norm learns from the estimate, of one value in five minutes at most: more say no more."""
        since_N = time_us_N - self["norm_us"][stream_N]
        due_N = since_N >= 5 * _MIN_US - _MIN_US // 2
        if not due_N.any():
            return
        stream_N, time_us_N, since_N = stream_N[due_N], time_us_N[due_N], since_N[due_N]
        fresh_N = self["norm_us"][stream_N] == 0
        step_N = self.public.step_min_S[stream_N % len(self.signals)] / 60.0
        hours_N = np.where(fresh_N, step_N, since_N / (60.0 * _MIN_US))
        learnt = norm.learn(self.norms(stream_N), norm.block_of(time_us_N), self["level"][stream_N], hours_N)
        self.centre[stream_N], self.spread[stream_N] = learnt.centre, learnt.spread
        self.hours[stream_N] = learnt.hours
        self._int["norm_us"][stream_N] = time_us_N

    def _watch(
        self,
        stream_N: np.ndarray,
        time_us_N: np.ndarray,
        value_N: np.ndarray,
        device_N: np.ndarray,
        minutes_N: np.ndarray,
        new_N: np.ndarray,
    ) -> None:
        """Steps, gaps, equal values and sensors' sessions, before the reading is taken over."""
        log_N = np.log(np.maximum(np.where(new_N, 1.0, minutes_N), 1e-3))
        second_N = self["count"][stream_N] == 1
        held_N = self["log_step"][stream_N]
        usual_N = np.where(second_N, log_N, held_N + 0.05 * np.clip(log_N - held_N, -1.0, 1.0))
        self._float["log_step"][stream_N] = np.where(new_N, 0.0, usual_N)
        covered_N = np.minimum(minutes_N, _COVERED_STEPS * np.exp(np.where(second_N, log_N, held_N)))
        kept_N = np.exp(-minutes_N / _MISSING_MEMORY_MIN)
        gap_N = 1.0 - covered_N / np.maximum(minutes_N, 1e-9)
        missing_N = self["missing"][stream_N] * kept_N + gap_N * (1.0 - kept_N)
        self._float["missing"][stream_N] = np.where(new_N, 0.0, missing_N)
        changed_N = new_N | (value_N != self["value"][stream_N])
        self._int["equal_since_us"][stream_N] = np.where(
            changed_N, time_us_N, self["equal_since_us"][stream_N]
        )
        other_N = device_N != self["device"][stream_N]
        started_N = new_N | other_N | (minutes_N >= _NEW_SENSOR_GAP_MIN)
        self._int["session_us"][stream_N] = np.where(started_N, time_us_N, self["session_us"][stream_N])
        self._int["device"][stream_N] = device_N
