"""Founds a federation: authority, signing key, the coordinator's certificate, a first operator."""

from __future__ import annotations

import json
import shutil
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509

from link.tls import Credentials
from server.errors import ServerError
from server.home import CoordinatorHome, Settings
from server.members import Members
from trust.authority import Authority
from trust.identity import Identity, check_name, load_certificate
from trust.keys import (
    PUBLIC,
    key_from_pem,
    key_to_pem,
    new_key,
    read_private,
    signing_request,
    sync_directory,
    write_file,
)
from trust.signing import Signer

SERVER_DAYS: Final = 365
OPERATOR_DAYS: Final = 365
COORDINATOR: Final = "coordinator"
"""The coordinator's name in its own certificate; a federation has one."""


def found(directory: Path, settings: Settings, *, operator: str, now: datetime) -> CoordinatorHome:
    """A new federation in a folder, which is there whole or not at all.

    Args:
        operator: name of the founder, who may launch plans; what it needs lies under operators/.

    Raises:
        TrustError: a name that is not allowed.
        ServerError: the folder holds something.
    """
    check_name(settings.federation, "federation")
    check_name(operator, "operator")
    directory = directory.expanduser().absolute()
    if directory.exists() and any(directory.iterdir()):
        raise ServerError(f"Expected an empty or absent folder for the federation; {directory} is not.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        home = CoordinatorHome.create(unfinished, settings)
        authority = Authority.create(home.authority, settings.federation, now=now)
        Signer.generate().save(home.signing_key)
        write_file(home.server_key, key_to_pem(new_key()))
        _certify_server(home, authority, now)
        with Members(home.members) as members:
            add_operator(home, authority, members, operator, now=now)
        _move(unfinished, directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return CoordinatorHome(directory)


def add_operator(
    home: CoordinatorHome,
    authority: Authority,
    members: Members,
    name: str,
    *,
    days: float = OPERATOR_DAYS,
    now: datetime,
) -> Path:
    """Key and certificate for an operator, in a folder that the operator takes away and keeps.

    An operator of that name gets a new certificate, and the one before ends.

    Raises:
        TrustError: the name is not allowed.
        ServerError: the name is a site's.
    """
    settings, folder = home.settings(), home.operators / check_name(name, "operator")
    key = new_key()
    identity = Identity(federation=authority.federation, role="operator", name=name)
    pem = authority.issue(signing_request(key, name), identity, days, now=now)
    members.add_operator(name, pem, now)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(folder / "key.pem", key_to_pem(key), replace=True)
    write_file(folder / "certificate.pem", pem, mode=PUBLIC, replace=True)
    write_file(folder / "authority.pem", authority.certificate_pem, mode=PUBLIC, replace=True)
    said = {"federation": settings.federation, "operator": name, "address": settings.operators}
    write_file(
        folder / "operator.json", f"{json.dumps(said, indent=2)}\n".encode(), mode=PUBLIC, replace=True
    )
    return folder


def listener_credentials(home: CoordinatorHome, authority: Authority, *, now: datetime) -> Credentials:
    """What the coordinator's listeners show; the certificate is renewed here when a third is left.

    It is also made anew if coordinator.json says another host than it does.

    Returns:
        Credentials whose only authority is the federation's; the hospitals' listener takes those of
        hospitals' own too (`server.door.Door.roots_pem`).

    Raises:
        TrustError: the key is absent or readable by others.
    """
    pem = home.server_certificate.read_bytes() if home.server_certificate.exists() else b""
    if not pem or _is_due(pem, home.settings().host, now):
        pem = _certify_server(home, authority, now)
    return Credentials(
        key=read_private(home.server_key), certificate=pem, authorities=authority.certificate_pem
    )


def _move(unfinished: Path, directory: Path) -> None:
    try:
        unfinished.rename(directory)
    except OSError:  # somebody else was faster
        raise ServerError(f"Expected an empty or absent folder; {directory} is not one any more.") from None
    sync_directory(directory.parent)


def _certify_server(home: CoordinatorHome, authority: Authority, now: datetime) -> bytes:
    settings = home.settings()
    identity = Identity(federation=settings.federation, role="coordinator", name=COORDINATOR)
    csr = signing_request(key_from_pem(read_private(home.server_key)), COORDINATOR)
    pem = authority.issue_server(csr, identity, _hosts(settings.host), SERVER_DAYS, now=now)
    write_file(home.server_certificate, pem, mode=PUBLIC, replace=True)
    return pem


def _hosts(host: str) -> list[str]:
    """The host, and this machine under its own names, for what runs beside the coordinator."""
    return list(dict.fromkeys([host, "localhost", "127.0.0.1", "::1"]))


def _is_due(pem: bytes, host: str, now: datetime) -> bool:
    certificate = load_certificate(pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    known = {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}
    life = timedelta(days=SERVER_DAYS)
    return host not in known or now > certificate.not_valid_after_utc - life / 3
