"""One batch of a feed into the store, in one transaction with the feed's position.

What happens to a row, and how it is counted (docs/store.md has the table):
- a row is told apart by patient, signal, time and source. The same row with the same value, delivered
  again, is a duplicate: one fewer "kept", one more "dropped: duplicate". What is stored stays as it is,
  also its mark of quality;
- with another value, it is a correction: the later delivery holds. The row that it replaces is one fewer
  "kept" and one more "dropped: replaced by a correction"; the new one is also "fixed: corrected";
- two sources may say different things of the same moment; both are stored, and merged when they are read;
- a withdrawn row is removed if its own feed had delivered it: one fewer "kept", one more "withdrawn". A
  batch's withdrawals come before its observations;
- a row that was stored before may get another mark of quality: it is counted by the ingest;
- rows of an erased patient are dropped, under nobody's name.
"kept" therefore always counts the rows that are stored, and "marked" those of them that are suspect.

Shapes: N rows of the batch, F rows found in the store.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from twin import ingested as form
from twin.ingested import Ingested
from twin.store import quarantine
from twin.store.errors import StoreError
from twin.store.names import Names
from twin.store.rows import Registered, append, delete, microseconds
from twin.store.tally import CORRECTED, DUPLICATE, ERASED, KEPT, REMOVED, REPLACED, Tally

if TYPE_CHECKING:
    import duckdb

_KEY: Final = ["stream", "time", "source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What a commit changed.

    Attributes:
        observations: those of the batch that were new or corrected, as they were given.
        duplicates, corrected, withdrawn: numbers of rows.
    """

    observations: pd.DataFrame
    duplicates: int
    corrected: int
    withdrawn: int


def check(ingested: Ingested) -> None:
    """Refuses a batch that is not of the form that `Ingested` promises.

    Raises:
        StoreError: columns, times or values that are not as they should be; names the table and column.
    """
    frames = {
        "observations": form.OBSERVATIONS, "facts": form.FACTS, "counts": form.COUNTS,
        "quarantine": form.QUARANTINE, "withdrawn": form.WITHDRAWN, "remarked": form.REMARKED,
    }  # fmt: skip
    for name, columns in frames.items():
        missing = set(columns) - set(getattr(ingested, name).columns)
        if missing:
            raise StoreError(f"Expected the columns {columns} in {name}; missing: {sorted(missing)}.")
    for name in ("observations", "withdrawn", "remarked"):
        frame = getattr(ingested, name)
        if len(frame) and not isinstance(frame["time"].dtype, pd.DatetimeTZDtype):
            raise StoreError(f"Expected times with a zone (UTC) in {name}; got {frame['time'].dtype}.")
        if any(frame[column].hasnans for column in ("patient_id", "signal", "time")):
            raise StoreError(f"Expected a patient, a signal and a time in each row of {name}.")
    if not np.isfinite(ingested.observations["value"].to_numpy(dtype="float64")).all():
        raise StoreError("Expected finite numbers as values of observations; some are not.")


def without(ingested: Ingested, erased: set[str]) -> Ingested:
    """The batch without the rows of these patients, which are counted as dropped under nobody's name."""
    if not erased:
        return ingested

    def rest(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[~frame["patient_id"].isin(erased)]

    theirs = ingested.counts[ingested.counts["patient_id"].isin(erased)]
    rows = int(theirs.loc[theirs["fate"].isin(["kept", "dropped", "quarantined"]), "rows"].sum())
    counts = rest(ingested.counts)
    if rows:
        one = pd.DataFrame([("", "", *ERASED, rows)], columns=list(form.COUNTS))
        counts = pd.concat([counts, one], ignore_index=True)
    return replace(
        ingested,
        observations=rest(ingested.observations),
        facts=rest(ingested.facts),
        counts=counts,
        quarantine=rest(ingested.quarantine),
        withdrawn=rest(ingested.withdrawn),
        remarked=rest(ingested.remarked),
    )


class Writer:
    """The statements of one commit; the caller begins and ends the transaction.

    Args of the constructor:
        connection: of the one who writes.
        names: of the store.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, names: Names) -> None:
        self._connection = connection
        self._names = names

    def write(self, ingested: Ingested, requeued: pd.DataFrame | None) -> tuple[Committed, pd.DataFrame]:
        """Writes the batch.

        Args:
            requeued: rows of the quarantine that the batch was made of, which leave it; the feed's position
                then stays as it is.

        Returns:
            What changed, and the new rows as columns stream, time, value, source, quality.
        """
        tally = Tally(ingested.counts)
        withdrawn = self._withdraw(ingested, tally)
        batch = self._numbered(ingested.observations)
        batch, again = self._last_of_each(batch, tally)
        new, duplicates, corrected = self._against_stored(batch, tally)
        self._remark(ingested.remarked)
        self._names_of(ingested)
        columns = ("stream", "time", "value", "source", "quality")
        append(self._connection, "observations", {name: new[name] for name in columns})
        self._facts(ingested.facts)
        if requeued is not None:
            quarantine.leave(self._connection, requeued, tally)
        quarantine.put_aside(self._connection, self._names, ingested, tally)
        self._counts(tally.frame(), ingested.feed)
        self._flush_names()
        if requeued is None:
            self._connection.execute(
                "INSERT INTO store.positions VALUES (?, ?) ON CONFLICT DO UPDATE"
                " SET position = excluded.position",
                [ingested.feed, ingested.position],
            )
        committed = Committed(
            observations=ingested.observations.iloc[new["row"].to_numpy()],
            duplicates=duplicates + again,
            corrected=corrected,
            withdrawn=withdrawn,
        )
        return committed, new

    def _numbered(self, observations: pd.DataFrame) -> pd.DataFrame:
        patient_N = self._names.patients_of(observations["patient_id"])
        return pd.DataFrame(
            {
                "stream": self._names.streams_of(patient_N, observations["signal"]),
                "time": microseconds(observations["time"]),
                "value": observations["value"].to_numpy(dtype="float64"),
                "source": self._names.words_of(observations["source"]),
                "quality": self._names.words_of(observations["quality"]),
                "row": np.arange(len(observations)),
            }
        )

    def _last_of_each(self, batch: pd.DataFrame, tally: Tally) -> tuple[pd.DataFrame, int]:
        """The batch with one row per stream, time and source, and how many rows said the same again."""
        earlier_N = batch.duplicated(_KEY, keep="last").to_numpy()
        if not earlier_N.any():
            return batch, 0
        same_N = batch.duplicated([*_KEY, "value"], keep="last").to_numpy()
        self._moved(batch[same_N], DUPLICATE, tally)
        self._moved(batch[earlier_N & ~same_N], REPLACED, tally)
        return batch[~earlier_N], int(same_N.sum())

    def _against_stored(self, batch: pd.DataFrame, tally: Tally) -> tuple[pd.DataFrame, int, int]:
        """(rows to write, number of duplicates, number of corrections); what is corrected is deleted."""
        late_N = batch["time"].to_numpy() <= self._names.latest_of(batch["stream"].to_numpy())
        if not late_N.any():
            return batch, 0, 0
        late = batch[late_N]
        with Registered(self._connection, late[["stream", "time", "source", "value", "row"]]) as name:
            found = self._connection.execute(
                f"SELECT b.row, o.rowid AS id, o.value = b.value AS same, o.quality, o.stream FROM {name} b"
                " JOIN store.observations o"
                " ON o.stream = b.stream AND o.time = b.time AND o.source = b.source"
                " WHERE o.time BETWEEN ? AND ? AND o.stream BETWEEN ? AND ?",
                [int(late[column].agg(end)) for column in ("time", "stream") for end in ("min", "max")],
            ).df()
        replaced = found[~found["same"]]
        again_N = batch["row"].isin(found["row"][found["same"]]).to_numpy()
        delete(self._connection, "observations", replaced["id"].to_numpy())
        self._moved(batch[again_N], DUPLICATE, tally)
        self._moved(replaced, REPLACED, tally)
        tally.add(self._of_streams(replaced), CORRECTED)
        return batch[~again_N], int(again_N.sum()), len(replaced)

    def _withdraw(self, ingested: Ingested, tally: Tally) -> int:
        """Removes what this feed takes back; returns the number of rows that were there."""
        known = ingested.withdrawn
        if known.empty:
            return 0
        patient_N = known["patient_id"].map(self._names.patients.find).to_numpy()
        pairs = zip(patient_N, known["signal"], strict=True)
        stream_N = [self._names.streams.find((patient, signal)) for patient, signal in pairs]
        asked = pd.DataFrame({"stream": stream_N, "time": microseconds(known["time"])}).dropna()
        asked = asked.astype({"stream": "int32"}).drop_duplicates()
        with Registered(self._connection, asked) as name:
            found = self._connection.execute(
                f"SELECT o.rowid AS id, o.stream, o.quality FROM {name} b JOIN store.observations o"
                " ON o.stream = b.stream AND o.time = b.time JOIN store.words w ON w.word = o.source"
                " WHERE w.text = ? OR starts_with(w.text, ?)",
                [ingested.feed, f"{ingested.feed}/"],
            ).df()
        delete(self._connection, "observations", found["id"].to_numpy())
        self._moved(found, REMOVED, tally)
        return len(found)

    def _remark(self, remarked: pd.DataFrame) -> None:
        """Changes the marks of rows that were stored before; the ingest has counted them."""
        if remarked.empty:
            return
        marks = self._numbered(remarked.assign(value=0.0))
        with Registered(self._connection, marks[[*_KEY, "quality"]]) as name:
            self._connection.execute(
                f"UPDATE store.observations o SET quality = b.quality FROM {name} b"
                " WHERE o.stream = b.stream AND o.time = b.time AND o.source = b.source"
            )

    def _moved(self, rows: pd.DataFrame, fate: tuple[str, str], tally: Tally) -> None:
        """Counts rows (columns stream, quality) that were kept as of this fate, and no longer their marks."""
        if rows.empty:
            return
        tally.move(self._of_streams(rows), KEPT, fate)
        mark_N = rows["quality"].map(self._names.words.name).to_numpy()
        marked = rows[mark_N != ""]
        tally.add(self._of_streams(marked), ("marked", mark_N[mark_N != ""]), -1)

    def _of_streams(self, rows: pd.DataFrame) -> pd.DataFrame:
        """patient_id and signal of each row's stream."""
        return self._names.of_streams(rows["stream"].to_numpy())

    def _facts(self, facts: pd.DataFrame) -> None:
        """Keeps the last value of each patient's fact."""
        if facts.empty:
            return
        last = facts.drop_duplicates(["patient_id", "name"], keep="last")
        rows = pd.DataFrame(
            {
                "patient": self._names.patients_of(last["patient_id"]),
                "name": last["name"].astype("str").array,
                "value": last["value"].astype("str").array,
            }
        ).dropna()
        with Registered(self._connection, rows) as name:
            self._connection.execute(
                f"DELETE FROM store.facts f USING {name} b WHERE f.patient = b.patient AND f.name = b.name"
            )
            self._connection.execute(f"INSERT INTO store.facts SELECT * FROM {name}")

    def _names_of(self, ingested: Ingested) -> None:
        """Every patient of the batch has a number, also one of whom only counts are known."""
        for frame in (ingested.facts, ingested.quarantine, ingested.counts):
            self._names.patients_of(frame["patient_id"])

    def _counts(self, counts: pd.DataFrame, feed: str) -> None:
        if len(counts):
            rows: dict[str, np.ndarray | pd.Series] = {
                "feed": np.full(len(counts), feed, dtype=object),
                "patient": self._names.patients_of(counts["patient_id"]),
            }
            append(
                self._connection,
                "counts",
                rows | {name: counts[name] for name in ("signal", "fate", "reason", "rows")},
            )

    def _flush_names(self) -> None:
        names = self._names
        for table, numbers in (("patients", names.patients), ("words", names.words)):
            number, name = np.array([*numbers.added.values()]), np.array([*numbers.added], dtype=object)
            append(self._connection, table, {"number": number, "name": name})
        streams = names.streams.added
        columns: dict[str, np.ndarray | pd.Series] = {
            "stream": np.array([*streams.values()]),
            "patient": np.array([patient for patient, _ in streams]),
            "signal": np.array([signal for _, signal in streams], dtype=object),
        }
        append(self._connection, "streams", columns)
