"""The file of a privacy ledger: its tables, its versions, how it is begun and opened."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final

from client import journal
from client.errors import ClientError
from client.transaction import transaction

_VERSION: Final = 2  # 1 had no journal
_WAIT_S: Final = 60.0
_TABLES: Final = (
    """CREATE TABLE plans (
    plan_hash TEXT PRIMARY KEY,
    noise_multiplier REAL NOT NULL,
    sampling_rate REAL NOT NULL,
    steps INTEGER NOT NULL,
    terms TEXT NOT NULL
) STRICT""",
    """CREATE TABLE rounds (
    plan_hash TEXT NOT NULL REFERENCES plans,
    round INTEGER NOT NULL,
    base_sha256 TEXT NOT NULL,
    steps INTEGER NOT NULL,
    payload BLOB,
    PRIMARY KEY (plan_hash, round)
) STRICT""",
)


def connected(path: Path) -> sqlite3.Connection:
    """A connection to the ledger in the file `path`, which is begun if it is not there.

    Raises:
        ClientError: ledger_unreadable, if the file is something else or of another version;
            unavailable, if the disk is full or fails.
    """
    _create(path)
    try:
        return _opened(path)
    except sqlite3.OperationalError as error:
        raise ClientError("unavailable", f"{path.name} cannot be opened now ({error}).") from error
    except sqlite3.DatabaseError as error:
        raise ClientError("ledger_unreadable", f"{path.name} is not a privacy ledger ({error}).") from error


def _create(path: Path) -> None:
    """An empty file that only this user may read, unless there is a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        # An existing file is not even opened: closing it would drop the locks of this process on it.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        with transaction(connection) as sql:
            version = sql.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and not sql.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
                for statement in (*_TABLES, journal.TABLE, f"PRAGMA user_version = {_VERSION}"):
                    sql.execute(statement)
            elif version == 1:
                for statement in (journal.TABLE, f"PRAGMA user_version = {_VERSION}"):
                    sql.execute(statement)
                journal.begin(sql)
            elif version != _VERSION:
                raise sqlite3.DatabaseError(f"expected version {_VERSION}, found {version}")
    except BaseException:
        connection.close()
        raise
    return connection
