"""A hospital's folder: what lies where, its settings, and the lock that lets one process run it.

site.json              federation, name, address of the coordinator, proxy, data
key.pem                the site's private key; it never leaves
certificate.pem        who the site is, signed by the federation's authority (or the hospital's own)
authority.pem          the authority that vouches for the coordinator
coordinator_keys.json  public keys with which plans and models are signed
policy.toml            what the hospital's people allow
secret.key             32 bytes from which noise and draws follow; it never leaves
ledger.sqlite          what was released, and what it cost
audit.sqlite           who did what, when and why
audit.key              with which heads of that log are signed
inbox.sqlite           plans that were offered, and what people said to them
models/                global, site and personal models
transfers/             partial transfers of the link
declared.json          how many patients the site says that it has, by task
status.json            how the running process stands
lock                   held by the process that runs the site

A site with a store (docs/site.md) has beside these:

store/                 the encrypted store of its patients, and its backups
vault.json             the store's key, wrapped
store.toml             how the store is unlocked, and how its process works
feeds.toml             where observations come from
access.toml            who of this machine's users may do what
alerts.toml            rules of alerts, and who is told of them
codes.toml             codes that the catalogue lacks
run/door               the socket at which the site's process is asked
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from client.errors import ClientError
from privacy.noise import new_site_secret
from trust.errors import TrustError
from trust.keys import read_private, write_file
from trust.signing import Signer

SECRET_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSettings:
    """What site.json holds.

    Attributes:
        federation, site: of the identity in the certificate.
        address: host:port of the coordinator that this site dials.
        role: "site", or "receiver" for a member that only receives models.
        proxy: http://host:port of an HTTP proxy that tunnels (CONNECT); None dials directly.
        data_path: folder that holds the site's observations and patients; "store" is the site's own store,
            and so is None where there is one; None for a receiver.
        timezone: IANA zone of times that carry none; they are refused without it.
        device: auto, cpu or cuda.
    """

    federation: str
    site: str
    address: str
    role: str = "site"
    proxy: str | None = None
    data_path: str | None = None
    timezone: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.role not in ("site", "receiver"):
            raise _unreadable(f"Expected role site or receiver in site.json; {self.role!r} came.")
        if self.device not in ("auto", "cpu", "cuda"):
            raise _unreadable(f"Expected device auto, cpu or cuda in site.json; {self.device!r} came.")


class SiteHome:
    """The folder of one hospital; made by `create`, which refuses a folder that is one already."""

    def __init__(self, directory: str | Path) -> None:
        """A folder that exists, or will; nothing is read yet."""
        self.directory = Path(directory).expanduser().absolute()
        self.settings_path = self.directory / "site.json"
        self.key = self.directory / "key.pem"
        self.certificate = self.directory / "certificate.pem"
        self.authority = self.directory / "authority.pem"
        self.coordinator_keys_path = self.directory / "coordinator_keys.json"
        self.policy = self.directory / "policy.toml"
        self.secret_path = self.directory / "secret.key"
        self.ledger = self.directory / "ledger.sqlite"
        self.audit = self.directory / "audit.sqlite"
        self.audit_key = self.directory / "audit.key"
        self.inbox = self.directory / "inbox.sqlite"
        self.models = self.directory / "models"
        self.transfers = self.directory / "transfers"
        self.declared = self.directory / "declared.json"
        self.status_path = self.directory / "status.json"
        self.lock_path = self.directory / "lock"
        self.store = self.directory / "store" / "patients.duckdb"
        self.backups = self.directory / "store" / "backups"
        self.vault = self.directory / "vault.json"
        self.store_settings = self.directory / "store.toml"
        self.feeds = self.directory / "feeds.toml"
        self.access = self.directory / "access.toml"
        self.alerts = self.directory / "alerts.toml"
        self.codes = self.directory / "codes.toml"
        self.door = self.directory / "run" / "door"

    @classmethod
    def create(cls, directory: str | Path, settings: SiteSettings) -> SiteHome:
        """A new home, readable by this user alone, with settings, a secret and the default policy.

        Raises:
            ClientError: home_unreadable, if the folder is a site's already.
        """
        from client.policy import DEFAULT_POLICY

        home = cls(directory)
        if home.settings_path.exists():
            raise _unreadable(f"Expected a folder without a site; {home.directory} has one.")
        home.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not home.secret_path.exists():
            write_file(home.secret_path, new_site_secret())
        if not home.audit_key.exists():
            Signer.generate().save(home.audit_key)
        if not home.policy.exists():
            write_file(home.policy, DEFAULT_POLICY.encode())
        if not home.coordinator_keys_path.exists():
            home.save_coordinator_keys({})
        home.save(settings)
        return home

    def settings(self) -> SiteSettings:
        """What site.json says.

        Raises:
            ClientError: home_unreadable; it is absent or not of this form; says which key is at fault.
        """
        try:
            data = json.loads(self.settings_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise _unreadable(
                f"{self.directory} is no site's folder: make one with `twinward site join`."
            ) from None
        except (ValueError, OSError):
            raise _unreadable(f"Expected JSON in {self.settings_path}; it cannot be read.") from None
        return _settings(data, self.settings_path)

    def save(self, settings: SiteSettings) -> None:
        """Writes site.json whole or not at all."""
        text = json.dumps(asdict(settings), indent=2) + "\n"
        write_file(self.settings_path, text.encode(), replace=True)

    def secret(self) -> bytes:
        """The site's 32 secret bytes.

        Raises:
            ClientError: home_unreadable, if there are none, or others than this user may read them.
        """
        try:
            secret = read_private(self.secret_path)
        except TrustError as error:
            # Who knows the secret subtracts the noise from every release of the site's life.
            raise _unreadable(f"The site's secret: {error}") from None
        if len(secret) != SECRET_BYTES:
            raise _unreadable(f"Expected {SECRET_BYTES} bytes in {self.secret_path}.")
        return secret

    def coordinator_keys(self) -> dict[str, str]:
        """Public keys of the federation's coordinator by key id, as `trust.signing` writes them.

        Raises:
            ClientError: home_unreadable.
        """
        try:
            data = json.loads(self.coordinator_keys_path.read_text(encoding="utf-8"))
        except (ValueError, OSError):
            raise _unreadable(f"Expected JSON in {self.coordinator_keys_path}; it cannot be read.") from None
        if not isinstance(data, dict) or not all(isinstance(key, str) for key in data.values()):
            raise _unreadable(f"Expected key ids and public keys in {self.coordinator_keys_path}.")
        return data

    def save_coordinator_keys(self, keys: dict[str, str]) -> None:
        """Writes coordinator_keys.json whole or not at all."""
        text = json.dumps(keys, indent=2, sort_keys=True) + "\n"
        write_file(self.coordinator_keys_path, text.encode(), replace=True)

    @property
    def has_store(self) -> bool:
        """Whether there is a store of patients."""
        return self.vault.exists()

    @property
    def is_member(self) -> bool:
        """Whether the site has joined a federation."""
        return self.certificate.exists()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while the site runs; the kernel lets go of it whatever ends the process.

        Raises:
            ClientError: home_unreadable, if another process runs this site.
        """
        descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _unreadable(f"Another process runs the site in {self.directory}.") from None
            yield
        finally:
            os.close(descriptor)

    @property
    def is_running(self) -> bool:
        """Whether a process holds the lock."""
        try:
            with self.lock():
                return False
        except ClientError:
            return True


def _settings(data: object, path: Path) -> SiteSettings:
    known = {field.name: str(field.type) for field in fields(SiteSettings)}
    if not isinstance(data, dict) or not {"federation", "site", "address"} <= set(data) <= set(known):
        raise _unreadable(f"Expected in {path} federation, site, address and none but {sorted(known)}.")
    for name, value in data.items():
        if not (isinstance(value, str) or (value is None and "None" in known[name])):
            raise _unreadable(f"Expected a text at {name} in {path}; {type(value).__name__} came.")
    return SiteSettings(**data)


def _unreadable(text: str) -> ClientError:
    return ClientError("home_unreadable", text)
