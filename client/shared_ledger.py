"""The privacy ledgers of all simulated sites of one process, in one file.

What a ledger is, and its laws, stand in client/ledger.py; here they hold for each site by itself. Hundreds of
files would each cost two transactions a round, and thousands more open files than a process may have; in one
file a round of many sites is reserved in one transaction and completed in another.

What a simulated site does without, as nothing is hidden from whoever has its seed:
- the journal, whose heads a hospital's audit log holds;
- every release for ever. A site's last release lies in a file beside the ledger, each in the place of the one
  before. An older one would be computed again, to the same bytes: nobody asks for it;
- waiting for the disk. A process that is killed loses nothing. After a power cut the last rounds may be
  gone, and are computed again; plans are on disk before the first round of any.

One process uses the file at a time, and one thread of it. Where many processes are the sites (engine=ray,
Flower's own simulation), each site has a file of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from client.errors import ClientError
from client.ledger import PlanEntry, refuse_other_base, refuse_overrun
from client.transaction import transaction
from privacy.accounting import GaussianRelease, lifetime_epsilon
from trust.packed import Packed

_Round = tuple[str, int, "str | None", "int | None", "int | None"]
"""Base, steps, SHA-256, place and bytes of a site's round; the latter three are None until it is complete."""

_VERSION: Final = 1
_ALIGN: Final = 4096
_THESE: Final = "(SELECT value FROM json_each(?))"
"""As many numbers as one likes, in one parameter: a list in JSON."""
_TABLES: Final = (
    "CREATE TABLE sites (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT",
    "CREATE TABLE terms (plan_hash TEXT PRIMARY KEY, terms TEXT NOT NULL) STRICT",
    """CREATE TABLE plans (
    plan_hash TEXT NOT NULL REFERENCES terms, site INTEGER NOT NULL REFERENCES sites,
    noise_multiplier REAL NOT NULL, sampling_rate REAL NOT NULL,
    steps INTEGER NOT NULL, taken INTEGER NOT NULL, begun INTEGER NOT NULL, complete INTEGER NOT NULL,
    PRIMARY KEY (plan_hash, site)) STRICT, WITHOUT ROWID""",
    "CREATE INDEX plans_of_site ON plans (site)",
    """CREATE TABLE rounds (
    plan_hash TEXT NOT NULL, round INTEGER NOT NULL, site INTEGER NOT NULL,
    base_sha256 TEXT NOT NULL, steps INTEGER NOT NULL, sha256 TEXT, place INTEGER, bytes INTEGER,
    PRIMARY KEY (plan_hash, round, site)) STRICT, WITHOUT ROWID""",
)


class SharedLedger:
    """The file of ledgers `path`, beside it the file of releases."""

    def __init__(self, path: Path, *, ceiling_epsilon: float | None, delta: float) -> None:
        """Opens the file, or begins one that only this user may read.

        Raises:
            ClientError: ledger_unreadable, if the file is something else or of another version;
                unavailable, if the disk is full or fails.
        """
        self._ceiling_epsilon, self.delta = ceiling_epsilon, delta
        self._process, self._plans_new = os.getpid(), False
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._sql = sqlite3.connect(path, timeout=60.0, isolation_level=None)
            self._begin(path)
            self._releases = os.open(releases_path(path), os.O_RDWR | os.O_CREAT, 0o600)
        except (sqlite3.OperationalError, OSError) as error:
            raise ClientError("unavailable", f"{path.name} cannot be opened now ({error}).") from error
        except sqlite3.DatabaseError as error:
            raise ClientError(
                "ledger_unreadable", f"{path.name} is not a file of ledgers ({error})."
            ) from error
        self._numbers = {str(name): int(n) for n, name in self._sql.execute("SELECT number, name FROM sites")}

    def _begin(self, path: Path) -> None:
        self._sql.execute("PRAGMA journal_mode = WAL")
        self._sql.execute("PRAGMA synchronous = NORMAL")
        with transaction(self._sql) as sql:
            version = sql.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and not sql.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
                for statement in (*_TABLES, f"PRAGMA user_version = {_VERSION}"):
                    sql.execute(statement)
            elif version != _VERSION:
                raise sqlite3.DatabaseError(f"expected version {_VERSION}, found {version} in {path.name}")

    def close(self) -> None:
        """Lets go of both files."""
        self._sql.close()
        if self._releases >= 0:
            os.close(self._releases)
            self._releases = -1

    def of(self, site: str) -> SiteLedger:
        """The ledger of one site."""
        return SiteLedger(self, site)

    def open_plan(
        self, site: str, plan_hash: str, release: GaussianRelease, terms: str, rival: Callable[[str], bool]
    ) -> None:
        """As `Ledger.open_plan`, of one site."""
        number = self._number(site)
        with self._write() as sql:
            rows = sql.execute(
                "SELECT plan_hash, noise_multiplier, sampling_rate, steps, terms"
                " FROM plans JOIN terms USING (plan_hash) WHERE site = ?",
                (number,),
            ).fetchall()
            for known, noise, rate, steps, _ in rows:
                if known == plan_hash:
                    if (noise, rate, steps) != (
                        release.noise_multiplier,
                        release.sampling_rate,
                        release.steps,
                    ):
                        raise ClientError(
                            "plan_differs", f"Plan {plan_hash[:12]} was opened with another schedule."
                        )
                    return
            if any(rival(other) for *_, other in rows):
                raise ClientError("plan_differs", "Another plan was made of the same offer, and is charged.")
            if self._ceiling_epsilon is not None:
                earlier = [
                    GaussianRelease(noise_multiplier=n, sampling_rate=q, steps=t) for _, n, q, t, _ in rows
                ]
                refuse_overrun(earlier, release, self._ceiling_epsilon, self.delta)
            sql.execute("INSERT OR IGNORE INTO terms VALUES (?, ?)", (plan_hash, terms))
            sql.execute(
                "INSERT INTO plans VALUES (?, ?, ?, ?, ?, 0, 0, 0)",
                (plan_hash, number, release.noise_multiplier, release.sampling_rate, release.steps),
            )
            self._plans_new = True

    def reserve(
        self, sites: Iterable[str], plan_hash: str, round_number: int, base_sha256: str, steps: int
    ) -> dict[str, bytes | ClientError | None]:
        """As `Ledger.reserve`, of many sites in one transaction: what it gives or raises, by site."""
        if steps < 0:
            raise ClientError("malformed", f"A round takes 0 steps or more, not {steps}.")
        answers: dict[str, bytes | ClientError | None] = {}
        numbers = {site: self._numbers.get(site, -1) for site in sites}
        with self._write(on_disk=self._plans_new) as sql:
            begun = self._rounds(sql, numbers.values(), plan_hash, round_number)
            fresh = [number for number in numbers.values() if number not in begun]
            left = self._left(sql, fresh, plan_hash)
            for site, number in numbers.items():
                try:
                    if number in begun:
                        known = begun[number]
                        answers[site] = self._known(known, plan_hash, round_number, base_sha256, steps)
                    else:
                        _refuse_more(left.get(number), plan_hash, steps)
                        answers[site] = None
                except ClientError as error:
                    answers[site] = error
            fresh = [number for number in fresh if left.get(number, -1) >= steps]
            rows = [(plan_hash, round_number, number, base_sha256, steps) for number in fresh]
            sql.executemany("INSERT INTO rounds VALUES (?, ?, ?, ?, ?, NULL, NULL, NULL)", rows)
            sql.execute(
                "UPDATE plans SET taken = taken + ?, begun = begun + 1"
                f" WHERE plan_hash = ? AND site IN {_THESE}",
                (steps, plan_hash, json.dumps(fresh)),
            )
        self._plans_new = False
        return answers

    def complete(
        self, releases: Mapping[str, Packed], plan_hash: str, round_number: int, base_sha256: str
    ) -> None:
        """As `Ledger.complete`, of many sites in one transaction."""
        rows, fresh = [], []
        numbers = {site: self._numbers.get(site, -1) for site in releases}
        with self._write() as sql:
            begun = self._rounds(sql, numbers.values(), plan_hash, round_number)
            for site, release in releases.items():
                number = numbers[site]
                if number not in begun:
                    raise ClientError(
                        "round_unknown", f"Round {round_number} was not reserved: reserve before compute."
                    )
                refuse_other_base(begun[number][0], base_sha256, plan_hash, round_number)
                if begun[number][2] is None:
                    fresh.append(number)
                data = release.data
                place = number * -(-len(data) // _ALIGN) * _ALIGN
                # What was complete and is made again was lost, so nobody has it: the new one counts.
                os.pwrite(self._releases, data, place)
                rows.append((release.sha256, place, len(data), plan_hash, round_number, number))
            sql.executemany(
                "UPDATE rounds SET sha256 = ?, place = ?, bytes = ?"
                " WHERE plan_hash = ? AND round = ? AND site = ?",
                rows,
            )
            sql.execute(
                f"UPDATE plans SET complete = complete + 1 WHERE plan_hash = ? AND site IN {_THESE}",
                (plan_hash, json.dumps(fresh)),
            )

    def plans(self, site: str) -> tuple[PlanEntry, ...]:
        """As `Ledger.plans`, of one site."""
        rows = self._reading().execute(
            "SELECT plan_hash, noise_multiplier, sampling_rate, steps, terms, taken, begun, complete"
            " FROM plans JOIN terms USING (plan_hash) WHERE site = ? ORDER BY terms.rowid",
            (self._numbers.get(site, -1),),
        )
        return tuple(PlanEntry.of(*row) for row in rows)

    def knows(self, site: str) -> bool:
        """Whether the site was ever asked to take a plan."""
        return site in self._numbers

    def _known(self, found: _Round, plan_hash: str, round_number: int, base: str, steps: int) -> bytes | None:
        """What is known of a round that was begun; raises ClientError if it was begun otherwise."""
        refuse_other_base(found[0], base, plan_hash, round_number)
        if found[1] != steps:
            raise ClientError("plan_differs", f"Round {round_number} was begun with {found[1]} steps.")
        return self._read(*found[2:])

    def _read(self, sha256: str | None, place: int | None, size: int | None) -> bytes | None:
        """A release, unless another has taken its place."""
        if sha256 is None or place is None or size is None:
            return None
        data = os.pread(self._releases, size, place)
        return data if hashlib.sha256(data).hexdigest() == sha256 else None

    def _rounds(
        self, sql: sqlite3.Connection, numbers: Iterable[int], plan_hash: str, round_number: int
    ) -> dict[int, _Round]:
        """The round of those of some sites that have begun it, by the number of the site."""
        rows = sql.execute(
            "SELECT site, base_sha256, steps, sha256, place, bytes FROM rounds"
            f" WHERE plan_hash = ? AND round = ? AND site IN {_THESE}",
            (plan_hash, round_number, json.dumps(list(numbers))),
        )
        return {row[0]: row[1:] for row in rows}

    def _left(self, sql: sqlite3.Connection, numbers: Sequence[int], plan_hash: str) -> dict[int, int]:
        """The steps that are left to some sites of those that a plan was charged for."""
        rows = sql.execute(
            f"SELECT site, steps - taken FROM plans WHERE plan_hash = ? AND site IN {_THESE}",
            (plan_hash, json.dumps(numbers)),
        )
        return dict(rows.fetchall())

    def _number(self, site: str) -> int:
        if site not in self._numbers:
            with self._write() as sql:
                sql.execute("INSERT OR IGNORE INTO sites (name) VALUES (?)", (site,))
                found = sql.execute("SELECT number FROM sites WHERE name = ?", (site,)).fetchone()
            self._numbers[site] = int(found[0])
        return self._numbers[site]

    def _reading(self) -> sqlite3.Connection:
        if self._process != os.getpid():
            raise ClientError(
                "ledger_unreadable", "The ledgers were open when this process was forked; open them after it."
            )
        return self._sql

    def _write(self, *, on_disk: bool = False) -> _Writing:
        return _Writing(self._reading(), on_disk=on_disk)


def _refuse_more(left: int | None, plan_hash: str, steps: int) -> None:
    """Raises ClientError if a plan is not open at a site, or fewer steps of it are left."""
    if left is None:
        raise ClientError("plan_unknown", f"Plan {plan_hash[:12]} was never opened at this site.")
    if steps > left:
        raise ClientError(
            "steps_exceeded", f"Of the steps that the plan was charged for {left} are left, not {steps}."
        )


class _Writing:
    """A transaction; with `on_disk` what it commits, and all before it, is on the disk afterwards."""

    def __init__(self, sql: sqlite3.Connection, *, on_disk: bool) -> None:
        self._sql, self._on_disk = sql, on_disk
        self._transaction = transaction(sql)

    def __enter__(self) -> sqlite3.Connection:
        if self._on_disk:
            self._sql.execute("PRAGMA synchronous = FULL")
        return self._transaction.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._transaction.__exit__(kind, error, trace)
        finally:
            if self._on_disk:
                self._sql.execute("PRAGMA synchronous = NORMAL")


class SiteLedger:
    """One site's part of a shared ledger, with what a federation needs of a `client.ledger.Ledger`."""

    def __init__(self, file: SharedLedger, site: str) -> None:
        self.file, self.site = file, site

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file, with the ledgers of all its sites."""
        self.file.close()

    @property
    def is_known(self) -> bool:
        """Whether the site was ever asked to take a plan."""
        return self.file.knows(self.site)

    def open_plan(
        self,
        plan_hash: str,
        release: GaussianRelease,
        terms: str = "",
        *,
        rival: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.file.open_plan(self.site, plan_hash, release, terms, rival)

    def plans(self) -> tuple[PlanEntry, ...]:
        return self.file.plans(self.site)

    def spent(self, delta: float | None = None) -> float:
        releases = [entry.release for entry in self.plans()]
        return lifetime_epsilon(releases, self.file.delta if delta is None else delta)


def releases_path(ledgers: Path) -> Path:
    """The file of the last releases beside a shared ledger."""
    return ledgers.with_name("releases.bin")
