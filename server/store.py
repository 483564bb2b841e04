"""What the coordinator keeps on disk: what was agreed, rounds, replies, models; each step one transaction.

SQLite with synchronous=FULL: when a call returns, what it wrote survives a crash of the process or
of the machine; when it is killed before, nothing of it is there. Models and updates are kept by
the SHA-256 of their canonical bytes. Nothing here is private: it is what sites released.

A round goes open → sent → collected → aggregated → committed, never back; but in a simulation, whose updates
lie in a file of their own (server/laid.py), a round of which a power cut took updates is asked about again.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from server import agreed, laid, tasks
from server.agreed import Agreed
from server.errors import ServerError
from server.laid import Laid
from server.tasks import Task, Tasks
from trust.digest import Arrays, arrays_from_bytes, sha256
from trust.packed import Packed, packed, packed_from_bytes
from trust.plan import Plan

logger = logging.getLogger(f"twinward.{__name__}")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS blob (sha256 TEXT PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS round (
    number INTEGER PRIMARY KEY, state TEXT NOT NULL, base TEXT NOT NULL REFERENCES blob,
    model TEXT REFERENCES blob, rule TEXT REFERENCES blob, total TEXT REFERENCES blob, diagnostics TEXT);
CREATE TABLE IF NOT EXISTS reply (
    round INTEGER NOT NULL REFERENCES round, site TEXT NOT NULL, sha256 TEXT NOT NULL REFERENCES blob,
    PRIMARY KEY (round, site)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refusal (
    id INTEGER PRIMARY KEY, round INTEGER NOT NULL, site TEXT NOT NULL, reason TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRow:
    """A round as it is on disk; hashes of what is not there yet are None."""

    number: int
    state: str
    base: str
    model: str | None
    rule: str | None
    total: str | None
    diagnostics: dict[str, float]


_PAGE_BYTES = 1 << 15  # a model is long: with SQLite's 4096 writing one takes five times as long
_KEPT_BYTES = 48 << 20
_READ_KEPT, _SMALL_BYTES = 6, 1 << 20
_COLLECTING = ("sent", "collected")
"""States in which the updates of a round are needed."""


class Store(Agreed):
    """The coordinator's file of one federation; one process writes at a time."""

    def __init__(self, path: Path, *, simulated: bool = False) -> None:
        """Opens the file, or begins one.

        Args:
            simulated: what was written survives the end of the process, and not of the machine. A power
                cut takes the last rounds away, whole or in part; they are computed again.

        Raises:
            ServerError: it is damaged.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # for this user alone: it holds the updates of each site
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        super().__init__(sqlite3.connect(path, isolation_level=None, timeout=30.0, check_same_thread=False))
        self._laid, self.simulated = Laid(path, self._db), simulated
        try:
            self._db.execute(f"PRAGMA page_size={_PAGE_BYTES}")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(f"PRAGMA synchronous={'NORMAL' if simulated else 'FULL'}")
            self._db.executescript(_SCHEMA + agreed.SCHEMA + tasks.SCHEMA + laid.SCHEMA)
            if simulated:
                self._forget_lost()
        except sqlite3.OperationalError:  # no room, or locked: another time it may go
            self.close()
            raise
        except sqlite3.DatabaseError as error:
            self.close()
            raise ServerError(f"Expected a coordinator's file at {path}; it is damaged ({error}).") from None
        self.tasks = Tasks(self._db, self._write)
        self._kept: dict[str, Packed] = {}
        self._kept_bytes = 0
        self._read: dict[str, bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._laid.close()
        self._db.close()

    def begin(self, offer: Plan, settings_json: str, model: Mapping[str, np.ndarray]) -> None:
        """Records what is offered to sites, under which settings, and the model that all start from."""
        with self._write() as db:
            self._fact(db, "settings", settings_json)
            self._fact(db, "offer", offer.to_json())
            self._fact(db, "start", self._put(db, model))

    def last_round(self) -> RoundRow | None:
        """The round with the greatest number, None before the first."""
        row = self._db.execute(f"{_SELECT_ROUND} ORDER BY number DESC LIMIT 1").fetchone()
        return None if row is None else _round_row(row)

    def round(self, number: int) -> RoundRow:
        """The round with this number.

        Raises:
            ServerError: there is none.
        """
        row = self._db.execute(f"{_SELECT_ROUND} WHERE number = ?", (number,)).fetchone()
        if row is None:
            raise ServerError(f"Expected round {number} in the coordinator's file; it is not there.")
        return _round_row(row)

    def rounds(self) -> tuple[RoundRow, ...]:
        """All rounds in order."""
        return tuple(_round_row(row) for row in self._db.execute(f"{_SELECT_ROUND} ORDER BY number"))

    def open_round(self, number: int, base: str, *, sent: bool = False) -> None:
        """Starts a round from the model with hash `base`; the round before must be committed.

        Args:
            sent: records at once that requests are about to go out.
        """
        last = self.last_round()
        if number != (1 if last is None else last.number + 1) or (
            last is not None and last.state != "committed"
        ):
            raise ServerError(
                f"Expected the last round to be committed and to be {number - 1}; it is {last}."
            )
        with self._write() as db:
            state = "sent" if sent else "open"
            db.execute("INSERT INTO round (number, state, base) VALUES (?, ?, ?)", (number, state, base))

    def sent(self, number: int) -> None:
        """Records that requests are about to go out."""
        with self._write() as db:
            self._advance(db, number, "open", "sent")

    def admit(self, number: int, updates: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Records updates that were admitted while the round goes on."""
        with self._write() as db:
            self._advance(db, number, "sent", "sent")
            self._replies(db, number, updates)

    def collected(self, number: int, updates: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Records the last updates that were admitted, and that no more are."""
        with self._write() as db:
            self._replies(db, number, updates)
            self._advance(db, number, "sent", "collected")

    def take(self, number: int, task: Task, update: Mapping[str, np.ndarray], at_s: float) -> None:
        """Records the update that a task of an asynchronous run brought: it counts in round `number`."""
        with self._write() as db:
            self._advance(db, number, "sent", "sent")
            self._reply(db, number, task.site, packed(update))
            tasks.take(db, task, at_s, number)

    def aggregated(
        self,
        number: int,
        *,
        model: Mapping[str, np.ndarray],
        rule: Mapping[str, np.ndarray],
        total: Mapping[str, np.ndarray] | None,
        diagnostics: Mapping[str, float],
    ) -> None:
        """Records what the round made: next model, state of the rule, running sum of the average.

        Args:
            total: None if it is that of the round before.
        """
        self._kept.clear()
        self._kept_bytes = 0
        with self._write() as db:
            hashes = [
                None if arrays is None else self._kept_put(db, arrays) for arrays in (model, rule, total)
            ]
            figures = json.dumps(dict(diagnostics), sort_keys=True)
            db.execute(
                "UPDATE round SET model = ?, rule = ?, diagnostics = ?,"
                " total = COALESCE(?, (SELECT total FROM round WHERE number = ?)) WHERE number = ?",
                (*hashes[:2], figures, hashes[2], number - 1, number),
            )
            self._advance(db, number, "collected", "aggregated")

    def committed(self, number: int) -> None:
        """Makes the round's model the one from which the next round starts."""
        with self._write() as db:
            self._advance(db, number, "aggregated", "committed")

    def finish(self, model: Mapping[str, np.ndarray]) -> str:
        """Records the final model and gives its SHA-256; the same again after a crash.

        Raises:
            ServerError: another is recorded.
        """
        with self._write() as db:
            digest, known = self._put(db, model), self.fact("final")
            if known is None:
                self._fact(db, "final", digest)
            elif known != digest:
                raise ServerError(
                    "Expected the final model that is recorded; the coordinator's file is damaged."
                )
        return digest

    def keep_cohorts(self, cohorts: Sequence[tuple[Sequence[str], Mapping[str, np.ndarray]]]) -> None:
        """Records the sites and the model of each cohort, once; the same again after a crash."""
        with self._write() as db:
            if self.fact("cohorts") is None:
                found = [[list(sites), self._put(db, model)] for sites, model in cohorts]
                self._fact(db, "cohorts", json.dumps(found))

    def cohorts(self) -> tuple[tuple[tuple[str, ...], str], ...]:
        """The sites of each cohort and the SHA-256 of its model; empty for a run without cohorts."""
        return tuple(
            (tuple(sites), str(digest)) for sites, digest in json.loads(self.fact("cohorts") or "[]")
        )

    def answered(self, number: int) -> tuple[str, ...]:
        """The sites whose updates were admitted to a round, sorted."""
        query = "SELECT site FROM reply WHERE round = :n UNION ALL SELECT site FROM laid WHERE round = :n"
        return tuple(str(site) for (site,) in self._db.execute(f"{query} ORDER BY site", {"n": number}))

    def updates(self, number: int) -> Mapping[str, Mapping[str, np.ndarray]]:
        """The admitted updates of a round by site; each is looked up when it is asked for.

        Those of a simulation are there until the next round gets updates.
        """
        query = "SELECT site, sha256 FROM reply WHERE round = :n UNION ALL SELECT site, sha256 FROM laid"
        rows = self._db.execute(f"{query} WHERE round = :n ORDER BY site", {"n": number})
        return _OnDisk(self, number, {str(site): str(digest) for site, digest in rows})

    def reply_bytes(self, number: int) -> dict[str, int]:
        """The size of each admitted update of a round, by site."""
        query = "SELECT site, LENGTH(data) FROM reply JOIN blob USING (sha256) WHERE round = :n"
        rows = self._db.execute(
            f"{query} UNION ALL SELECT site, bytes FROM laid WHERE round = :n ORDER BY site", {"n": number}
        )
        return {str(site): int(size) for site, size in rows}

    def refuse(self, number: int, site: str, reason: str) -> None:
        """Records an answer that was not admitted; site is empty if it is not known."""
        with self._write() as db:
            db.execute("INSERT INTO refusal (round, site, reason) VALUES (?, ?, ?)", (number, site, reason))

    def refusals(self) -> tuple[tuple[int, str, str], ...]:
        """Round (0: before the first), site and reason of every answer that was not admitted."""
        rows = self._db.execute("SELECT round, site, reason FROM refusal ORDER BY id")
        return tuple((int(number), str(site), str(reason)) for number, site, reason in rows)

    def arrays(self, digest: str) -> Arrays:
        """The arrays with this SHA-256.

        Raises:
            ServerError: they are not there, or are not what their hash says.
        """
        return arrays_from_bytes(self.data(digest))

    def update(self, number: int, site: str, digest: str) -> Packed:
        """A site's update in a round, from memory if it has just come; raises as `arrays`."""
        kept = self._kept.get(digest)
        if kept is not None:
            return kept
        return packed_from_bytes(self._laid.data(number, site) or self.data(digest))

    def data(self, digest: str) -> bytes:
        """The canonical bytes with this SHA-256; raises as `arrays`."""
        if digest in self._read:
            return self._remember(digest, self._read[digest])
        row = self._db.execute("SELECT data FROM blob WHERE sha256 = ?", (digest,)).fetchone()
        if row is None or sha256(bytes(row[0])) != digest:
            raise ServerError(f"Expected arrays with SHA-256 {digest}; the coordinator's file is damaged.")
        return self._remember(digest, bytes(row[0]))

    def _remember(self, digest: str, data: bytes) -> bytes:
        """The same data, kept if they are short: a round asks for model, rule and sum of the one before."""
        if len(data) <= _SMALL_BYTES:
            self._read.pop(digest, None)
            if len(self._read) >= _READ_KEPT:
                self._read.pop(next(iter(self._read)))
            self._read[digest] = data
        return data

    def _keep(self, update: Packed) -> None:
        """Holds an update in memory until its round is aggregated, as far as there is room."""
        if update.sha256 not in self._kept and self._kept_bytes + len(update.npy) <= _KEPT_BYTES:
            self._kept[update.sha256] = update
            self._kept_bytes += len(update.npy)

    def _put(self, db: sqlite3.Connection, arrays: Mapping[str, np.ndarray]) -> str:
        whole = packed(arrays)
        data, digest = whole.data, whole.sha256
        db.execute("INSERT OR IGNORE INTO blob (sha256, data) VALUES (?, ?)", (digest, data))
        return digest

    def _kept_put(self, db: sqlite3.Connection, arrays: Mapping[str, np.ndarray]) -> str:
        """As `_put`, of what the next round begins with."""
        whole = packed(arrays)
        self._remember(self._put(db, whole), bytes(whole.data))
        return whole.sha256

    def _replies(
        self, db: sqlite3.Connection, number: int, updates: Mapping[str, Mapping[str, np.ndarray]]
    ) -> None:
        whole = {site: packed(updates[site]) for site in sorted(updates)}
        if self.simulated:
            self._laid.put(number, whole)
            for update in whole.values():
                self._keep(update)
            return
        for site, update in whole.items():
            self._reply(db, number, site, update)

    def _reply(self, db: sqlite3.Connection, number: int, site: str, update: Packed) -> None:
        values = (number, site, self._put(db, update))
        self._keep(update)
        db.execute("INSERT INTO reply (round, site, sha256) VALUES (?, ?, ?)", values)

    def _forget_lost(self) -> None:
        """Asks again for all updates of the round under way if one that was admitted is not whole on disk."""
        row = self.last_round()
        if row is None or row.state not in _COLLECTING or self._laid.is_whole(row.number):
            return
        logger.warning("round %d: its updates are not whole on disk; asking again", row.number)
        with self._write() as db:
            self._laid.forget(row.number)
            db.execute("UPDATE round SET state = 'sent' WHERE number = ?", (row.number,))

    def _advance(self, db: sqlite3.Connection, number: int, before: str, after: str) -> None:
        changed = db.execute(
            "UPDATE round SET state = ? WHERE number = ? AND state = ?", (after, number, before)
        ).rowcount
        if changed != 1:
            raise ServerError(f"Expected round {number} to be {before} before it is {after}; it is not.")


class _OnDisk(Mapping[str, Mapping[str, np.ndarray]]):
    """Updates by site that are not all in memory."""

    def __init__(self, store: Store, number: int, digests: Mapping[str, str]) -> None:
        self._store, self._number, self._digests = store, number, digests

    def __getitem__(self, site: str) -> Packed:
        return self._store.update(self._number, site, self._digests[site])

    def __iter__(self) -> Iterator[str]:
        return iter(self._digests)

    def __len__(self) -> int:
        return len(self._digests)


_SELECT_ROUND = "SELECT number, state, base, model, rule, total, diagnostics FROM round"


def _round_row(row: tuple[int, str, str, str | None, str | None, str | None, str | None]) -> RoundRow:
    number, state, base, model, rule, total, diagnostics = row
    figures = {} if diagnostics is None else {str(k): float(v) for k, v in json.loads(diagnostics).items()}
    return RoundRow(
        number=number, state=state, base=base, model=model, rule=rule, total=total, diagnostics=figures
    )
