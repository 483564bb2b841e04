"""A founded federation with its enrolment listener on loopback, for tests: real files, TLS and gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from link.tls import Credentials
from server.door import Door
from server.enrolment import EnrolmentDesk
from server.enrolment_listener import EnrolmentListener, Limits
from server.founding import found, listener_credentials
from server.home import CoordinatorHome, Settings
from server.members import Members
from trust.authority import Authority
from trust.identity import Role
from trust.invitation import Invitation
from trust.signing import Signer


@dataclass(slots=True)
class Clock:
    """The coordinator's clock, which a test moves."""

    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __call__(self) -> datetime:
        return self.now

    def ahead(self, **span: float) -> None:
        self.now += timedelta(**span)


@dataclass(slots=True)
class Founded:
    home: CoordinatorHome
    authority: Authority
    members: Members
    desk: EnrolmentDesk
    door: Door
    clock: Clock
    port: int
    signer: Signer
    recorded: list[tuple[str, str, str]]

    def invite(
        self, site: str = "north", role: Role = "site", *, days: float = 7, replace: bool = False
    ) -> Invitation:
        expires = self.clock() + timedelta(days=days)
        secret = self.members.invite(site, role, expires=expires, replace=replace)
        return Invitation(
            address=f"127.0.0.1:{self.port}",
            fingerprint=self.authority.fingerprint,
            site=site,
            role=role,
            secret=secret,
            expires=int(expires.timestamp()),
        )


@contextmanager
def founded(directory: Path, *, limits: Limits | None = None, federation: str = "net") -> Iterator[Founded]:
    """A federation in `directory`, whose desk answers on a free port of 127.0.0.1."""
    clock, recorded = Clock(), []
    settings = Settings(federation=federation, host="127.0.0.1", bind="127.0.0.1")
    home = found(directory, settings, operator="founder", now=clock())
    authority, signer = Authority.open(home.authority), Signer.load(home.signing_key)

    def record(kind: str, *, who: str, why: str = "", **facts: str | int) -> None:
        recorded.append((kind, who, why))

    def current() -> Credentials:
        return listener_credentials(home, authority, now=clock())

    with Members(home.members) as members:
        desk = EnrolmentDesk(
            members=members,
            authority=authority,
            address=settings.hospitals,
            signing_keys={signer.key_id: signer.public_hex},
            record=record,
            clock=clock,
        )
        listener = EnrolmentListener(desk, address="127.0.0.1:0", current=current, limits=limits)
        try:
            yield Founded(
                home=home,
                authority=authority,
                members=members,
                desk=desk,
                door=Door(members, authority.certificate, clock=clock),
                clock=clock,
                port=listener.port,
                signer=signer,
                recorded=recorded,
            )
        finally:
            listener.stop(0)
