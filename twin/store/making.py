"""A new store, or one from a backup: written beside its place, and put there whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from twin.store import rewriting, schema
from twin.store.engine import attach, connect, guarded
from twin.store.errors import StoreError
from twin.store.gate import ProcessLock

if TYPE_CHECKING:
    import duckdb


def beside(path: Path, suffix: str) -> Path:
    """The store's other file of this name."""
    return path.with_name(f"{path.name}.{suffix}")


def make(path: Path, key: bytes, *, memory: str) -> None:
    """Writes an empty store.

    Raises:
        StoreError: there is a file already, or DuckDB is not installed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _arriving(path, memory) as (connection, fresh), guarded("making a store"):
        attach(connection, fresh, key, "store")
        schema.create(connection)
        connection.execute("CHECKPOINT store")
        connection.execute("DETACH store")


def put_back(backup: Path, path: Path, key: bytes, *, memory: str) -> None:
    """Copies a backup to where the store was.

    Raises:
        StoreError: there is a file already, or the backup does not open.
    """
    if not backup.is_file():
        raise StoreError(f"Expected a backup at {backup}; there is no file.")
    with _arriving(path, memory) as (connection, fresh), guarded("reading the backup"):
        shutil.copyfile(backup, fresh)
        attach(connection, fresh, key, "store")
        schema.check(connection)
        connection.execute("DETACH store")


@contextmanager
def _arriving(path: Path, memory: str) -> Iterator[tuple[duckdb.DuckDBPyConnection, Path]]:
    """A connection and where to write; the file is in its place once the body has ended."""
    lock = ProcessLock(beside(path, "lock"))
    try:
        if path.exists():
            raise StoreError(
                f"Expected no file at {path}; there is one, and it is not overwritten. To restore a backup,"
                f" move that file away first, and only it: {path.name}.erased must stay."
            )
        fresh = beside(path, "new")
        rewriting.remove(fresh)
        connection = connect(beside(path, "tmp"), memory=memory)
        try:
            yield connection, fresh
        finally:
            connection.close()
        rewriting.seal(fresh)
        rewriting.move(fresh, path)
    finally:
        lock.release()
