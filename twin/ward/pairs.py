"""Whether a glucose sensor agrees with blood: differences to fingersticks, since its session began.

A difference is that of the blood's value to the sensor's last reading, at most ten minutes old, in percent
of the blood's value, and below 100 mg/dL of 100 (as ISO 15197:2013 counts). One sensor's
differences scatter by some 13 % about their mean (a mean absolute difference of 10 %); how far their mean
lies from zero in its own standard errors is the measure. The last eight weigh.

Letters: N readings, P patients' rows, F fingersticks.
"""

from __future__ import annotations

import numpy as np

SENSOR, BLOOD = "glucose", "blood_glucose"
_SCATTER = 13.0
_WEIGHS, _LEAST = 8, 3
_NEAR_US = 10 * 60_000_000
_FLOOR_MG_DL = 100.0


class Pairs:
    """The last differences of each patient and their times; time 0 where there are fewer."""

    def __init__(self) -> None:
        self._off = np.zeros((0, _WEIGHS))
        self._time_us = np.zeros((0, _WEIGHS), np.int64)
        self._next = np.zeros(0, np.int64)

    def reserve(self, rows: int) -> None:
        """Makes room for so many patients."""
        more = rows - len(self._next)
        if more > 0:
            self._off = np.concatenate([self._off, np.zeros((more, _WEIGHS))])
            self._time_us = np.concatenate([self._time_us, np.zeros((more, _WEIGHS), np.int64)])
            self._next = np.concatenate([self._next, np.zeros(more, np.int64)])

    def clear(self, row: int) -> None:
        """Forgets a patient."""
        self._off[row], self._time_us[row], self._next[row] = 0.0, 0, 0

    def take(
        self,
        row_F: np.ndarray,
        time_us_F: np.ndarray,
        blood_F: np.ndarray,
        sensor: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> None:
        """Compares fingersticks, in the order of time, with the sensor's readings.

        Args:
            sensor: (rows, times, values) of the readings of this batch and the last ones before it.
        """
        row_R, time_us_R, value_R = sensor
        order = np.lexsort((time_us_R, row_R))
        row_R, time_us_R, value_R = row_R[order], time_us_R[order], value_R[order]
        for row, time_us, blood in zip(row_F.tolist(), time_us_F.tolist(), blood_F.tolist(), strict=True):
            first, last = np.searchsorted(row_R, [row, row + 1])
            at = int(np.searchsorted(time_us_R[first:last], time_us, side="right")) + int(first) - 1
            if at >= first and time_us - time_us_R[at] <= _NEAR_US:
                place = self._next[row] % _WEIGHS
                self._off[row, place] = 100.0 * (blood - value_R[at]) / max(blood, _FLOOR_MG_DL)
                self._time_us[row, place] = time_us
                self._next[row] += 1

    def drift(self, row_N: np.ndarray, session_us_N: np.ndarray) -> np.ndarray:
        """Mean difference over its standard error, of the sensor's session; NaN below three fingersticks."""
        times_NF = self._time_us[row_N]
        live_NF = (times_NF > 0) & (times_NF >= session_us_N[:, None])
        count_N = live_NF.sum(1)
        mean_N = np.where(live_NF, self._off[row_N], 0.0).sum(1) / np.maximum(count_N, 1)
        return np.where(count_N >= _LEAST, mean_N * np.sqrt(np.maximum(count_N, 1)) / _SCATTER, np.nan)
