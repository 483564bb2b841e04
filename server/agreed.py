"""What sites were offered, what they said to it, and what was agreed, in the coordinator's file.

All of it is there before the first round. A fact is recorded once; what a site says again takes the place of
what it said.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from trust.plan import Plan, from_json

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS fact (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS site (
    name TEXT PRIMARY KEY, patients INTEGER NOT NULL, code TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS said (
    kind TEXT NOT NULL, site TEXT NOT NULL, patients INTEGER NOT NULL, code TEXT NOT NULL,
    PRIMARY KEY (kind, site)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fewer (site TEXT PRIMARY KEY, steps INTEGER NOT NULL) WITHOUT ROWID;
"""


class Agreed:
    """The part of the coordinator's file (server/store.py) that rounds do not change."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def fact(self, key: str) -> str | None:
        """A recorded fact, None if there is none."""
        row = self._db.execute("SELECT value FROM fact WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put_fact(self, key: str, value: str) -> None:
        """Records a fact, once; a second time is an error of the caller."""
        with self._write() as db:
            self._fact(db, key, value)

    def offer(self) -> Plan | None:
        """The plan without participants, None before `begin`."""
        text = self.fact("offer")
        return None if text is None else from_json(text)

    def note(self, kind: str, site: str, patients: int, code: str, steps: int | None = None) -> None:
        """Records what a site said last to a request of this kind; a code is what it refused with.

        Args:
            steps: local steps that it declares, 0 for as many as asked; None leaves what it declared.
        """
        with self._write() as db:
            db.execute("INSERT OR REPLACE INTO said VALUES (?, ?, ?, ?)", (kind, site, patients, code))
            if steps is not None:
                db.execute("DELETE FROM fewer WHERE site = ?", (site,))
            if steps:
                db.execute("INSERT INTO fewer VALUES (?, ?)", (site, steps))

    def fewer_steps(self) -> dict[str, int]:
        """Local steps of the sites that declared that they do fewer than the offer asks."""
        rows = self._db.execute("SELECT site, steps FROM fewer")
        return {str(site): int(steps) for site, steps in rows}

    def noted(self, kind: str) -> dict[str, tuple[int, str]]:
        """What each site said last to a request of this kind: patients and code."""
        rows = self._db.execute("SELECT site, patients, code FROM said WHERE kind = ? ORDER BY site", (kind,))
        return {str(site): (int(patients), str(code)) for site, patients, code in rows}

    def declare(self, plan: Plan, refused: Mapping[str, str]) -> None:
        """Records the plan with its participants, and the sites that refused the offer, by code."""
        with self._write() as db:
            self._fact(db, "plan", plan.to_json())
            for entry in plan.participants:
                self._site(db, entry.site, entry.patients, "")
            for site, code in refused.items():
                self._site(db, site, 0, code)

    def accept(self, refused: Mapping[str, str]) -> None:
        """Records that sites were asked to accept the plan, and which of them refused, by code."""
        with self._write() as db:
            for site, code in refused.items():
                db.execute("UPDATE site SET code = ? WHERE name = ?", (code, site))
            self._fact(db, "accepted", "yes")

    def plan(self) -> Plan | None:
        """The plan with its participants, None before `declare`."""
        text = self.fact("plan")
        return None if text is None else from_json(text)

    def sites(self) -> dict[str, tuple[int, str]]:
        """Every site that answered: declared patients and refusal code (empty: it takes part)."""
        rows = self._db.execute("SELECT name, patients, code FROM site ORDER BY name")
        return {str(name): (int(patients), str(code)) for name, patients, code in rows}

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _fact(self, db: sqlite3.Connection, key: str, value: str) -> None:
        db.execute("INSERT INTO fact (key, value) VALUES (?, ?)", (key, value))

    def _site(self, db: sqlite3.Connection, name: str, patients: int, code: str) -> None:
        db.execute("INSERT INTO site (name, patients, code) VALUES (?, ?, ?)", (name, patients, code))
