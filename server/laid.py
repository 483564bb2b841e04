"""The updates of a simulation's round, one after the other in a file beside the coordinator's.

What they are (round, site, SHA-256, where they lie) stands in the coordinator's file, in the transaction in
which they are admitted, and is written after the bytes. So a process that is killed leaves rows whose bytes
are there, or bytes that no row names. After a power cut bytes may be missing that a row names: their SHA-256
tells, and all updates of that round are asked for again. Sites that train together would else be parted,
which moves the last bits.

Updates are needed until their round is aggregated: those of the next round lie in their place. A real
coordinator does not use this: it keeps each update in its one file, and waits for the disk.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from trust.digest import sha256
from trust.packed import Packed

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS laid (
    round INTEGER NOT NULL REFERENCES round, site TEXT NOT NULL, sha256 TEXT NOT NULL,
    place INTEGER NOT NULL, bytes INTEGER NOT NULL, PRIMARY KEY (round, site)) WITHOUT ROWID;
"""

_MOST_AT_ONCE: Final = 512
"""Pieces in one call of the operating system, which takes 1024."""


class Laid:
    """The file beside a coordinator's file, and the table of what lies in it."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        """Args:
        path: of the coordinator's file. db: the coordinator's file.
        """
        self._path, self._db = path.with_name("updates.bin"), db
        self._file = -1

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def put(self, number: int, updates: Mapping[str, Packed]) -> None:
        """Within a transaction: lays the updates of some sites after those of the round that are there.

        Raises:
            OSError: there is no room on the disk, or it fails.
        """
        query = "SELECT COALESCE(MAX(place + bytes), 0) FROM laid WHERE round = ?"
        place = begin = int(self._db.execute(query, (number,)).fetchone()[0])
        rows = []
        for site, update in updates.items():
            size = len(update.data)
            rows.append((number, site, update.sha256, place, size))
            place += size
        _write(self._opened(), [update.data for update in updates.values()], begin)
        self._db.executemany("INSERT INTO laid VALUES (?, ?, ?, ?, ?)", rows)

    def data(self, number: int, site: str) -> bytes | None:
        """The canonical bytes of an update; None if they are not there, or no longer."""
        query = "SELECT sha256, place, bytes FROM laid WHERE round = ? AND site = ?"
        row = self._db.execute(query, (number, site)).fetchone()
        if row is None:
            return None
        digest, place, size = row
        try:
            found = os.pread(self._opened(), size, place)
        except OSError:
            return None
        return found if sha256(found) == digest else None

    def is_whole(self, number: int) -> bool:
        """Whether the bytes of all updates of a round are there."""
        rows = self._db.execute("SELECT site FROM laid WHERE round = ?", (number,)).fetchall()
        return all(self.data(number, str(site)) is not None for (site,) in rows)

    def forget(self, number: int) -> None:
        """Within a transaction: as if no update of a round had come."""
        self._db.execute("DELETE FROM laid WHERE round = ?", (number,))

    def _opened(self) -> int:
        if self._file < 0:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        return self._file


def _write(file: int, pieces: list[memoryview], place: int) -> None:
    """Writes pieces one after the other; the operating system may take fewer bytes than it is given."""
    for first in range(0, len(pieces), _MOST_AT_ONCE):
        some = pieces[first : first + _MOST_AT_ONCE]
        while some:
            taken = os.pwritev(file, some, place)
            place += taken
            while some and taken >= len(some[0]):
                taken -= len(some.pop(0))
            if taken:
                some[0] = some[0][taken:]
