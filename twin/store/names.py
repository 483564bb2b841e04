"""Numbers for the names that recur in a store: patients, streams and words.

They are kept in memory, and what a batch adds becomes theirs only when its transaction is committed.
Streams also have the time of their latest row: a later row is certainly a new one, so only rows that come
late or again are looked up in the file.

Shapes: N rows, U distinct names.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import numpy as np
import pandas as pd

from twin.store.schema import NOBODY

if TYPE_CHECKING:
    import duckdb

NEVER: Final = np.iinfo(np.int64).min

Name = TypeVar("Name", bound=Hashable)


class Numbers(Generic[Name]):
    """Names of one kind with their numbers, counted from 0; those of the open batch may still be undone."""

    def __init__(self, known: Mapping[Name, int]) -> None:
        self._known = dict(known)
        self._names = {number: name for name, number in self._known.items()}
        self._next = 1 + max(self._known.values(), default=-1)
        self._added: dict[Name, int] = {}

    def __len__(self) -> int:
        return self._next

    def find(self, name: Name) -> int | None:
        """The name's number; None if it has none."""
        return self._known.get(name)

    def name(self, number: int) -> Name:
        """Whose number it is."""
        return self._names[number]

    def number(self, name: Name) -> int:
        """The name's number, a new one if it has none."""
        number = self._known.get(name)
        if number is None:
            number = self._known[name] = self._added[name] = self._next
            self._names[number] = name
            self._next += 1
        return number

    @property
    def added(self) -> Mapping[Name, int]:
        """What the open batch adds."""
        return self._added

    def settle(self) -> None:
        """The batch is committed: its names stay."""
        self._added = {}

    def forget(self) -> None:
        """The batch was not committed: its names go."""
        for name, number in self._added.items():
            del self._known[name], self._names[number]
        self._next -= len(self._added)
        self._added = {}


class Names:
    """What the tables patients, streams and words hold, plus what the open batch adds to them."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Reads the committed names, and the latest time of every stream."""
        patients = connection.execute("SELECT patient_id, patient FROM store.patients").fetchall()
        streams = connection.execute("SELECT patient, signal, stream FROM store.streams").fetchall()
        words = connection.execute("SELECT text, word FROM store.words").fetchall()
        self.patients: Numbers[str] = Numbers(dict(patients))
        self.streams: Numbers[tuple[int, str]] = Numbers({(row[0], row[1]): row[2] for row in streams})
        self.words: Numbers[str] = Numbers(dict(words))
        latest = connection.execute(
            "SELECT stream, max(time) AS latest FROM store.observations GROUP BY stream"
        ).fetchnumpy()
        self._latest = np.full(max(1024, 2 * len(self.streams)), NEVER, dtype=np.int64)
        self._latest[latest["stream"]] = latest["latest"]

    def patients_of(self, ids: pd.Series) -> np.ndarray:
        """Numbers of the patients (N, int32), new ones for those who are new; of "" that of nobody."""
        code_N, names = pd.factorize(ids, use_na_sentinel=False)
        number_U = [self.patients.number(str(name)) if name else NOBODY for name in names]
        return np.asarray(number_U, dtype=np.int32)[code_N]

    def streams_of(self, patient_N: np.ndarray, signals: pd.Series) -> np.ndarray:
        """Numbers of the streams (N, int32), new ones for those that are new."""
        signal_N, names = pd.factorize(signals)
        code_N, pairs = pd.factorize(patient_N.astype(np.int64) * max(len(names), 1) + signal_N)
        split_U = (divmod(int(pair), len(names)) for pair in pairs)
        number_U = [self.streams.number((patient, str(names[signal]))) for patient, signal in split_U]
        return np.asarray(number_U, dtype=np.int32)[code_N]

    def words_of(self, texts: pd.Series) -> np.ndarray:
        """Numbers of the words (N, int32), new ones for those that are new."""
        code_N, names = pd.factorize(texts, use_na_sentinel=False)
        return np.asarray([self.words.number(str(name)) for name in names], dtype=np.int32)[code_N]

    def of_streams(self, stream_N: np.ndarray) -> pd.DataFrame:
        """patient_id and signal of these streams, one row each, in their order."""
        code_N, numbers = pd.factorize(stream_N)
        pairs = [self.streams.name(int(number)) for number in numbers]
        patients = np.array([self.patients.name(patient) for patient, _ in pairs], dtype=object)
        signals = np.array([signal for _, signal in pairs], dtype=object)
        return pd.DataFrame({"patient_id": patients[code_N], "signal": signals[code_N]}, dtype="str")

    def latest_of(self, stream_N: np.ndarray) -> np.ndarray:
        """Time of each stream's latest row in microseconds (N); `NEVER` if it has none."""
        self._grow()
        return np.asarray(self._latest[stream_N])

    def settle(self, stream_N: np.ndarray, time_N: np.ndarray) -> None:
        """The batch is committed: its names stay, and its rows may be the latest of their streams."""
        self._grow()
        np.maximum.at(self._latest, stream_N, time_N)
        for numbers in (self.patients, self.streams, self.words):
            numbers.settle()

    def forget(self) -> None:
        """The batch was not committed: the names that it added go."""
        for numbers in (self.patients, self.streams, self.words):
            numbers.forget()

    def _grow(self) -> None:
        if len(self.streams) > len(self._latest):
            room = np.full(2 * len(self.streams), NEVER, dtype=np.int64)
            room[: len(self._latest)] = self._latest
            self._latest = room
