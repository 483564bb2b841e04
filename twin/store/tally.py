"""What became of a batch's rows, by patient, signal, fate and reason, while the store looks at them."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from twin.ingested import COUNTS

Fate = tuple[str, str | np.ndarray]

KEPT: Final = ("kept", "")
DUPLICATE: Final = ("dropped", "duplicate")
REPLACED: Final = ("dropped", "replaced by a correction")
CORRECTED: Final = ("fixed", "corrected")
REMOVED: Final = ("withdrawn", "taken back by its source")
ERASED: Final = ("dropped", "patient erased")


class Tally:
    """The counts that a batch brought, with what the store found out about its rows."""

    def __init__(self, counts: pd.DataFrame) -> None:
        self._frames = [counts] if len(counts) else []

    def add(self, rows: pd.DataFrame, fate: Fate, sign: int = 1) -> None:
        """Counts `sign` for each of the rows (columns patient_id, signal)."""
        if len(rows):
            one = rows[["patient_id", "signal"]].assign(fate=fate[0], reason=fate[1], rows=sign)
            self._frames.append(one.groupby(list(COUNTS[:4]))["rows"].sum().reset_index())

    def move(self, rows: pd.DataFrame, before: Fate, after: Fate) -> None:
        """One fewer of `before` and one more of `after` for each of the rows."""
        self.add(rows, before, -1)
        self.add(rows, after)

    def frame(self) -> pd.DataFrame:
        """All of them: columns `COUNTS`."""
        if not self._frames:
            return pd.DataFrame({name: [] for name in COUNTS})
        return self._frames[0] if len(self._frames) == 1 else pd.concat(self._frames, ignore_index=True)
