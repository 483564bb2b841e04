"""An authority and members with real certificates, and both ends of the link, for the tests of the link."""

from __future__ import annotations

import datetime as dt
import ipaddress
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from flwr.app import Message

from link.coordinator import LinkServer, ServerSettings
from link.frames import Limits
from link.hospital import HospitalLink, HospitalSettings
from link.session import Pace
from link.tls import Credentials
from trust.errors import TrustError
from trust.identity import Identity, identity_of

FEDERATION = "heart"
QUICK = Pace(beat_s=0.2, check_s=0.1)
"""Who is silent for a minute counts as dead: not a process that others keep from running."""
IMPATIENT = Pace(beat_s=0.2, dead_after_s=2.0, check_s=0.1)
"""For tests whose line falls silent."""
PATIENCE_S = 60.0


@dataclass
class Authority:
    """Signs whatever it is asked to, also what a real one would not."""

    name: str = FEDERATION
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.certificate = self._sign(
            self.key, self.name, [x509.BasicConstraints(ca=True, path_length=None)], days=10
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def coordinator(self) -> Credentials:
        names = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
            x509.UniformResourceIdentifier(f"twinward://{FEDERATION}/coordinator/main"),
        ]
        return self.issue("coordinator", names, ExtendedKeyUsageOID.SERVER_AUTH)

    def member(self, name: str, role: str = "site", days: float = 1) -> Credentials:
        uri = x509.UniformResourceIdentifier(f"twinward://{FEDERATION}/{role}/{name}")
        return self.issue(name, [uri], ExtendedKeyUsageOID.CLIENT_AUTH, days)

    def issue(
        self, name: str, names: list[x509.GeneralName], use: x509.ObjectIdentifier, days: float = 1
    ) -> Credentials:
        key = ec.generate_private_key(ec.SECP256R1())
        extensions = [
            x509.SubjectAlternativeName(names),
            x509.BasicConstraints(ca=False, path_length=None),
            x509.ExtendedKeyUsage([use]),
        ]
        pem = self._sign(key, name, extensions, days).public_bytes(serialization.Encoding.PEM)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Credentials(key=private, certificate=pem, authorities=self.pem)

    def _sign(
        self,
        key: ec.EllipticCurvePrivateKey,
        name: str,
        extensions: list[x509.ExtensionType],
        days: float,
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=days))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, isinstance(extension, x509.BasicConstraints))
        return builder.sign(self.key, hashes.SHA256())


class Federation:
    """A listener on loopback, and hospitals that connect to it."""

    def __init__(
        self,
        root: Path,
        *,
        limits: Limits | None = None,
        pace: Pace = QUICK,
        greet_s: float = PATIENCE_S,
        **options: object,
    ) -> None:
        self.root = root
        self.authority = Authority()
        self.limits, self.pace = limits or Limits(), pace
        self.revoked: set[str] = set()
        self.events: list[tuple[str, str, str]] = []
        self.happened = threading.Condition()
        self.links: list[HospitalLink] = []
        mine = self.authority.coordinator()
        settings = ServerSettings(
            address="127.0.0.1:0",
            credentials=lambda: mine,
            transfers=root / "coordinator",
            limits=self.limits,
            pace=pace,
            greet_s=greet_s,
        )
        self.server = LinkServer(settings, self.admit, observe=self.observe, **options)  # type: ignore[arg-type]  # passed on
        self.port = self.server.start()

    def admit(self, certificate: bytes) -> Identity | None:
        try:
            identity = identity_of(certificate)
        except TrustError:
            return None
        return None if identity.name in self.revoked else identity

    def observe(self, event: str, site: str, code: str) -> None:
        with self.happened:
            self.events.append((event, site, code))
            self.happened.notify_all()

    def wait_for(self, event: str, site: str, code: str | None = None, times: int = 1) -> bool:
        def there() -> bool:
            found = [e for e in self.events if e[:2] == (event, site) and code in (None, e[2])]
            return len(found) >= times

        with self.happened:
            return self.happened.wait_for(there, PATIENCE_S)

    def hospital(
        self,
        name: str,
        handle: Callable[[Message], Message],
        *,
        port: int | None = None,
        credentials: Credentials | None = None,
        wait: bool = True,
        **options: object,
    ) -> HospitalLink:
        mine = credentials or self.authority.member(name)
        keys = ("proxy", "server_name")
        settings = HospitalSettings(
            address=f"127.0.0.1:{port or self.port}",
            credentials=lambda: mine,
            transfers=self.root / "hospitals" / name,
            first_wait_s=0.05,
            most_wait_s=0.4,
            greet_s=5.0,
            limits=self.limits,
            pace=self.pace,
            **{key: str(options.pop(key)) for key in keys if key in options},
        )
        link = HospitalLink(settings, handle, **options)  # type: ignore[arg-type]  # passed on
        self.links.append(link)
        link.start()
        if wait:
            assert link.wait_until_connected(PATIENCE_S), link.state
        return link

    def close(self) -> None:
        for link in self.links:
            link.stop(wait=False)
        self.server.stop(0.1)


def wait_until(holds: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends_s
        time.sleep(0.01)


@contextmanager
def federation(root: Path, **options: object) -> Iterator[Federation]:
    """A federation that is taken down at the end."""
    there = Federation(root, **options)  # type: ignore[arg-type]  # passed on
    try:
        yield there
    finally:
        there.close()
