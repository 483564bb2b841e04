"""An audit log: who did what, when and why; only ever extended, and durable when `append` returns.

The records are the leaves of the tree of RFC 6962 (trust/merkle.py), in one SQLite file together
with the nodes of that tree and its head. Whoever holds an earlier head of the log can be shown, with
some hashes, that today's log begins with what they saw; a log that was rewritten cannot show it.

Group commit: threads that append at the same time share one transaction and one fsync, which is what
a record costs. Several processes may hold one log. Each transaction begins with the write lock and
compares the tree in memory with the head on disk.

What it is not: a log that its owner cannot cut. It is heads at the others that show a cut
(trust/witness.py, docs/audit.md). SQLite must not be used across a fork: open the log after it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from trust.errors import TrustError
from trust.heads import Head, SignedHead
from trust.merkle import EMPTY_ROOT, Frontier, consistency_proof, leaf_hash, peaks, root
from trust.record import Fact, Record, canonical, new_body
from trust.signing import Signer

VERSION: Final = 1
TABLES: Final = {
    "records": "CREATE TABLE records (number INTEGER PRIMARY KEY, record TEXT NOT NULL, hash BLOB NOT NULL)"
    " STRICT",
    "nodes": "CREATE TABLE nodes (place INTEGER PRIMARY KEY, hash BLOB NOT NULL) STRICT",
    "head": "CREATE TABLE head (id INTEGER PRIMARY KEY CHECK (id = 0), size INTEGER NOT NULL,"
    " root BLOB NOT NULL) STRICT",
    "heads": "CREATE TABLE heads (whose TEXT NOT NULL, peer TEXT NOT NULL, size INTEGER NOT NULL,"
    " root TEXT NOT NULL, time REAL NOT NULL, key TEXT NOT NULL, signature TEXT NOT NULL,"
    " PRIMARY KEY (whose, peer)) STRICT",
}
_HEADS: Final = "SELECT whose, peer, size, root, time, key, signature FROM heads"
_WAIT_S: Final = 60.0


@dataclass(slots=True)
class _Entry:
    """A record that waits to be committed."""

    body: dict[str, Any]
    number: int = -1
    done: bool = False
    error: BaseException | None = None


class AuditLog:
    """The log in the file `path`; threads may share it."""

    def __init__(
        self, path: str | Path, *, signer: Signer | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """Opens the log, or begins one that this user alone may read.

        Args:
            signer: signs heads; without it none are given out.
            clock: seconds since 1970.

        Raises:
            TrustError: the file is something else, or its tree does not fit its head.
        """
        self._path, self._signer, self._clock = Path(path).absolute(), signer, clock
        self._process = os.getpid()
        self._queue: list[_Entry] = []
        self._queued, self._lock = threading.Condition(), threading.RLock()
        self._committing = False
        with self._faults("opened"):
            self._db = opened(self._path, "FULL")
            self._notes = opened(self._path, "NORMAL")
            self._tree = self._load()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file; everything that was appended is on disk."""
        with self._lock:
            self._notes.close()
            self._db.close()

    @property
    def size(self) -> int:
        """How many records the log has, with those of other processes."""
        return self.head().size

    def append(self, kind: str, *, who: str, why: str = "", **facts: Fact) -> int:
        """Adds a record; on disk when this returns.

        Args:
            kind: one of trust.kinds.KINDS.
            who: a person, a member or a key; never a patient.
            why: reason in words; cut after 2,000 characters.
            facts: those that the kind may carry.

        Returns:
            The record's number, from 0.

        Raises:
            TrustError: the kind or a fact is not allowed, or the log cannot be written; then what it
                would record must not happen.
        """
        entry = _Entry(new_body(kind, who, why, facts, self._clock()))
        self._refuse_forked()  # before a lock that another thread may have held at the fork
        if self._leads(entry):
            self._commit_queue()
        if entry.error is not None:
            raise TrustError(
                f"The audit log {self._path.name} cannot be written ({entry.error}); nothing that it"
                " would record may happen."
            ) from entry.error
        return entry.number

    def head(self) -> Head:
        """What the log is now."""
        with self._lock, self._faults("read"):
            size, found = self._db.execute("SELECT size, root FROM head").fetchone()
        return Head(size=size, root=found.hex(), time=float(self._clock()))

    def signed_head(self) -> SignedHead:
        """What the log is now, with the owner's signature; raises TrustError without a signer."""
        if self._signer is None:
            raise TrustError("Expected a signing key: this log was opened without one.")
        return self.head().signed(self._signer)

    def root_at(self, size: int) -> str:
        """Root of the first `size` records; raises TrustError if there are fewer."""
        self._check_size(size)
        with self._lock, self._faults("read"):
            return root(size, self._node).hex()

    def proof(self, old_size: int, new_size: int) -> list[bytes]:
        """What shows that the log at `new_size` begins with the log at `old_size`.

        Raises:
            TrustError: not 0 <= old_size <= new_size <= size.
        """
        self._check_size(new_size)
        with self._lock, self._faults("read"):
            return consistency_proof(old_size, new_size, self._node)

    def records(self, first: int = 0, *, kinds: Collection[str] = ()) -> Iterator[Record]:
        """Records from the number `first` on; of these kinds only, where some are named."""
        chosen = f" AND json_extract(record, '$.kind') IN ({','.join('?' * len(kinds))})" if kinds else ""
        query = f"SELECT record FROM records WHERE number >= ?{chosen} ORDER BY number LIMIT 500"
        while True:
            with self._lock, self._faults("read"):
                rows = self._db.execute(query, (first, *kinds)).fetchall()
            if not rows:
                return
            found = [Record(**json.loads(row[0])) for row in rows]
            yield from found
            first = found[-1].number + 1

    def last(self, *kinds: str) -> Record | None:
        """The newest record of one of these kinds."""
        chosen = f"json_extract(record, '$.kind') IN ({','.join('?' * len(kinds))})"
        query = f"SELECT record FROM records WHERE {chosen} ORDER BY number DESC LIMIT 1"
        with self._lock, self._faults("read"):
            row = self._db.execute(query, kinds).fetchone()
        return None if row is None else Record(**json.loads(row[0]))

    def hold(self, whose: str, peer: str, signed: SignedHead) -> None:
        """Keeps the newest head of a peer's log ("peer"), or of this log that the peer holds ("own").

        What is kept may be lost in a power failure; it is told anew. trust/witness.py decides.
        """
        head = signed.head
        row = (whose, peer, head.size, head.root, head.time, signed.key, signed.signature)
        with self._lock, self._faults("written"), transaction(self._notes) as sql:
            sql.execute("INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def release(self, peer: str, *, who: str, why: str) -> int:
        """Forgets the heads exchanged with a peer, because people looked and accept its new log.

        Returns:
            How many heads were forgotten; that stands in the log as `peer_log_accepted`.
        """
        count = sum(found == peer for _, found, _ in self.all_held())
        self.append("peer_log_accepted", who=who, why=why, peer=peer, heads=count)
        with self._lock, self._faults("written"), transaction(self._notes) as sql:
            sql.execute("DELETE FROM heads WHERE peer = ?", (peer,))
        return count

    def held(self, whose: str, peer: str) -> SignedHead | None:
        """The newest such head that is kept."""
        with self._lock, self._faults("read"):
            row = self._notes.execute(f"{_HEADS} WHERE whose = ? AND peer = ?", (whose, peer)).fetchone()
        return None if row is None else signed_head(row)

    def all_held(self) -> list[tuple[str, str, SignedHead]]:
        """All heads that are kept: whose, peer, head."""
        with self._lock, self._faults("read"):
            rows = self._notes.execute(f"{_HEADS} ORDER BY whose, peer").fetchall()
        return [(row[0], row[1], signed_head(row)) for row in rows]

    def _leads(self, entry: _Entry) -> bool:
        """Queues a record; True makes the caller commit the queue, False means that it is committed."""
        with self._queued:
            self._queue.append(entry)
            while self._committing and not entry.done:
                self._queued.wait()
            leads = not entry.done
            self._committing = self._committing or leads
            return leads

    def _commit_queue(self) -> None:
        """Commits all that waits, and tells those who wait."""
        with self._queued:
            batch, self._queue = self._queue, []
        error: BaseException | None = None
        try:
            with self._lock:
                self._commit(batch)
        except BaseException as caught:
            error = caught
            if not isinstance(caught, Exception):
                raise
        finally:
            with self._queued:
                for entry in batch:  # they are in no queue any more: nobody else would tell them
                    entry.error, entry.done = error, True
                self._committing = False
                self._queued.notify_all()

    def _commit(self, batch: Sequence[_Entry]) -> None:
        with transaction(self._db) as sql:
            size, found = sql.execute("SELECT size, root FROM head").fetchone()
            if (size, found) != (self._tree.size, self._tree.root()):
                self._tree = self._load()  # another process has appended
            tree = self._tree.copy()
            rows, nodes = [], []
            for entry in batch:
                entry.number = tree.size
                text = canonical({**entry.body, "number": tree.size})
                leaf = leaf_hash(text.encode())
                rows.append((tree.size, text, leaf))
                nodes += [(place(level, index), value) for level, index, value in tree.add(leaf)]
            sql.executemany("INSERT INTO records VALUES (?, ?, ?)", rows)
            sql.executemany("INSERT INTO nodes VALUES (?, ?)", nodes)
            sql.execute("UPDATE head SET size = ?, root = ?", (tree.size, tree.root()))
        self._tree = tree

    def _load(self) -> Frontier:
        """The tree as it is on disk; raises TrustError if it does not fit the head."""
        size, found = self._db.execute("SELECT size, root FROM head").fetchone()
        tree = Frontier(size, [self._node(level, index) for level, index in peaks(size)])
        last = self._db.execute("SELECT COALESCE(MAX(number), -1) FROM records").fetchone()[0]
        if tree.root() != found or last != size - 1:
            raise TrustError(f"{self._path.name} is damaged: run `twinward audit verify {self._path}`.")
        return tree

    def _node(self, level: int, index: int) -> bytes:
        table, column = ("nodes", "place") if level else ("records", "number")
        key = place(level, index) if level else index
        row = self._db.execute(f"SELECT hash FROM {table} WHERE {column} = ?", (key,)).fetchone()
        if row is None:
            raise TrustError(f"{self._path.name} is damaged: run `twinward audit verify {self._path}`.")
        return bytes(row[0])

    def _check_size(self, size: int) -> None:
        if not 0 <= size <= (now := self.size):
            raise TrustError(f"Expected a size from 0 to {now}, which the log has; {size} came.")

    def _refuse_forked(self) -> None:
        if self._process != os.getpid():
            raise TrustError(f"{self._path.name} was open when this process was forked; open it after.")

    @contextmanager
    def _faults(self, done: str) -> Iterator[None]:
        """Turns errors of the file into ours."""
        try:
            self._refuse_forked()
            yield
        except (sqlite3.Error, OSError) as error:
            raise TrustError(f"The audit log {self._path.name} cannot be {done} ({error}).") from error


def place(level: int, index: int) -> int:
    """A number of its own for each whole subtree: its place if the tree is read from left to right."""
    return (2 * index + 1 << level) - 1


def signed_head(row: tuple[Any, ...]) -> SignedHead:
    """The head in a row of the table `heads`; raises TrustError if it is none."""
    fields = dict(zip(("size", "root", "time", "key", "signature"), row[2:], strict=True))
    return SignedHead.from_dict(fields)


def opened(path: Path, synchronous: str) -> sqlite3.Connection:
    """A connection to the file of a log, which is made if it is absent; raises sqlite3.Error."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        # An existing file is not even opened: closing it would drop this process's locks on it.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
    try:
        _check_version(connection)  # before anything is written: it may be somebody else's file
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        with transaction(connection) as sql:
            if _check_version(sql) == 0:
                for statement in TABLES.values():
                    sql.execute(statement)
                sql.execute("INSERT INTO head VALUES (0, 0, ?)", (EMPTY_ROOT,))
                sql.execute(f"PRAGMA user_version = {VERSION}")
    except BaseException:
        connection.close()
        raise
    return connection


def _check_version(sql: sqlite3.Connection) -> int:
    """The version of a log, 0 for an empty file; raises sqlite3.DatabaseError for anything else."""
    version: int = sql.execute("PRAGMA user_version").fetchone()[0]
    empty = not sql.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
    if version != VERSION and not (version == 0 and empty):
        raise sqlite3.DatabaseError(f"expected an audit log of version {VERSION}, found {version}")
    return version


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """One transaction that begins with the write lock."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk may have ended it already
            connection.execute("ROLLBACK")
        raise
