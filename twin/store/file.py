"""One open store file: transactions, snapshots, writing it anew, closing. What is in it, it does not know.

One thread writes at a time; readers see the last commit and wait for nobody, except while the file is
replaced. A commit is durable, and counted in the anchor, before it is acknowledged.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from twin.store import rewriting, schema
from twin.store.anchor import Anchor
from twin.store.engine import attach, connect, guarded
from twin.store.errors import StoreError
from twin.store.gate import Gate, ProcessLock
from twin.store.making import beside
from twin.store.names import Names

if TYPE_CHECKING:
    import duckdb


class StoreFile:
    """The file, open; `names` are what its committed rows are numbered by."""

    def __init__(self, path: Path, key: bytes, *, memory: str, accept_loss: bool) -> None:
        """Opens the file: see `twin.store.Store.open`."""
        if not path.is_file():
            raise StoreError(f"Expected a store at {path}; there is none.")
        self._path, self._key, self._process = path, key, os.getpid()
        self._gate, self.writing, self._closed = Gate(), threading.RLock(), False
        with ExitStack() as stack:
            stack.callback(ProcessLock(beside(path, "lock")).release)
            shutil.rmtree(beside(path, "tmp"), ignore_errors=True)
            rewriting.remove(beside(path, "new"))
            self._connection = connect(beside(path, "tmp"), memory=memory)
            stack.callback(self._connection.close)
            self._anchor = Anchor(beside(path, "commits"))
            stack.callback(self._anchor.close)
            with guarded("opening"):
                attach(self._connection, path, key, "store")
                schema.check(self._connection)
                self._commits = self._count(accept_loss=accept_loss)
                self.names = Names(self._connection)
            self._closing = stack.pop_all()

    def close(self) -> None:
        """Writes the log into the file and gives it up; again is fine, and so is it in a fork."""
        if self._process != os.getpid() or self._closed:
            return
        with self.writing, self._gate.alone(), self._closing:
            self._closed = True
            with guarded("closing"):
                self._connection.execute("DETACH DATABASE IF EXISTS store")
            shutil.rmtree(beside(self._path, "tmp"), ignore_errors=True)

    @contextmanager
    def snapshot(self, what: str) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection that sees the last commit and nothing later.

        Args:
            what: is being done, for the text of an error.
        """
        with self._gate.shared(), guarded(what):
            self._check_open()
            cursor = self._connection.cursor()
            try:
                cursor.execute("BEGIN")
                yield cursor
            finally:
                cursor.close()

    @contextmanager
    def transaction(self, what: str) -> Iterator[duckdb.DuckDBPyConnection]:
        """What is executed within is durable at its end, and counted; or nothing of it is done."""
        with self.writing, self._gate.shared(), guarded(what):
            self._check_open()
            self._connection.execute("BEGIN")
            try:
                yield self._connection
                schema.put_setting(self._connection, "commits", str(self._commits + 1))
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            try:
                self._connection.execute("COMMIT")
                self._commits += 1
                self._anchor.write(self._commits)
            except BaseException:
                self._connection.close()  # whether it was committed is known once it is opened again
                raise

    @property
    def works(self) -> bool:
        """Whether the database still answers; after a commit that failed it does not until it is reopened."""
        try:
            with self.snapshot("asking whether it answers") as connection:
                connection.execute("SELECT count(*) FROM store.settings").fetchone()
        except StoreError:
            return False
        return True

    def rewrite(self, key: bytes | None = None) -> None:
        """Writes the file anew, under `key` if one is given, and puts it in the old one's place."""
        fresh = beside(self._path, "new")
        with self.writing, self._gate.alone(), guarded("writing the file anew"):
            self._check_open()
            rewriting.copy(self._connection, fresh, key or self._key)
            self._connection.execute("CHECKPOINT store")
            self._connection.execute("DETACH store")
            try:
                if rewriting.log_of(self._path).exists():
                    raise StoreError(
                        f"Expected the log of {self._path} to be written into it; it is left. Is the disk"
                        " full? The old file stays."
                    )
                rewriting.move(fresh, self._path)
                self._key = key or self._key
            finally:
                attach(self._connection, self._path, self._key, "store")
            self.names = Names(self._connection)

    def copy(self, path: Path) -> None:
        """Writes a whole, sorted copy under the same key to `path`, where nothing is; readers go on.

        Raises:
            StoreError: there is a file already.
        """
        if path.exists():
            raise StoreError(f"Expected no file at {path}; there is one, and it is not overwritten.")
        fresh = beside(path, "new")
        with self.writing, self._gate.shared(), guarded("writing a backup"):
            self._check_open()
            rewriting.copy(self._connection, fresh, self._key)
        rewriting.move(fresh, path)

    def _check_open(self) -> None:
        if self._process != os.getpid():
            raise StoreError("Expected the process that opened the store; this is a fork of it. Use spawn.")
        if self._closed:
            raise StoreError("Expected an open store; this one is closed.")

    def _count(self, *, accept_loss: bool) -> int:
        commits, seen = int(schema.setting(self._connection, "commits")), self._anchor.read()
        if commits < seen and not accept_loss:
            raise StoreError(
                f"Expected {seen} commits in {self._path}, as many as were acknowledged; it holds {commits}."
                " Its log was cut or lost, or an older copy was put in its place. docs/store.md says how to"
                " accept that; its feeds then go on from what it holds."
            )
        self._anchor.reset(commits)
        return commits
