"""Rows with a code or unit that nobody knows yet: put aside once, and given back when it is known.

The same row delivered again by the same feed is a duplicate. Rows that are given back stay here until the
batch that was made of them is committed, and leave in that transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from twin.ingested import QUARANTINE, Ingested
from twin.store.names import Names
from twin.store.rows import Registered, append
from twin.store.tally import DUPLICATE, Tally

if TYPE_CHECKING:
    import duckdb

_TEXTS: Final = QUARANTINE[1:]
_IDENTITY: Final = ["patient", *(name for name in _TEXTS if name != "reason")]


def put_aside(connection: duckdb.DuckDBPyConnection, names: Names, ingested: Ingested, tally: Tally) -> None:
    """Keeps the batch's quarantined rows that are not here yet."""
    if ingested.quarantine.empty:
        return
    given = ingested.quarantine.reset_index(drop=True)
    rows = pd.DataFrame({"patient": names.patients_of(given["patient_id"])})
    rows = rows.assign(**{name: given[name].astype("str").fillna("") for name in _TEXTS}, given=given.index)
    first = rows.drop_duplicates(_IDENTITY)
    same = " AND ".join(f"q.{name} = b.{name}" for name in _IDENTITY)
    with Registered(connection, first) as table:
        found = connection.execute(
            f"SELECT b.given FROM {table} b JOIN store.quarantine q ON q.feed = ? AND {same}", [ingested.feed]
        ).fetchnumpy()["given"]
    new = first[~first["given"].isin(found)]
    again = given.drop(index=new.index)
    before = ("quarantined", again["reason"].astype("str").fillna("").to_numpy())
    tally.move(again[["patient_id"]].assign(signal=""), before, DUPLICATE)
    start = connection.execute("SELECT coalesce(max(row), -1) + 1 FROM store.quarantine").fetchone()
    number_N = np.arange(len(new)) + (int(start[0]) if start else 0)
    append(
        connection,
        "quarantine",
        new.assign(row=number_N, feed=ingested.feed)[["row", "feed", "patient", *_TEXTS]],
    )


def leave(connection: duckdb.DuckDBPyConnection, requeued: pd.DataFrame, tally: Tally) -> None:
    """Removes rows that are being committed as something else."""
    with Registered(connection, requeued[["row"]]) as table:
        connection.execute(f"DELETE FROM store.quarantine q USING {table} b WHERE q.row = b.row")
    fate = ("quarantined", requeued["reason"].to_numpy())
    tally.add(requeued[["patient_id"]].assign(signal=""), fate, -1)


def waiting(connection: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    """Columns system, code, unit, reason, rows: what is put aside, the most frequent first."""
    return connection.execute(
        "SELECT system, code, unit, reason, count(*) AS rows FROM store.quarantine"
        " GROUP BY ALL ORDER BY rows DESC, system, code, unit, reason"
    ).df()


def following(
    connection: duckdb.DuckDBPyConnection, codes: Iterable[tuple[str, str]], *, after: int, rows: int
) -> pd.DataFrame:
    """Columns row, feed and `QUARANTINE`: at most `rows` of these (system, code) after the row `after`."""
    wanted = pd.DataFrame(list(codes), columns=["system", "code"], dtype="str")
    with Registered(connection, wanted) as table:
        return connection.execute(
            f"SELECT q.row, q.feed, coalesce(p.patient_id, '') AS patient_id, {', '.join(_TEXTS)}"
            f" FROM (SELECT * FROM store.quarantine SEMI JOIN {table} USING (system, code)"
            " WHERE row > ? ORDER BY row LIMIT ?) q"
            " LEFT JOIN store.patients p USING (patient) ORDER BY q.row",
            [after, rows],
        ).df()
