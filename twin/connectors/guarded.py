"""What streams of messages share: who may be told what in plain text, and TLS to a broker."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path

from twin.errors import DataError


def is_here(host: str) -> bool:
    """Whether a host is this machine.

    >>> is_here("127.0.0.1"), is_here("localhost"), is_here("broker.ward.example")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_transport(
    name: str, hosts: list[str], *, tls: bool, insecure_lan: bool, files: dict[str, Path | None]
) -> None:
    """Checks that patients' data travel encrypted, or that somebody said that they need not.

    Args:
        name: of the feed.
        files: ca_file, cert_file and key_file.

    Raises:
        DataError: what must be changed.
    """
    if not tls and not insecure_lan and not all(map(is_here, hosts)):
        raise DataError(
            f"feed {name!r}: tls = false sends patients' data in plain text to another machine. Use TLS; if "
            "the network is the ward's own and nobody else's, set insecure_lan = true."
        )
    if not tls and any(files.values()):
        raise DataError(f"feed {name!r}: {', '.join(files)} are of no use with tls = false.")
    if (files["cert_file"] is None) != (files["key_file"] is None):
        raise DataError(f"feed {name!r}: expected cert_file and key_file together.")


def tls_context(name: str, files: dict[str, Path | None]) -> ssl.SSLContext:
    """TLS 1.2 or newer to a broker whose certificate is checked with its name.

    Raises:
        DataError: a file cannot be used.
    """
    ca_file, cert_file, key_file = files["ca_file"], files["cert_file"], files["key_file"]
    try:
        made = ssl.create_default_context(cafile=ca_file)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        if cert_file is not None:
            made.load_cert_chain(cert_file, key_file)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise DataError(
            f"feed {name!r}: ca_file, cert_file or key_file cannot be used ({type(error).__name__}); "
            "expected PEM."
        ) from None
    return made


def password_in(name: str, path: Path | None) -> str | None:
    """The first line of a file with a password; None without a file.

    Raises:
        DataError: it cannot be read, or is empty.
    """
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"feed {name!r}: password_file cannot be read ({type(error).__name__}).") from None
    if not lines or not lines[0]:
        raise DataError(f"feed {name!r}: the first line of password_file is empty.")
    return lines[0]
