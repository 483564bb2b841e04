"""The last hours of every patient's observations, as forecasts read them.

Rows stand in columns that grow; what is older than a forecast looks back is dropped now and then. Of each
patient and signal the first and the last row stay, since forecasts ask whether there ever was one.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from twin.site import Site

_LEAST_ROWS = 4096
_HOUR_US = 3_600_000_000


class Recent:
    """Rows of (patient's row, signal's number, time, value); one of the same key replaces the one before.

    Args:
        keep_h: hours that each signal is kept.
    """

    def __init__(self, signals: tuple[str, ...], keep_h: np.ndarray) -> None:
        self._signals = np.array(signals, dtype=object)
        self._keep_us = (keep_h * _HOUR_US).astype(np.int64)
        self._stream = np.zeros(_LEAST_ROWS, np.int64)
        self._time_us = np.zeros(_LEAST_ROWS, np.int64)
        self._value = np.zeros(_LEAST_ROWS)
        self._rows = 0
        self._prune_at = _LEAST_ROWS

    def __len__(self) -> int:
        return self._rows

    def add(self, stream_N: np.ndarray, time_us_N: np.ndarray, value_N: np.ndarray) -> None:
        """Takes rows; a stream is patient's row times number of signals plus the signal's number."""
        end = self._rows + len(stream_N)
        if end > len(self._stream):
            self._grow(end)
        here = slice(self._rows, end)
        self._stream[here], self._time_us[here], self._value[here] = stream_N, time_us_N, value_N
        self._rows = end
        if end >= self._prune_at:
            self.prune()

    def keep(self, keep_h: np.ndarray) -> None:
        """Keeps signals so long from now on."""
        self._keep_us = (keep_h * _HOUR_US).astype(np.int64)

    def forget(self, row: int) -> None:
        """Drops every row of a patient."""
        size = len(self._signals)
        self._keep(self._stream[: self._rows] // size != row)

    def prune(self) -> None:
        """Drops what nobody asks for any more: older than the patient's own newest row by what is kept.

        The patient's own, so that one row with a time in the future costs nobody else a forecast.
        """
        order = self._sorted()
        stream, time_us = self._stream[order], self._time_us[order]
        change = stream[1:] != stream[:-1]
        edge = np.append(True, change) | np.append(change, True) if len(stream) else np.zeros(0, bool)
        row = stream // len(self._signals)
        newest_us = np.zeros(int(row.max(initial=-1)) + 1, np.int64)
        np.maximum.at(newest_us, row, time_us)
        young = time_us >= newest_us[row] - self._keep_us[stream % len(self._signals)]
        kept = np.zeros(self._rows, bool)
        kept[order[edge | young]] = True
        self._keep(kept)
        self._prune_at = max(_LEAST_ROWS, 2 * self._rows)

    def site(self, names: np.ndarray, now_us: int, name: str = "ward") -> Site:
        """The rows by `now` as a site, of the patients whose rows `names` names.

        Args:
            names: pseudonym of each patient's row.
        """
        size = len(self._signals)
        order = self._sorted()
        stream, time_us = self._stream[order], self._time_us[order]
        live = order[time_us <= now_us]
        stream, time_us = self._stream[live], self._time_us[live]
        patients = pd.Index(sorted(set(names[np.unique(stream // size)])), dtype="str", name="patient_id")
        frame = pd.DataFrame(
            {
                "patient_id": pd.Series(names, dtype="str").take(stream // size).array,
                "signal": pd.Series(self._signals, dtype="str").take(stream % size).array,
                "time": pd.to_datetime(time_us, unit="us", utc=True).as_unit("us"),
                "value": self._value[live],
            }
        )
        frame["source"] = frame["quality"] = ""
        return Site(name=name, observations=frame, patients=pd.DataFrame(index=patients))

    def _sorted(self) -> np.ndarray:
        """Row numbers by stream and time; of one key the row that came last."""
        rows = self._rows
        order = np.lexsort((np.arange(rows), self._time_us[:rows], self._stream[:rows]))
        stream, time_us = self._stream[order], self._time_us[order]
        last = np.ones(rows, bool)
        last[:-1] = (stream[1:] != stream[:-1]) | (time_us[1:] != time_us[:-1])
        return order[last]

    def _keep(self, kept: np.ndarray) -> None:
        count = int(kept.sum())
        for name in ("_stream", "_time_us", "_value"):
            column = getattr(self, name)
            column[:count] = column[: self._rows][kept]
        self._rows = count

    def _grow(self, least: int) -> None:
        size = max(least, 2 * len(self._stream))
        for name in ("_stream", "_time_us", "_value"):
            column = getattr(self, name)
            grown = np.zeros(size, column.dtype)
            grown[: self._rows] = column[: self._rows]
            setattr(self, name, grown)
