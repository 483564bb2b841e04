"""A coordinator's folder: what lies where, its addresses, and the lock that lets one process serve it.

coordinator.json       federation and addresses
authority/             the certificate authority of the federation
server.key, server.pem what the listeners show
signing.key            with which plans, models and heads of the audit log are signed
operators/<name>/      what an operator takes away: key, certificate, address
members.sqlite         invitations, members, operators
runs.sqlite            the queue
runs/<id>/             one `server.store.Store` per run
registry.sqlite        models
audit.sqlite           who did what, when and why
transfers/             partial transfers of the link
lock                   held by the process that serves the folder
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from server.errors import ServerError

HOSPITALS_PORT, ENROLMENT_PORT, OPERATORS_PORT, HEALTH_PORT = 7443, 7444, 7445, 7446


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What coordinator.json holds.

    Attributes:
        federation: name, part of every identity.
        host: DNS name or address under which hospitals and operators reach this machine.
        bind: address that the three listeners listen on; all interfaces by default.
        hospitals_port, enrolment_port, operators_port: of the three listeners.
        health_port: of health and metrics, on loopback only; 0 for none.
    """

    federation: str
    host: str
    bind: str = "0.0.0.0"  # noqa: S104  hospitals come from outside
    hospitals_port: int = HOSPITALS_PORT
    enrolment_port: int = ENROLMENT_PORT
    operators_port: int = OPERATORS_PORT
    health_port: int = HEALTH_PORT

    def __post_init__(self) -> None:
        ports = (self.hospitals_port, self.enrolment_port, self.operators_port, self.health_port)
        if not all(0 <= port <= 65535 for port in ports) or 0 in ports[:3]:
            raise ServerError(f"Expected ports from 1 to 65535 (health_port: 0 for none); {ports} came.")
        listening = [port for port in ports if port]
        if len(set(listening)) != len(listening):
            raise ServerError(f"Expected a port of its own for each listener; {ports} came.")

    @property
    def hospitals(self) -> str:
        """host:port that hospitals dial."""
        return _address(self.host, self.hospitals_port)

    @property
    def enrolment(self) -> str:
        """host:port that a hospital dials once, to join."""
        return _address(self.host, self.enrolment_port)

    @property
    def operators(self) -> str:
        """host:port that operators dial."""
        return _address(self.host, self.operators_port)

    def bound(self, port: int) -> str:
        """Where a listener listens."""
        return _address(self.bind, port)


class CoordinatorHome:
    """The folder of one coordinator; made by `create`, which refuses a folder that is one already."""

    def __init__(self, directory: Path) -> None:
        """A folder that exists, or will; nothing is read yet."""
        self.directory = directory.expanduser().absolute()
        self.settings_path = self.directory / "coordinator.json"
        self.authority = self.directory / "authority"
        self.server_key = self.directory / "server.key"
        self.server_certificate = self.directory / "server.pem"
        self.signing_key = self.directory / "signing.key"
        self.operators = self.directory / "operators"
        self.members = self.directory / "members.sqlite"
        self.queue = self.directory / "runs.sqlite"
        self.questions = self.directory / "questions.sqlite"
        self.runs = self.directory / "runs"
        self.registry = self.directory / "registry.sqlite"
        self.audit = self.directory / "audit.sqlite"
        self.transfers = self.directory / "transfers"
        self.lock_path = self.directory / "lock"

    @classmethod
    def create(cls, directory: Path, settings: Settings) -> CoordinatorHome:
        """A new home with its settings written, readable by this user alone.

        Raises:
            ServerError: the folder is a coordinator's already.
        """
        home = cls(directory)
        if home.settings_path.exists():
            raise ServerError(f"Expected a folder without a coordinator; {home.directory} has one.")
        home.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.save(settings)
        return home

    def settings(self) -> Settings:
        """What coordinator.json says.

        Raises:
            ServerError: it is absent or is not of this form; says which key is at fault.
        """
        try:
            data = json.loads(self.settings_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ServerError(
                f"{self.directory} is no coordinator's folder: found one with `twinward coordinator init`."
            ) from None
        except ValueError:
            raise ServerError(f"Expected JSON in {self.settings_path}; it does not parse.") from None
        return _settings(data, self.settings_path)

    def save(self, settings: Settings) -> None:
        """Writes coordinator.json whole or not at all."""
        unfinished = self.settings_path.with_suffix(".new")
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(settings), indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.settings_path)

    def run_directory(self, run: str) -> Path:
        """The folder of one run's store."""
        return self.runs / run

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while serving; the kernel lets go of it whatever ends the process.

        Raises:
            ServerError: another process serves this folder.
        """
        descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ServerError(
                    f"Another process serves {self.directory}; two coordinators on one folder would fork it."
                ) from None
            yield
        finally:
            os.close(descriptor)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _settings(data: object, path: Path) -> Settings:
    known = {field.name: field.type for field in fields(Settings)}
    if not isinstance(data, dict) or not {"federation", "host"} <= set(data) <= set(known):
        raise ServerError(f"Expected in {path} federation, host and none but {sorted(known)}.")
    for name, value in data.items():
        wanted = int if str(known[name]) == "int" else str
        if type(value) is not wanted:
            raise ServerError(f"Expected {wanted.__name__} at {name} in {path}; {type(value).__name__} came.")
    return Settings(**data)
