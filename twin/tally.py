"""What became of rows, by patient, signal, fate and reason.

Shapes: N rows of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from twin.ingested import COUNTS
from twin.site import Quality

NOBODY = -1
"""The number of a patient or signal that a row does not have."""


class Tally:
    """Counts of one cleaning. Rows are given as a frame with the numbers of their patient and signal.

    Args of the constructor:
        rows: that were read.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._noted: list[tuple[str, str, np.ndarray, np.ndarray, int]] = []
        self.aside: list[tuple[str, np.ndarray]] = []

    def drop(self, reason: str, frame: pd.DataFrame, here_N: np.ndarray) -> None:
        """Rows that go."""
        self.note("dropped", reason, frame, here_N)

    def fix(self, reason: str, frame: pd.DataFrame, here_N: np.ndarray) -> None:
        """Rows that were changed; they are counted again as what becomes of them."""
        self.note("fixed", reason, frame, here_N)

    def put_aside(self, reason: str, frame: pd.DataFrame, here_N: np.ndarray) -> None:
        """Rows that nobody understands yet; if the frame has a column `row`, which ones."""
        self.note("quarantined", reason, frame, here_N)
        if "row" in frame and here_N.any():
            self.aside.append((reason, frame["row"].to_numpy()[here_N]))

    def note(self, fate: str, reason: str, frame: pd.DataFrame, here_N: np.ndarray, each: int = 1) -> None:
        """Counts `each` for the rows."""
        if here_N.any():
            patient_N, signal_N = frame["patient"].to_numpy(), frame["signal"].to_numpy()
            self._noted.append((fate, reason, patient_N[here_N], signal_N[here_N], each))

    def quality(self, kept: int) -> Quality:
        """The counts without patients and signals."""
        return Quality(
            rows_read=self.rows,
            rows_kept=kept,
            dropped=self._sums("dropped"),
            fixed=self._sums("fixed"),
            quarantined=self._sums("quarantined"),
        )

    def counts(self, patients: Sequence[str], signals: Sequence[str]) -> pd.DataFrame:
        """Columns `COUNTS`; sums of nothing are left out.

        Args:
            patients, signals: names by number.
        """
        sums: dict[tuple[int, int, str, str], int] = {}
        for fate, reason, patient_N, signal_N, each in self._noted:
            pairs, rows = np.unique((patient_N + 1) * (len(signals) + 1) + signal_N + 1, return_counts=True)
            for pair, count in zip(pairs.tolist(), rows.tolist(), strict=True):
                patient, signal = divmod(pair, len(signals) + 1)
                key = (patient - 1, signal - 1, fate, reason.split(": ")[0])
                sums[key] = sums.get(key, 0) + each * count
        rows_of = [(*key, rows) for key, rows in sorted(sums.items()) if rows]
        table = pd.DataFrame(rows_of, columns=list(COUNTS))
        for column, names in (("patient_id", patients), ("signal", signals)):
            text = [*names, ""]
            table[column] = pd.Series([text[number] for number in table[column]], dtype="str")
        return table.astype({"fate": "str", "reason": "str", "rows": "int64"})

    def _sums(self, fate: str) -> dict[str, int]:
        counts: dict[str, int] = {}
        for noted, reason, patient_N, _, each in self._noted:
            if noted == fate:
                counts[reason] = counts.get(reason, 0) + each * len(patient_N)
        return counts
