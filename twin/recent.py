"""The last rows of every stream that passed, which new rows are judged and merged with.

A stream is one signal of one patient from one source. K rows of each are kept in memory; after a restart the
store gives them back (`Ingest.warm`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from twin.dynamics import DYNAMICS
from twin.outliers import AHEAD, PAST

Stream = tuple[str, str, str]
"""patient_id, signal, source."""

_LATE_ROWS: Final = 8


def kept_rows(signal: str) -> int:
    """K: as many as verdicts look back and ahead, and a few that come late."""
    return (PAST + AHEAD if signal in DYNAMICS else 0) + _LATE_ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """The last K rows of a stream, by time.

    Attributes:
        time_us, value: of each row as it was stored.
        mark: number in `twin.outliers.MARKS`.
        since_us: when the run of its value began.
        part_us, part_value: what was read, where several rows of one moment make one; None: as stored.
        trimmed: whether the stream has earlier rows that are not here.
    """

    time_us: np.ndarray
    value: np.ndarray
    mark: np.ndarray
    since_us: np.ndarray
    part_us: np.ndarray | None = None
    part_value: np.ndarray | None = None
    trimmed: bool = False

    @property
    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """(time, value) of what was read."""
        if self.part_us is None or self.part_value is None:
            return self.time_us, self.value
        return self.part_us, self.part_value

    def without(self, times_us: set[int]) -> Recent:
        """The rows of other times."""
        here = np.array([int(time) not in times_us for time in self.time_us], dtype=bool)
        part_us, part_value = self.parts
        there = np.array([int(time) not in times_us for time in part_us], dtype=bool)
        return Recent(
            time_us=self.time_us[here],
            value=self.value[here],
            mark=self.mark[here],
            since_us=self.since_us[here],
            part_us=part_us[there],
            part_value=part_value[there],
            trimmed=self.trimmed,
        )


NOTHING: Final = Recent(
    time_us=np.zeros(0, dtype=np.int64),
    value=np.zeros(0),
    mark=np.zeros(0, dtype=np.int8),
    since_us=np.zeros(0, dtype=np.int64),
)
