"""Rows on their way into a batch: what was observed, known, taken back and refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pandas as pd

from twin.connectors.feed import FACTS, OBSERVATIONS, WITHDRAWN, Batch

Observed = tuple[str, str, str, str, float, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Grows until `batch` makes a batch of it; the columns are those of `twin.connectors.feed`.

    A row that is taken back takes with it what this batch read of it before, and leaves what comes after:
    a correction is the old row taken back and the new one observed.
    """

    observed: list[Observed] = field(default_factory=list)
    facts: list[tuple[str, str, str]] = field(default_factory=list)
    taken_back: list[tuple[int, tuple[str, str, str, str, str]]] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    fixed: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.observed) + len(self.facts) + len(self.taken_back)

    def withdraw(self, row: Observed) -> None:
        """Takes back what is known of the row's patient, time and code."""
        patient, time, system, code, _, _, device = row
        self.taken_back.append((len(self.observed), (patient, time, system, code, device)))

    def clear(self) -> None:
        """Forgets everything."""
        self.observed.clear()
        self.facts.clear()
        self.taken_back.clear()
        self.rejected.clear()
        self.fixed.clear()

    def batch(self, position: str) -> Batch:
        """Everything so far; `position` is where to go on once it is committed."""
        observed = self._standing()
        observations = _texts(OBSERVATIONS, observed)
        observations["value"] = pd.Series([row[4] for row in observed], dtype="float64")
        return Batch(
            observations=observations,
            facts=_texts(FACTS, self.facts),
            withdrawn=_texts(WITHDRAWN, [row for _, row in self.taken_back]),
            rejected=dict(self.rejected),
            fixed=dict(self.fixed),
            position=position,
        )

    def _standing(self) -> list[Observed]:
        if not self.taken_back:
            return self.observed
        until = {_key(row): number for number, row in self.taken_back}  # the last one counts
        return [row for number, row in enumerate(self.observed) if until.get(_key(row), 0) <= number]


def _key(row: Sequence[object]) -> tuple[str, str, str, str]:
    patient, time, system, code = (str(entry) for entry in row[:4])
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        return patient, time, system, code
    return patient, str(moment.astimezone(UTC) if moment.tzinfo else moment), system, code


def _texts(names: Sequence[str], rows: Iterable[Sequence[object]]) -> pd.DataFrame:
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    return pd.DataFrame(
        {
            name: pd.Series(column, dtype="float64" if name == "value" and _numbers(column) else "str")
            for name, column in zip(names, columns, strict=True)
        }
    )


def _numbers(column: Sequence[object]) -> bool:
    return bool(column) and isinstance(column[0], float)
