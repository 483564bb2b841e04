"""A store written anew into another encrypted file: sorted, without what was deleted, maybe under a new key.

DuckDB keeps deleted rows in free pages until these are used again. So erasure, rotation and compaction write
what is left into a new file and put it in the old one's place with one rename: whoever is killed leaves the
old file or the new one, whole. The old file is removed; on a disk that keeps old blocks, what is left of
them is ciphertext, and unreadable once the key is rotated and the old one destroyed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from twin.store import schema
from twin.store.engine import attach
from twin.store.errors import StoreError

if TYPE_CHECKING:
    import duckdb

_AS_THEY_ARE: Final = ("positions", "patients", "facts", "quarantine", "consents", "models", "erased")


def copy(connection: duckdb.DuckDBPyConnection, path: Path, key: bytes) -> None:
    """Writes the attached store into a new file, durable and whole on return.

    Streams are numbered by patient and signal, observations sorted by stream and time, counts summed,
    words that nothing uses left out.

    Raises:
        StoreError: what was written is not as many rows as there were.
    """
    remove(path)
    attach(connection, path, key, "fresh")
    try:
        _fill(connection)
        for table in ("observations", "patients", "facts", "quarantine", "models", "consents"):
            found = connection.execute(
                f"SELECT (SELECT count(*) FROM store.{table}), (SELECT count(*) FROM fresh.{table})"
            ).fetchone()
            if not found or found[0] != found[1]:
                raise StoreError(f"Expected the rewritten store to hold all rows of {table}; it does not.")
        connection.execute("CHECKPOINT fresh")
    except BaseException:
        connection.execute("DETACH fresh")
        remove(path)
        raise
    connection.execute("DETACH fresh")
    seal(path)


def seal(path: Path) -> None:
    """Makes a detached file durable and its owner's alone.

    Raises:
        StoreError: a log lies beside it, so it is not whole.
    """
    if log_of(path).exists():
        raise StoreError(f"Expected all of {path} to be written; a log is left. Is the disk full?")
    path.chmod(0o600)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(path: Path, target: Path) -> None:
    """Puts the file in the target's place, durably."""
    path.replace(target)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file that was never finished, and its log."""
    path.unlink(missing_ok=True)
    log_of(path).unlink(missing_ok=True)


def log_of(path: Path) -> Path:
    """DuckDB's write-ahead log of a file."""
    return path.with_name(f"{path.name}.wal")


def _fill(connection: duckdb.DuckDBPyConnection) -> None:
    for table, columns in schema.TABLES.items():
        connection.execute(f"CREATE TABLE fresh.{table} ({columns})")
    for table in _AS_THEY_ARE:
        connection.execute(f"INSERT INTO fresh.{table} SELECT * FROM store.{table}")
    connection.execute(
        "INSERT INTO fresh.settings SELECT name, CASE name WHEN 'rewrite' THEN 'no' ELSE value END"
        " FROM store.settings"
    )
    connection.execute(
        "INSERT INTO fresh.streams SELECT row_number() OVER (ORDER BY p.patient_id, s.signal) - 1, s.patient,"
        " s.signal FROM store.streams s JOIN store.patients p USING (patient)"
    )
    connection.execute(
        "INSERT INTO fresh.observations SELECT n.stream, o.time, o.value, o.source, o.quality"
        " FROM store.observations o JOIN store.streams s USING (stream)"
        " JOIN fresh.streams n ON n.patient = s.patient AND n.signal = s.signal"
        " ORDER BY n.stream, o.time, o.source"
    )
    connection.execute(
        "INSERT INTO fresh.words SELECT word, text FROM store.words WHERE word IN"
        " (SELECT source FROM store.observations UNION SELECT quality FROM store.observations)"
    )
    connection.execute(
        "INSERT INTO fresh.counts SELECT feed, patient, signal, fate, reason, sum(rows) FROM store.counts"
        " GROUP BY ALL HAVING sum(rows) <> 0 ORDER BY ALL"
    )
