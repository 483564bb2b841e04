"""Plans and questions that a site was offered, and what became of them: one file, on disk before acting.

An offer is a question or a plan without participants, known by its hash. It goes
waiting → approved → running → done, or to refused; `refused` is also where a person puts an offer
that was approved or runs, and from then on no round of it is answered. Who moved it, when and why
stands beside it. What was released already is in the ledger and stays there.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from client.errors import ClientError
from client.transaction import transaction
from trust.plan import Plan
from trust.question import Question, read_offer

STATES: Final = ("waiting", "approved", "refused", "running", "done")
POLICY: Final = "policy"
"""Who decided, where no person did."""

_VERSION: Final = 1
_WAIT_S: Final = 60.0
_MOST_WAITING: Final = 1000
_MOST_A_DAY: Final = 1000
_MOST_REFUSED: Final = 2000
"""Offers that the policy refused and that are kept; the oldest ones go, the audit log has their hashes."""
_LONGEST: Final = 65_536
"""Letters of an offer with its signature."""
_DAY_S: Final = 86_400.0
_TABLE: Final = """CREATE TABLE offers (
    offer TEXT PRIMARY KEY,
    plan TEXT NOT NULL,
    signature TEXT NOT NULL,
    key TEXT NOT NULL,
    state TEXT NOT NULL,
    code TEXT NOT NULL,
    who TEXT NOT NULL,
    why TEXT NOT NULL,
    offered_s REAL NOT NULL,
    changed_s REAL NOT NULL
) STRICT"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One offer.

    Attributes:
        hash: of the question, or of the plan without participants.
        plan: without participants; or the question.
        signature, key: of the coordinator over it.
        state: one of STATES.
        code: why it is refused; empty otherwise.
        who: "policy", or the person who decided; empty while nobody has. why: what they said.
        offered_s, changed_s: seconds since 1970, by this site's clock.
    """

    hash: str
    plan: Plan | Question
    signature: str
    key: str
    state: str
    code: str
    who: str
    why: str
    offered_s: float
    changed_s: float


class Inbox:
    """The inbox in the file `path`; one object per thread, several processes at once."""

    def __init__(self, path: str | Path) -> None:
        """Opens the inbox, or begins one that only this user may read.

        Raises:
            ClientError: inbox_unreadable; unavailable, if the disk is full or fails.
        """
        path = Path(path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            self._connection = _opened(path)
        except sqlite3.OperationalError as error:
            raise ClientError("unavailable", f"{path.name} cannot be opened now ({error}).") from error
        except sqlite3.DatabaseError as error:
            raise ClientError("inbox_unreadable", f"{path.name} is not an inbox ({error}).") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file."""
        self._connection.close()

    def offer(
        self,
        plan: Plan | Question,
        signature: str,
        key: str,
        now_s: float,
        *,
        record: Callable[[], None] = lambda: None,
    ) -> Offer:
        """The offer, recorded as waiting if it is new.

        Args:
            record: writes down that it came; called for a new one that is let in, before anybody can
                see it. If it raises, the offer is not there.

        Raises:
            ClientError: plan_refused, if it is too long, or too many came or wait: a coordinator may
                not fill the disk.
        """
        text = plan.to_json()
        with transaction(self._connection) as sql:
            if sql.execute("SELECT 1 FROM offers WHERE offer = ?", (plan.offer_hash,)).fetchone() is None:
                _check_room(sql, len(text) + len(signature), now_s)
                record()
                sql.execute(
                    "INSERT INTO offers VALUES (?, ?, ?, ?, 'waiting', '', '', '', ?, ?)",
                    (plan.offer_hash, text, signature, key, now_s, now_s),
                )
        return self.get(plan.offer_hash)

    def automatic(self, *, since_s: float) -> int:
        """How many offers made since then the policy let run without a person."""
        query = (
            "SELECT COUNT(*) FROM offers WHERE who = ? AND state IN ('approved', 'running', 'done')"
            " AND offered_s > ?"
        )
        count: int = self._connection.execute(query, (POLICY, since_s)).fetchone()[0]
        return count

    def get(self, offer: str) -> Offer:
        """One offer by its hash, or by the beginning of it.

        Raises:
            ClientError: plan_unknown, if there is none, or more than one begins so.
        """
        if not offer or not set(offer) <= set("0123456789abcdef"):
            raise ClientError("plan_unknown", "Expected the hash of an offer, or its beginning.")
        rows = self._connection.execute(
            "SELECT * FROM offers WHERE offer >= ? AND offer < ? LIMIT 2", (offer, offer + "g")
        ).fetchall()
        if len(rows) != 1:
            many = "more than one" if rows else "none"
            raise ClientError(
                "plan_unknown", f"Expected one offer that begins with {offer[:12]}; {many} does."
            )
        return _offer(rows[0])

    def find(self, offer: str) -> Offer | None:
        """One offer by its whole hash, None if it was never made."""
        row = self._connection.execute("SELECT * FROM offers WHERE offer = ?", (offer,)).fetchone()
        return None if row is None else _offer(row)

    def all(self) -> tuple[Offer, ...]:
        """Every offer ever made, the oldest first."""
        rows = self._connection.execute("SELECT * FROM offers ORDER BY rowid").fetchall()
        return tuple(_offer(row) for row in rows)

    def approve(self, offer: str, *, who: str, why: str = "", now_s: float) -> Offer:
        """Lets a plan run, from waiting or refused. An approved, running or done one stays as it is."""
        return self._move(offer, "approved", ("waiting", "refused"), who=who, why=why, now_s=now_s)

    def refuse(self, offer: str, *, code: str, who: str, why: str = "", now_s: float) -> Offer:
        """Lets no round of a plan be answered from now on, whatever it was; a done one stays done."""
        states = ("waiting", "approved", "running")
        return self._move(offer, "refused", states, code=code, who=who, why=why, now_s=now_s)

    def reconsider(self, offer: str, *, now_s: float) -> Offer:
        """Lets a refused offer wait again, for a policy that has changed."""
        return self._move(offer, "waiting", ("refused",), who="", why="", now_s=now_s)

    def run(self, offer: str, *, now_s: float) -> Offer:
        """Marks an approved plan as booked in the ledger."""
        return self._move(offer, "running", ("approved",), now_s=now_s)

    def done(self, offer: str, *, now_s: float) -> Offer:
        """Marks a running plan whose last round was answered."""
        return self._move(offer, "done", ("running",), now_s=now_s)

    def _move(
        self,
        offer: str,
        state: str,
        earlier: tuple[str, ...],
        *,
        now_s: float,
        code: str = "",
        who: str | None = None,
        why: str | None = None,
    ) -> Offer:
        found = self.get(offer)
        marks = ", ".join("?" * len(earlier))
        with transaction(self._connection) as sql:
            sql.execute(
                "UPDATE offers SET state = ?, code = ?, who = COALESCE(?, who), why = COALESCE(?, why),"
                f" changed_s = ? WHERE offer = ? AND state IN ({marks})",
                (state, code, who, why, now_s, found.hash, *earlier),
            )
        return self.get(found.hash)


def _check_room(sql: sqlite3.Connection, length: int, now_s: float) -> None:
    """Returns if one more offer may come in; drops the oldest of those that the policy refused.

    Raises:
        ClientError: plan_refused.
    """
    waiting = sql.execute("SELECT COUNT(*) FROM offers WHERE state = 'waiting'").fetchone()[0]
    today = sql.execute("SELECT COUNT(*) FROM offers WHERE offered_s > ?", (now_s - _DAY_S,)).fetchone()[0]
    checks = [
        (length <= _LONGEST, f"The offer is longer than {_LONGEST} letters."),
        (waiting < _MOST_WAITING, f"{_MOST_WAITING} offers wait already; approve or refuse some of them."),
        (today < _MOST_A_DAY, f"{_MOST_A_DAY} offers came within a day already."),
    ]
    for holds, text in checks:
        if not holds:
            raise ClientError("plan_refused", text)
    sql.execute(
        "DELETE FROM offers WHERE offer IN (SELECT offer FROM offers WHERE state = 'refused' AND who = ?"
        " ORDER BY changed_s DESC, rowid DESC LIMIT -1 OFFSET ?)",
        (POLICY, _MOST_REFUSED - 1),
    )


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        with transaction(connection) as sql:
            version = sql.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and not sql.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
                sql.execute(_TABLE)
                sql.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise sqlite3.DatabaseError(f"expected version {_VERSION}, found {version}")
    except BaseException:
        connection.close()
        raise
    return connection


def _offer(row: tuple[str, str, str, str, str, str, str, str, float, float]) -> Offer:
    offer, plan, signature, key, state, code, who, why, offered_s, changed_s = row
    return Offer(
        hash=offer,
        plan=read_offer(plan),
        signature=signature,
        key=key,
        state=state,
        code=code,
        who=who,
        why=why,
        offered_s=offered_s,
        changed_s=changed_s,
    )
