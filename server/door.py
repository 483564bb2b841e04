"""Who may connect: from a certificate that TLS has checked to a member that is active now.

The hospitals' listener accepts certificates of the federation's authority and of the authorities
that hospitals brought themselves. TLS tells only that one of them signed; the rest is checked here, on
connecting and on every message, against the list of members on disk.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography import x509

from server.members import Members
from trust.authority import federation_of, issued_by, serial_of, to_pem
from trust.errors import TrustError
from trust.identity import Identity, identity_of, load_certificate

_log = logging.getLogger(f"twinward.{__name__}")
_MOST_KEPT: Final = 10_000
POLL_S: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """An identity, or the code of the check that failed."""

    identity: Identity | None
    code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    certificate: x509.Certificate
    identity: Identity
    ours: bool


class Door:
    """Judges certificates of one federation; threads may share it.

    Args:
        authority: of the federation.
        clock: the time in UTC.
    """

    def __init__(
        self,
        members: Members,
        authority: x509.Certificate,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._members = members
        self._authority = authority
        self._federation = federation_of(authority)
        self._clock = clock
        self._read: dict[bytes, _Read] = {}

    def admit(self, certificate: bytes) -> Identity | None:
        """The identity of a member that is active now, else None."""
        return self.judge(certificate).identity

    def judge(self, certificate: bytes) -> Verdict:
        """The verdict on a certificate, PEM or DER.

        Checks, in this order, each with its code and what it stops:
        1. malformed: no certificate with exactly one identity; reading two of them differently.
        2. other_federation: a member of another federation that shares an authority by accident.
        3. expired, not_yet_valid: also on a stream that was opened in time.
        4. other_authority: nobody that may speak for this name issued it: an authority of a
           hospital's own that certifies a neighbour, an operator, or another authority.
        5. revoked, left, unknown: the name, or this certificate of it, does not count (any more).
        6. other_role: it says another role than the list of members does.
        """
        try:
            read = self._parsed(certificate)
        except TrustError:
            return Verdict(identity=None, code="malformed")
        code = self._fault(read)
        return Verdict(identity=None if code else read.identity, code=code)

    def roots_pem(self) -> bytes:
        """The authorities that TLS accepts on the hospitals' listener; this class narrows them down."""
        own = self._members.pki()
        return b"".join(to_pem(certificate) for certificate in (self._authority, *own))

    def _fault(self, read: _Read) -> str:
        now, identity = self._clock(), read.identity
        if identity.federation != self._federation:
            return "other_federation"
        if now > read.certificate.not_valid_after_utc:
            return "expired"
        if now < read.certificate.not_valid_before_utc:
            return "not_yet_valid"
        if not read.ours and not self._may_certify(read):
            return "other_authority"
        member = self._members.member(identity.name)
        if member is None:
            return "unknown"
        if member.state != "active":
            return member.state
        if member.role != identity.role:
            return "other_role"
        counts = not read.ours or self._members.active(serial_of(read.certificate))
        return "" if counts else "revoked"

    def _may_certify(self, read: _Read) -> bool:
        if read.identity.role not in ("site", "receiver"):
            return False
        return any(issued_by(read.certificate, own) for own in self._members.pki(read.identity.name))

    def _parsed(self, certificate: bytes) -> _Read:
        read = self._read.get(certificate)
        if read is None:
            loaded = load_certificate(certificate)
            ours = issued_by(loaded, self._authority)
            read = _Read(certificate=loaded, identity=identity_of(certificate), ours=ours)
            if len(self._read) >= _MOST_KEPT:
                self._read.clear()
            self._read[certificate] = read
        return read


def watch_ended(
    members: Members, on_ended: Callable[[str], None], *, poll_s: float = POLL_S
) -> Callable[[], None]:
    """Calls back with each name that is revoked or leaves, also when another process writes it.

    Args:
        on_ended: cuts what that member has open; called from a thread of this watch.
        poll_s: how long it takes at most to notice, seconds.

    Returns:
        A function that ends the watch.
    """
    stopped = threading.Event()
    seen = members.ended()

    def run() -> None:
        nonlocal seen
        while not stopped.wait(poll_s):
            now = members.ended()
            for name in sorted(now - seen):
                try:
                    on_ended(name)
                except Exception:  # noqa: BLE001  one stream that cannot be cut must not keep others open
                    _log.exception("Cutting the connection of %s failed.", name)
            seen = now

    thread = threading.Thread(target=run, name="watch-members", daemon=True)
    thread.start()

    def stop() -> None:
        stopped.set()
        thread.join()

    return stop
