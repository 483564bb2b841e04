"""Which row of the ward's arrays is whose: rows are given out once, and again when a patient is forgotten."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from twin.errors import DataError


class Roster:
    """Patients and their rows. A row that was given back comes to the next patient who is new."""

    def __init__(self) -> None:
        self._row: dict[str, int] = {}
        self._free: list[int] = []
        self._used = 0
        self._names: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._row)

    def __contains__(self, patient_id: object) -> bool:
        return patient_id in self._row

    @property
    def rows(self) -> int:
        """How many rows were ever given out: arrays must be as long."""
        return self._used

    def patients(self) -> list[str]:
        """Everybody who is there, sorted."""
        return sorted(self._row)

    def row(self, patient_id: str) -> int:
        """Raises DataError for a patient whom the ward does not have."""
        try:
            return self._row[patient_id]
        except KeyError:
            raise DataError(
                "Expected a patient of whom there are observations; there are none under this pseudonym."
                " `twinward site identify` gives the pseudonym of an identifier, `twinward site quality` says"
                " what became of the rows that feeds delivered."
            ) from None

    def known(self, patients: Iterable[str]) -> np.ndarray:
        """Rows, -1 for who is not there."""
        return np.array([self._row.get(patient, -1) for patient in patients], dtype=np.int64)

    def admit(self, patient_N: pd.Series) -> np.ndarray:
        """The row of each entry of a column of pseudonyms; who is new gets one."""
        if len(patient_N) == 1:
            return np.array([self._admitted(str(patient_N.iat[0]))], dtype=np.int64)
        code_N, names = pd.factorize(patient_N)
        rows: np.ndarray = np.array([self._admitted(str(name)) for name in names], dtype=np.int64)
        return rows[code_N] if len(rows) else np.zeros(0, np.int64)

    def forget(self, patient_id: str) -> int:
        """The row that is free now."""
        row = self.row(patient_id)
        del self._row[patient_id]
        self._free.append(row)
        self._names = None
        return row

    def names(self) -> np.ndarray:
        """Pseudonym of each row, "" where a row is free; object array, not to be changed."""
        if self._names is None:
            self._names = np.full(self._used, "", dtype=object)
            for patient, row in self._row.items():
                self._names[row] = patient
        return self._names

    def _admitted(self, patient_id: str) -> int:
        row = self._row.get(patient_id)
        if row is None:
            row = self._free.pop() if self._free else self._used
            self._used = max(self._used, row + 1)
            self._row[patient_id] = row
            self._names = None
        return row
