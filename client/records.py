"""What a hospital writes into its audit log; durable on return, and before what it records happens.

No patient's value goes in: hashes, numbers of rounds, rounded numbers of patients, codes and the texts
of our own errors. If the log cannot be written, what it would record does not happen.
"""

from __future__ import annotations

import sqlite3
from typing import Final, Protocol

from client import anchor
from client.errors import ClientError
from client.home import SiteHome
from client.ledger import Ledger
from client.policy import Policy, parse_policy, policy_bytes
from conf.errors import TwinwardError
from trust.audit import AuditLog
from trust.digest import sha256 as digest_of
from trust.errors import TrustError

MOST_REFUSALS_MIN: Final = 60

Fact = str | int | float | bool


class Records(Protocol):
    """Where a hospital's door writes."""

    def write(self, kind: str, *, who: str, why: str = "", **facts: Fact) -> None:
        """Records one thing durably; raises ClientError audit_failed."""
        ...

    def policy(self, sha256: str, *, who: str) -> None:
        """Records the policy's bytes, if they are others than those recorded last; raises audit_failed."""
        ...

    def check(self, ledger: Ledger) -> None:
        """Returns if the ledger is the one of these records; raises ClientError ledger_restored."""
        ...

    def close(self) -> None:
        """Lets go of the file."""
        ...


class AuditRecords:
    """Records in the site's audit log."""

    def __init__(self, home: SiteHome) -> None:
        try:
            self._log = AuditLog(home.audit)
        except (TwinwardError, sqlite3.Error, OSError) as error:
            raise _failed(error) from None

    def write(self, kind: str, *, who: str, why: str = "", **facts: Fact) -> None:
        try:
            self._log.append(kind, who=who, why=why, **facts)
        except (TwinwardError, sqlite3.Error, OSError) as error:
            raise _failed(error) from None

    def policy(self, sha256: str, *, who: str) -> None:
        try:
            note_policy(self._log, sha256, who=who)
        except (TwinwardError, sqlite3.Error, OSError) as error:
            raise _failed(error) from None

    def check(self, ledger: Ledger) -> None:
        try:
            anchor.check(ledger, self._log)
        except (TrustError, sqlite3.Error, OSError) as error:
            raise _failed(error) from None

    def close(self) -> None:
        self._log.close()


class Refusals:
    """How many refusals of the last minute are recorded one by one."""

    def __init__(self) -> None:
        self._since_s, self._told, self._untold = 0.0, 0, 0

    def take(self, now_s: float) -> bool:
        """Whether this one is; one that is not is counted."""
        if not 0.0 <= now_s - self._since_s < 60.0:
            self._since_s, self._told = now_s, 0
        self._told += 1
        if self._told > MOST_REFUSALS_MIN:
            self._untold += 1
        return self._told <= MOST_REFUSALS_MIN

    def untold(self) -> int:
        """How many were not recorded since this was asked last."""
        untold, self._untold = self._untold, 0
        return untold


def note_policy(log: AuditLog, sha256: str, *, who: str) -> None:
    """Records the SHA-256 of the policy's bytes with the one before, if it is another.

    Raises:
        TrustError: the log cannot be written; nothing may be done by the new policy then.
    """
    last = log.last("policy_changed")
    before = "" if last is None else str(last.facts["policy"])
    if sha256 != before:
        log.append("policy_changed", who=who, policy=sha256, before=before)


def recorded_policy(home: SiteHome) -> Policy:
    """The policy as it is on disk, which stands in the audit log before anything is done by it.

    Raises:
        ClientError: policy_unreadable or audit_failed.
    """
    data = policy_bytes(home.policy)
    records = AuditRecords(home)
    try:
        records.policy(digest_of(data), who=home.settings().site)
    finally:
        records.close()
    return parse_policy(data)


def _failed(error: Exception) -> ClientError:
    return ClientError(
        "audit_failed",
        f"The audit log cannot be written ({type(error).__name__}); nothing leaves without it.",
    )
