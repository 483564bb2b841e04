"""Who belongs to a federation: invitations, members, their certificates, authorities of their own.

SQLite with synchronous=FULL: a revocation that returned holds after a crash. Of an invitation only
the hash of its secret is kept, so that whoever reads this file cannot join with what it finds.

A member goes active → revoked (by the coordinator) or left (by itself), and comes back only by a
new invitation that says so. Of its certificates the two newest count: the one in use, and the one
that replaces it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, Self

from cryptography import x509

from server.durable import Durable
from server.errors import ServerError
from trust.authority import serial_of, to_pem
from trust.enrolment import EnrolmentRefused
from trust.identity import Role, check_name, check_role, load_certificate
from trust.invitation import new_secret, secret_hash

State = Literal["active", "revoked", "left"]
_COUNTING: Final = 2
_LONGEST_WHY: Final = 200

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS invitation (
    secret_sha256 TEXT PRIMARY KEY, name TEXT NOT NULL, role TEXT NOT NULL, expires INTEGER NOT NULL,
    replaces INTEGER NOT NULL, withdrawn INTEGER NOT NULL DEFAULT 0, key_sha256 TEXT, certificate TEXT);
CREATE TABLE IF NOT EXISTS member (
    name TEXT PRIMARY KEY, role TEXT NOT NULL, state TEXT NOT NULL, changed INTEGER NOT NULL,
    why TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS certificate (
    id INTEGER PRIMARY KEY, serial TEXT UNIQUE NOT NULL, name TEXT NOT NULL REFERENCES member,
    not_after INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS pki (
    name TEXT NOT NULL, certificate TEXT NOT NULL, PRIMARY KEY (name, certificate));
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member as the coordinator knows it.

    Attributes:
        changed: when it came into its state; why: given by who changed it.
        serial, not_after: of its newest certificate of ours; empty and None if it brings its own.
    """

    name: str
    role: Role
    state: State
    changed: datetime
    why: str
    serial: str
    not_after: datetime | None


class Members:
    """The coordinator's list; threads and processes may share the file."""

    def __init__(self, path: Path) -> None:
        self._file = Durable(path, _SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    # Invitations.

    def invite(self, name: str, role: Role, *, expires: datetime, replace: bool = False) -> str:
        """The secret of a new invitation; an older open one for the same name is withdrawn.

        Args:
            replace: the name may be a member's, whose certificates end when the invitation is used.

        Raises:
            TrustError: the name or role is not allowed.
            ServerError: the name is known and `replace` is False.
        """
        check_name(name, "site")
        if role not in ("site", "receiver"):
            raise ServerError(f"Expected to invite a site or a receiver, not a {role}.")
        secret = new_secret()
        with self._file.write() as db:
            state = _state(db, name)
            if state is not None and not replace:
                raise ServerError(
                    f"The name {name!r} is known ({state}). If that hospital is to join anew, and its"
                    " certificates so far are to end, say --replace; else choose another name."
                )
            if _role(db, name) in ("operator", "coordinator"):
                raise ServerError(f"{name!r} is the name of an operator; choose another name.")
            db.execute("UPDATE invitation SET withdrawn = 1 WHERE name = ? AND key_sha256 IS NULL", (name,))
            db.execute(
                "INSERT INTO invitation (secret_sha256, name, role, expires, replaces)"
                " VALUES (?, ?, ?, ?, ?)",
                (secret_hash(secret), name, role, int(expires.timestamp()), int(replace)),
            )
        return secret

    def invited(self, secret: str, site: str, key_sha256: str, now: datetime) -> tuple[Role, str | None]:
        """The role that an invitation gives; the certificate too if this very key used it before.

        Checks, in this order:
        1. token_unknown: no invitation has this secret.
        2. token_of_another_site: it was made for another name.
        3. token_used: another key has joined with it. The same key asks again after a lost answer.
        4. token_withdrawn: a newer invitation took its place, or the member was revoked since.
        5. token_expired: by the coordinator's clock.
        6. name_taken: the name became known after the invitation.

        Raises:
            EnrolmentRefused: with the code of the check that failed.
        """
        rows = self._file.rows(f"{_INVITED} WHERE secret_sha256 = ?", (secret_hash(secret),))
        state = self._file.rows("SELECT state FROM member WHERE name = ?", (site,))
        return _judged(rows, state, site, key_sha256, now)

    def enrol(
        self,
        secret: str,
        site: str,
        key_sha256: str,
        now: datetime,
        issue: Callable[[Role], bytes],
        *,
        ours: bool = True,
    ) -> tuple[Role, bytes]:
        """Uses an invitation, once: the member is there, or nothing has happened.

        Args:
            issue: makes the certificate of a new member; an error in it leaves the invitation unused.
            ours: False if the certificate is of the hospital's own authority.

        Returns:
            Role and certificate in PEM; those of the first time if this key asks again.

        Raises:
            EnrolmentRefused: as `invited`.
        """
        with self._file.write() as db:
            rows = db.execute(f"{_INVITED} WHERE secret_sha256 = ?", (secret_hash(secret),)).fetchall()
            state = db.execute("SELECT state FROM member WHERE name = ?", (site,)).fetchall()
            role, known = _judged(rows, state, site, key_sha256, now)
            if known is not None:
                return role, known.encode()
            pem = issue(role)
            db.execute("UPDATE invitation SET withdrawn = 1 WHERE name = ?", (site,))
            db.execute(
                "UPDATE invitation SET withdrawn = 0, key_sha256 = ?, certificate = ?"
                " WHERE secret_sha256 = ?",
                (key_sha256, pem.decode(), secret_hash(secret)),
            )
            db.execute("DELETE FROM certificate WHERE name = ?", (site,))
            _put(db, site, role, "active", now, "joined")
            if ours:
                _certify(db, site, pem)
            return role, pem

    def withdraw(self, name: str) -> int:
        """Ends the open invitations of a name; gives their number."""
        with self._file.write() as db:
            query = (
                "UPDATE invitation SET withdrawn = 1 WHERE name = ? AND key_sha256 IS NULL AND withdrawn = 0"
            )
            return db.execute(query, (name,)).rowcount

    def open_invitations(self, now: datetime) -> dict[str, datetime]:
        """Until when each invited name may still join."""
        rows = self._file.rows(
            "SELECT name, expires FROM invitation WHERE key_sha256 IS NULL AND withdrawn = 0 AND expires > ?"
            " ORDER BY name",
            (int(now.timestamp()),),
        )
        return {str(name): datetime.fromtimestamp(expires, UTC) for name, expires in rows}

    # Members.

    def add_operator(self, name: str, certificate: bytes, now: datetime) -> None:
        """Adds an operator, or gives one another certificate, which then counts alone.

        Raises:
            ServerError: the name is a site's.
        """
        with self._file.write() as db:
            if _role(db, check_name(name, "operator")) not in (None, "operator"):
                raise ServerError(f"{name!r} is the name of a site; choose another for the operator.")
            db.execute("DELETE FROM certificate WHERE name = ?", (name,))
            _put(db, name, "operator", "active", now, "added")
            _certify(db, name, certificate)

    def certify(self, name: str, certificate: bytes) -> None:
        """Records a certificate of ours; from then on it and the one before count.

        Raises:
            EnrolmentRefused: no_member, if the name is not active.
        """
        with self._file.write() as db:
            if _state(db, name) != "active":
                raise EnrolmentRefused("no_member", f"{name!r} is no active member of this federation.")
            _certify(db, name, certificate)

    def end(self, name: str, state: Literal["revoked", "left"], why: str, now: datetime) -> None:
        """Ends a membership, and every certificate and open invitation of it.

        Raises:
            ServerError: nobody of that name is active.
        """
        with self._file.write() as db:
            if _state(db, name) != "active":
                known = ", ".join(
                    row[0] for row in db.execute("SELECT name FROM member WHERE state = 'active'")
                )
                raise ServerError(
                    f"Expected the name of an active member, one of: {known or '(none)'}; {name!r} came."
                )
            db.execute("DELETE FROM certificate WHERE name = ?", (name,))
            db.execute("UPDATE invitation SET withdrawn = 1 WHERE name = ?", (name,))
            db.execute(
                "UPDATE member SET state = ?, changed = ?, why = ? WHERE name = ?",
                (state, int(now.timestamp()), why[:_LONGEST_WHY], name),
            )

    def member(self, name: str) -> Member | None:
        """The member of that name, in whatever state; None if it never joined."""
        found = self._members("WHERE m.name = ?", (name,))
        return found[0] if found else None

    def members(self) -> tuple[Member, ...]:
        """Every member that ever joined, by name."""
        return tuple(self._members("", ()))

    def sites(self) -> tuple[str, ...]:
        """Names of the active members that train, sorted: whom a plan may ask."""
        query = "SELECT name FROM member WHERE state = 'active' AND role = 'site' ORDER BY name"
        return tuple(str(row[0]) for row in self._file.rows(query))

    def ended(self) -> frozenset[str]:
        """Names of those who are revoked or left."""
        return frozenset(
            str(row[0]) for row in self._file.rows("SELECT name FROM member WHERE state != 'active'")
        )

    def active(self, serial: str) -> bool:
        """Whether a certificate of ours, named by its serial in hexadecimal, counts now."""
        query = "SELECT 1 FROM certificate JOIN member USING (name) WHERE serial = ? AND state = 'active'"
        return bool(self._file.rows(query, (serial,)))

    # Authorities of hospitals' own.

    def trust_pki(self, name: str, certificates: tuple[x509.Certificate, ...]) -> None:
        """Lets these authorities, and no earlier ones, certify one name; none takes that away.

        Raises:
            ServerError: one of them is no authority's certificate; the name is an operator's.
        """
        check_name(name, "site")
        if not all(_may_sign(certificate) for certificate in certificates):
            raise ServerError("Expected certificates of authorities (basic constraint CA); another came.")
        with self._file.write() as db:
            if _role(db, name) == "operator":
                raise ServerError(f"{name!r} is an operator; only sites bring certificates of their own.")
            db.execute("DELETE FROM pki WHERE name = ?", (name,))
            rows = [(name, to_pem(certificate).decode()) for certificate in certificates]
            db.executemany("INSERT OR IGNORE INTO pki VALUES (?, ?)", rows)

    def pki(self, name: str | None = None) -> tuple[x509.Certificate, ...]:
        """The authorities that may certify a name; without a name those of all."""
        where = "WHERE name = ?" if name else ""
        rows = self._file.rows(f"SELECT DISTINCT certificate FROM pki {where}", (name,) if name else ())
        return tuple(load_certificate(str(row[0]).encode()) for row in rows)

    def _members(self, where: str, values: tuple[str, ...]) -> list[Member]:
        query = (
            "SELECT m.name, role, state, changed, why, serial, not_after"
            " FROM member m LEFT JOIN certificate c"
            " ON c.id = (SELECT MAX(id) FROM certificate WHERE name = m.name)"
        )
        return [_member(row) for row in self._file.rows(f"{query} {where} ORDER BY m.name", values)]


_INVITED: Final = "SELECT name, role, expires, replaces, withdrawn, key_sha256, certificate FROM invitation"


def _judged(
    rows: list[tuple[str, str, int, int, int, str | None, str | None]],
    states: list[tuple[str]],
    site: str,
    key_sha256: str,
    now: datetime,
) -> tuple[Role, str | None]:
    if not rows:
        raise EnrolmentRefused(
            "token_unknown", "The coordinator knows no such invitation. Ask it for a new one."
        )
    name, role, expires, replaces, withdrawn, used_by, certificate = rows[0]
    if name != site:
        raise EnrolmentRefused("token_of_another_site", "This invitation was made for another site.")
    if used_by not in (None, key_sha256):
        raise EnrolmentRefused(
            "token_used",
            "This invitation has been used. If it was not you, tell the coordinator at once: somebody else"
            " has joined under your name. Else ask for a new one.",
        )
    if withdrawn:
        raise EnrolmentRefused("token_withdrawn", "This invitation was withdrawn. Ask for a new one.")
    if used_by is not None:
        return check_role(role), certificate
    if now.timestamp() >= expires:
        ended = datetime.fromtimestamp(expires, UTC).isoformat()
        raise EnrolmentRefused("token_expired", f"This invitation expired at {ended}. Ask for a new one.")
    if states and not replaces:
        raise EnrolmentRefused("name_taken", f"A member named {site!r} exists already. Ask for another name.")
    return check_role(role), None


def _put(db: sqlite3.Connection, name: str, role: Role, state: State, now: datetime, why: str) -> None:
    db.execute(
        "INSERT OR REPLACE INTO member (name, role, state, changed, why) VALUES (?, ?, ?, ?, ?)",
        (name, role, state, int(now.timestamp()), why),
    )


def _certify(db: sqlite3.Connection, name: str, pem: bytes) -> None:
    certificate = load_certificate(pem)
    end = int(certificate.not_valid_after_utc.timestamp())
    values = (serial_of(certificate), name, end)
    db.execute("INSERT INTO certificate (serial, name, not_after) VALUES (?, ?, ?)", values)
    db.execute(
        "DELETE FROM certificate WHERE name = ? AND id NOT IN"
        " (SELECT id FROM certificate WHERE name = ? ORDER BY id DESC LIMIT ?)",
        (name, name, _COUNTING),
    )


def _state(db: sqlite3.Connection, name: str) -> str | None:
    row = db.execute("SELECT state FROM member WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def _role(db: sqlite3.Connection, name: str) -> str | None:
    row = db.execute("SELECT role FROM member WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def _member(row: tuple[str, str, State, int, str, str | None, int | None]) -> Member:
    name, role, state, changed, why, serial, not_after = row
    return Member(
        name=name,
        role=check_role(role),
        state=state,
        changed=datetime.fromtimestamp(changed, UTC),
        why=why,
        serial=serial or "",
        not_after=None if not_after is None else datetime.fromtimestamp(not_after, UTC),
    )


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False
