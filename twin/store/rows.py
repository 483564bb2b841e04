"""Frames into and out of the tables of the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa

from twin.store.errors import StoreError

if TYPE_CHECKING:
    import duckdb


Rows = pd.DataFrame | dict[str, np.ndarray | pd.Series]
"""A frame, or its columns by name."""


class Registered:
    """A frame as a table of the connection, while it is needed."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, frame: Rows) -> None:
        self._connection = connection
        arrays = [pa.array(column, from_pandas=True) for _, column in frame.items()]
        self._table = pa.Table.from_arrays(arrays, names=[str(name) for name in frame])

    def __enter__(self) -> str:
        self._connection.register("given_rows", self._table)
        return "given_rows"

    def __exit__(self, *_: object) -> None:
        self._connection.unregister("given_rows")


def append(connection: duckdb.DuckDBPyConnection, table: str, rows: Rows) -> None:
    """Adds rows, whose columns are in the order of the table's."""
    if len(next(iter(rows.values())) if isinstance(rows, dict) else rows):
        with Registered(connection, rows) as name:
            connection.execute(f"INSERT INTO store.{table} SELECT * FROM {name}")


def delete(connection: duckdb.DuckDBPyConnection, table: str, id_F: np.ndarray) -> None:
    """Removes rows by their rowid."""
    if len(id_F):
        with Registered(connection, pd.DataFrame({"id": np.asarray(id_F)})) as name:
            connection.execute(f"DELETE FROM store.{table} WHERE rowid IN (SELECT id FROM {name})")


def microseconds(times: pd.Series) -> np.ndarray:
    """Microseconds since 1970 (N, int64) of times with a zone."""
    if times.empty:
        return np.zeros(0, dtype=np.int64)
    naive = times.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy()
    return np.asarray(naive.astype("datetime64[us]").astype(np.int64))


def moment(time: pd.Timestamp) -> int:
    """Microseconds since 1970 of one time.

    Raises:
        StoreError: the time has no zone.
    """
    if time.tzinfo is None:
        raise StoreError("Expected a time with a zone; got one without.")
    return int(time.tz_convert("UTC").tz_localize(None).to_datetime64().astype("datetime64[us]").astype(int))


def utc(microseconds_N: np.ndarray) -> pd.Series:
    """Times in UTC (N, datetime64[us, UTC]) of microseconds since 1970."""
    return pd.Series(microseconds_N.view("datetime64[us]")).dt.tz_localize("UTC")
