"""The store's tables, their version, and how a file of an older version is brought up to this one.

Names are stored once and numbered: a patient, a stream (one signal of one patient), a word (a source, a
mark of quality, a feed). An observation is then five numbers, and is told apart by (stream, time, source).
Rows lie in the order in which they came until the file is rewritten, which sorts them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twin.store.errors import StoreError

if TYPE_CHECKING:
    import duckdb

VERSION: Final = 1
NOBODY: Final = -1
"""The number of no patient: what belongs to the whole site."""

TABLES: Final = {
    "settings": "name VARCHAR PRIMARY KEY, value VARCHAR NOT NULL",
    "positions": "feed VARCHAR PRIMARY KEY, position VARCHAR NOT NULL",
    "patients": "patient INTEGER NOT NULL, patient_id VARCHAR NOT NULL",
    "streams": "stream INTEGER NOT NULL, patient INTEGER NOT NULL, signal VARCHAR NOT NULL",
    "words": "word INTEGER NOT NULL, text VARCHAR NOT NULL",
    "observations": "stream INTEGER NOT NULL, time BIGINT NOT NULL, value DOUBLE NOT NULL,"
    " source INTEGER NOT NULL, quality INTEGER NOT NULL",
    "facts": "patient INTEGER NOT NULL, name VARCHAR NOT NULL, value VARCHAR NOT NULL",
    "counts": "feed VARCHAR NOT NULL, patient INTEGER NOT NULL, signal VARCHAR NOT NULL,"
    " fate VARCHAR NOT NULL, reason VARCHAR NOT NULL, rows BIGINT NOT NULL",
    "quarantine": "row BIGINT NOT NULL, feed VARCHAR NOT NULL, patient INTEGER NOT NULL, time VARCHAR,"
    " system VARCHAR, code VARCHAR, value VARCHAR, unit VARCHAR, device VARCHAR, reason VARCHAR",
    "consents": "patient INTEGER NOT NULL, research BOOLEAN NOT NULL, since BIGINT NOT NULL",
    "models": "patient INTEGER NOT NULL, name VARCHAR NOT NULL, data BLOB NOT NULL",
    "erased": "digest VARCHAR NOT NULL",
}

OF_PATIENTS: Final = (
    "streams", "facts", "counts", "quarantine", "consents", "models", "patients",
)  # fmt: skip
"""Tables with a column `patient`, besides observations, which have it through their stream."""

_MIGRATIONS: Final[dict[int, tuple[str, ...]]] = {}
"""Statements that turn a file of the version before into one of this version, by version."""


def create(connection: duckdb.DuckDBPyConnection, database: str = "store") -> None:
    """Makes the tables in an empty database."""
    for table, columns in TABLES.items():
        connection.execute(f"CREATE TABLE {database}.{table} ({columns})")
    first = {"version": str(VERSION), "commits": "0", "presume_consent": "no", "rewrite": "no"}
    for name, value in first.items():
        connection.execute(f"INSERT INTO {database}.settings VALUES (?, ?)", [name, value])


def check(connection: duckdb.DuckDBPyConnection) -> None:
    """Brings an older file up to this version, whole or not at all.

    Raises:
        StoreError: the file is of a later version, or no store.
    """
    found = connection.execute(
        "SELECT count(*) FROM duckdb_tables() WHERE database_name = 'store' AND table_name = 'settings'"
    ).fetchone()
    if not found or not found[0]:
        raise StoreError("Expected a store of Twinward; the database is another one, or was never finished.")
    version = int(setting(connection, "version"))
    if version > VERSION:
        raise StoreError(
            f"Expected a store of version {VERSION} or older; it is of version {version}. Install the"
            " Twinward that wrote it, or a later one."
        )
    if version == VERSION:
        return
    connection.execute("BEGIN")
    try:
        for step in range(version + 1, VERSION + 1):
            for statement in _MIGRATIONS[step]:
                connection.execute(statement)
        put_setting(connection, "version", str(VERSION))
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def setting(connection: duckdb.DuckDBPyConnection, name: str) -> str:
    """The setting's value."""
    row = connection.execute("SELECT value FROM store.settings WHERE name = ?", [name]).fetchone()
    return str(row[0]) if row else ""


def put_setting(connection: duckdb.DuckDBPyConnection, name: str, value: str) -> None:
    """Sets the setting."""
    connection.execute(
        "INSERT INTO store.settings VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
        [name, value],
    )
