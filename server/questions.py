"""The questions of a coordinator and what each site answered; every change is on disk first.

    asking → done | withdrawn

asking: some sites have not answered, or wait for a person; they are asked until the deadline. What a site
answered stands: it is not asked again, and a coordinator that was killed goes on with the others.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from server.changes import Changes
from server.durable import Durable
from server.errors import ServerError
from trust.question import Question, from_json

ASKING, DONE, WITHDRAWN = "asking", "done", "withdrawn"
NO_ANSWER: Final = "no_answer"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS question (
    number INTEGER PRIMARY KEY AUTOINCREMENT, request TEXT NOT NULL UNIQUE, text TEXT NOT NULL,
    sites TEXT NOT NULL, approval_s REAL NOT NULL, state TEXT NOT NULL, who TEXT NOT NULL,
    asked_s REAL NOT NULL, changed_s REAL NOT NULL);
CREATE TABLE IF NOT EXISTS said (
    number INTEGER NOT NULL REFERENCES question, site TEXT NOT NULL, code TEXT NOT NULL,
    counts TEXT NOT NULL, smallest INTEGER NOT NULL, PRIMARY KEY (number, site));
"""
_COLUMNS = "number, text, sites, approval_s, state, who, asked_s, changed_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a site said last: a code, or counts with the smallest that it tells."""

    code: str = NO_ANSWER
    counts: tuple[int, ...] = ()
    smallest: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question as it is on disk; times in seconds since 1970.

    Attributes:
        sites: that are asked, sorted.
        approval_s: after so many seconds nobody is waited for any more.
        said: by every site that is asked.
    """

    id: str
    question: Question
    sites: tuple[str, ...]
    approval_s: float
    state: str
    who: str
    asked_s: float
    changed_s: float
    said: dict[str, Said]

    @property
    def counts(self) -> dict[str, tuple[int, ...]]:
        """The counts of the sites that answered."""
        return {site: said.counts for site, said in self.said.items() if not said.code}


class Questions(Changes):
    """The file of questions; threads share it, and may wait for its changes."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Args:
        clock: gives the time that is noted, from which the deadline counts.
        on_change: called after each change, outside the transaction.
        """
        super().__init__(on_change)
        self._db = Durable(path, _SCHEMA)
        self._clock = clock

    def close(self) -> None:
        """Lets go of the file."""
        self._db.close()

    def ask(
        self, question: Question, sites: list[str], approval_s: float, *, who: str, request: str
    ) -> Asked:
        """The new question; the same request again gives the one that it made before.

        Raises:
            ServerError: no site is asked; a deadline that is none; the request asked something else.
        """
        if not sites or not 0 < approval_s < float("inf"):
            raise ServerError("Expected at least one site to ask, and a deadline above 0 s.")
        text, names, now = question.to_json(), json.dumps(sorted(set(sites))), self._clock()
        with self._db.write() as db:
            known = db.execute("SELECT number, text FROM question WHERE request = ?", (request,)).fetchone()
            if known is not None and known[1] != text:
                raise ServerError("Expected a new request; this one has asked another question.")
            if known is None:
                values = (request, text, names, approval_s, ASKING, who, now, now)
                number = db.execute(
                    "INSERT INTO question (request, text, sites, approval_s, state, who, asked_s, changed_s)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    values,
                ).lastrowid
            else:
                number = known[0]
        self.touch()
        return self.get(f"question-{number:04d}")

    def all(self) -> tuple[Asked, ...]:
        """All questions, in the order in which they were asked."""
        rows = self._db.rows(f"SELECT {_COLUMNS} FROM question ORDER BY number")
        return tuple(self._read(row) for row in rows)

    def get(self, id_: str) -> Asked:
        """The question with this id.

        Raises:
            ServerError: there is none.
        """
        rows = self._db.rows(f"SELECT {_COLUMNS} FROM question WHERE number = ?", (_number(id_),))
        if not rows:
            raise ServerError(f"There is no question {id_!r}; `twinward coordinator questions` lists them.")
        return self._read(rows[0])

    def asking(self) -> tuple[Asked, ...]:
        """The questions that are not ended."""
        rows = self._db.rows(f"SELECT {_COLUMNS} FROM question WHERE state = ? ORDER BY number", (ASKING,))
        return tuple(self._read(row) for row in rows)

    def note(self, id_: str, site: str, said: Said) -> None:
        """Keeps what a site said; counts that it told already stay."""
        values = (_number(id_), site, said.code, json.dumps(said.counts), said.smallest)
        with self._db.write() as db:
            db.execute(
                "INSERT INTO said VALUES (?, ?, ?, ?, ?) ON CONFLICT (number, site) DO UPDATE SET"
                " code = excluded.code, counts = excluded.counts, smallest = excluded.smallest"
                " WHERE said.code <> ''",
                values,
            )
        self.touch()

    def end(self, id_: str, state: str) -> Asked:
        """The question, ended.

        Raises:
            ServerError: it is ended already.
        """
        with self._db.write() as db:
            changed = db.execute(
                "UPDATE question SET state = ?, changed_s = ? WHERE number = ? AND state = ?",
                (state, self._clock(), _number(id_), ASKING),
            ).rowcount
        found = self.get(id_)
        if changed != 1:
            raise ServerError(f"Question {id_} is {found.state}; nobody is asked any more.")
        self.touch()
        return found

    def _read(self, row: tuple[Any, ...]) -> Asked:
        number, text, sites, approval_s, state, who, asked_s, changed_s = row
        found = self._db.rows("SELECT site, code, counts, smallest FROM said WHERE number = ?", (number,))
        told = {
            site: Said(code=code, counts=tuple(json.loads(counts)), smallest=smallest)
            for site, code, counts, smallest in found
        }
        return Asked(
            id=f"question-{number:04d}",
            question=from_json(text),
            sites=tuple(json.loads(sites)),
            approval_s=approval_s,
            state=state,
            who=who,
            asked_s=asked_s,
            changed_s=changed_s,
            said={site: told.get(site, Said()) for site in json.loads(sites)},
        )


def _number(id_: str) -> int:
    text = id_.removeprefix("question-")
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise ServerError(f"Expected the id of a question, such as question-0001; {id_[:40]!r} came.")
    return int(text)
