"""A broker for trying out: the installed Mosquitto with TLS, a certificate and a password of its own.

It is for a laptop and for tests: one account that may do everything, listening on loopback. A hospital's
broker is its own, with an account and an access list for each gateway (docs/feeds-streams.md).
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from conf.errors import ConfigError
from trust.authority import Authority
from trust.identity import Identity
from trust.keys import PUBLIC, key_to_pem, new_key, signing_request, write_file

USER: Final = "twinward"
_NAME: Final = "trial-broker"
_DAYS: Final = 365.0
_ITERATIONS: Final = 101  # Mosquitto's own
_READY_S: Final = 10.0
_STOP_S: Final = 5.0


@dataclass(slots=True)
class TrialBroker:
    """A Mosquitto in a folder; started and stopped as often as one likes, it keeps sessions and messages.

    Attributes:
        folder: of certificates, password and state; made on first use.
        port: on loopback.
        asks_certificates: whether clients must show a certificate of its authority (`client_certificate`).
        verbose: whether its log tells every packet, with topics, which may name patients.
    """

    folder: Path
    port: int
    asks_certificates: bool = False
    verbose: bool = False
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def ca_file(self) -> Path:
        """The authority of its certificate."""
        return self.folder / "authority" / "authority.pem"

    @property
    def password_file(self) -> Path:
        """The password of `USER`."""
        return self.folder / "password"

    @property
    def pid(self) -> int:
        """Of the process; 0 if none runs."""
        return self._process.pid if self._process else 0

    @property
    def is_running(self) -> bool:
        """Whether the process that was started is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts it; returns when it accepts connections.

        Raises:
            ConfigError: Mosquitto is not installed, or did not start.
        """
        program = mosquitto()
        self._prepare()
        with (self.folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the installed program with our own file
                [program, "-c", str(self.folder / "mosquitto.conf")],
                stdout=log,
                stderr=log,
            )
        end_s = time.monotonic() + _READY_S
        while not _accepts(self.port):
            if self._process.poll() is not None or time.monotonic() > end_s:
                self.stop()
                raise ConfigError(
                    f"Mosquitto did not start on port {self.port}; see {self.folder / 'broker.log'}.",
                )
            time.sleep(0.02)

    def stop(self) -> None:
        """Stops it, orderly; what it holds is on disk."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def wait(self) -> int:
        """Waits for its end; gives its exit code."""
        return self._process.wait() if self._process else 0

    def client_certificate(self, name: str) -> tuple[Path, Path]:
        """(certificate, key) of a client, signed by its authority."""
        self._prepare()
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        if not certificate.exists():
            private = new_key()
            now = datetime.now(UTC)
            identity = Identity(federation=_NAME, role="site", name=name)
            issued = Authority.open(self.ca_file.parent).issue(
                signing_request(private, name), identity, _DAYS, now=now
            )
            write_file(key, key_to_pem(private))
            write_file(certificate, issued, mode=PUBLIC)
        return certificate, key

    def _prepare(self) -> None:
        """Makes certificates and password once, the configuration each time."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (self.folder / "broker.pem").exists():
            self._certify()
        if not self.password_file.exists():
            write_file(self.password_file, f"{secrets.token_urlsafe(18)}\n".encode())
        password = self.password_file.read_text(encoding="utf-8").strip()
        write_file(self.folder / "accounts", _account(USER, password), replace=True)
        write_file(self.folder / "mosquitto.conf", self._configuration().encode(), replace=True)

    def _certify(self) -> None:
        shutil.rmtree(self.ca_file.parent, ignore_errors=True)
        now, key = datetime.now(UTC), new_key()
        authority = Authority.create(self.ca_file.parent, _NAME, now=now)
        identity = Identity(federation=_NAME, role="coordinator", name=_NAME)
        certificate = authority.issue_server(
            signing_request(key, _NAME), identity, ["localhost", "127.0.0.1"], _DAYS, now=now
        )
        write_file(self.folder / "broker.key", key_to_pem(key), replace=True)
        write_file(self.folder / "broker.pem", certificate, mode=PUBLIC, replace=True)

    def _configuration(self) -> str:
        lines = [
            f"listener {self.port} 127.0.0.1",
            f"certfile {self.folder / 'broker.pem'}",
            f"keyfile {self.folder / 'broker.key'}",
            f"cafile {self.ca_file}",
            "tls_version tlsv1.2",
            f"require_certificate {'true' if self.asks_certificates else 'false'}",
            "allow_anonymous false",
            f"password_file {self.folder / 'accounts'}",
            "persistence true",
            f"persistence_location {self.folder}/",
            "autosave_interval 1",  # seconds; a SIGKILL may cost what Mosquitto took since then
            "max_queued_messages 0",  # the default of 1,000 drops what comes while a site is away
            "max_inflight_messages 2000",
            "retain_available true",
        ]
        if self.verbose:
            lines.append("log_type all")
        if os.geteuid() == 0:
            lines.append("user root")  # else it would give up its rights, and with them its folder
        return "\n".join([*lines, ""])


def mosquitto() -> str:
    """The program's path.

    Raises:
        ConfigError: it is not installed.
    """
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise ConfigError(
            "Mosquitto is not installed: apt-get install mosquitto, or brew install mosquitto.",
        )
    return found


def _account(user: str, password: str) -> bytes:
    """A line of Mosquitto's password file ($7$: PBKDF2-SHA512)."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    parts = [base64.b64encode(part).decode() for part in (salt, digest)]
    return f"{user}:$7${_ITERATIONS}${parts[0]}${parts[1]}\n".encode()


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
