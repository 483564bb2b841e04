"""Finds, behind an address, the authority whose fingerprint stands in an invitation.

Nothing but a TLS handshake is sent before that: who answers at the address is a stranger until he
shows the certificate that the invitation names.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from cryptography import x509

from link.errors import LinkError
from trust.authority import federation_of, fingerprint, issued_by, to_pem
from trust.errors import TrustError
from trust.identity import load_certificate
from trust.invitation import split_address

TIMEOUT_S: Final = 15.0
_MOST_CERTIFICATES: Final = 8


def authority_behind(
    address: str, wanted: str, *, proxy: str | None = None, now: datetime | None = None
) -> tuple[str, bytes]:
    """Federation and certificate (PEM) of the authority behind an address.

    Args:
        address: host:port of the enrolment listener.
        wanted: fingerprint of the authority, from the invitation.
        proxy: http://host:port of an HTTP proxy that tunnels (CONNECT).
        now: of this machine's clock.

    Raises:
        LinkError: nobody answers there, or not in TLS 1.3.
        TrustError: another authority stands behind the address, or this machine's clock is so wrong
            that no certificate can be checked.
    """
    chain = _chain(address, proxy)
    found = [certificate for certificate in chain if fingerprint(certificate) == wanted]
    if not found or not issued_by(chain[0], found[0]):
        raise TrustError(
            f"Expected behind {address} the authority with fingerprint {wanted}; another answers. Nothing was"
            " sent. Either the address leads to another machine (a proxy that opens TLS, an old DNS entry),"
            " or somebody pretends to be the coordinator. Ask the coordinator for the fingerprint by phone."
        )
    federation = federation_of(found[0])
    _check_clock(chain[0], now or datetime.now(UTC))
    return federation, to_pem(found[0])


def proxy_for(address: str) -> str | None:
    """The proxy that this machine's environment names for an address (https_proxy, no_proxy)."""
    host = split_address(address)[0]
    return None if proxy_bypass(host) else getproxies().get("https") or None


def _check_clock(server: x509.Certificate, now: datetime) -> None:
    start, end = server.not_valid_before_utc, server.not_valid_after_utc
    if not start <= now <= end:
        raise TrustError(
            f"This machine's clock says {now:%Y-%m-%d %H:%M} UTC, and the coordinator's certificate is good"
            f" from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC. Set the clock. If it is right, the"
            " coordinator must renew its certificate: `twinward coordinator serve` does at its start."
        )


def _chain(address: str, proxy: str | None) -> list[x509.Certificate]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the fingerprint is compared instead, before anything is sent
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    host, _ = split_address(address)
    try:
        with _connected(address, proxy) as plain, context.wrap_socket(plain, server_hostname=host) as spoken:
            return _certificates(spoken)
    except (OSError, http.client.HTTPException) as error:
        by = f" through the proxy {proxy}" if proxy else ""
        raise LinkError(
            f"Expected the coordinator at {address}{by}, in TLS 1.3; no connection ({type(error).__name__}:"
            f" {error}). Check the address, outbound firewall rules for its port, and the proxy (--proxy)."
        ) from None


def _connected(address: str, proxy: str | None) -> socket.socket:
    host, port = split_address(address)
    if proxy is None:
        return socket.create_connection((host, port), TIMEOUT_S)
    parts = urlsplit(proxy)
    if parts.scheme != "http" or not parts.hostname or parts.username:
        shown = "what came" if parts.username or "@" in proxy else repr(proxy[:80])  # no password in an error
        raise LinkError(f"Expected a proxy http://host:port without user and password, not {shown}.")
    tunnel = http.client.HTTPConnection(parts.hostname, parts.port or 3128, timeout=TIMEOUT_S)
    tunnel.set_tunnel(host, port)
    tunnel.connect()
    return tunnel.sock


def _certificates(spoken: ssl.SSLSocket) -> list[x509.Certificate]:
    """What the peer showed, its own certificate first."""
    public = getattr(spoken, "get_unverified_chain", None)  # Python 3.13
    if public is not None:
        raw = list(public())
    else:
        shown = spoken._sslobj.get_unverified_chain() or ()  # type: ignore[attr-defined]  # Python 3.11, 3.12
        raw = [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in shown]
    if not 0 < len(raw) <= _MOST_CERTIFICATES:
        raise TrustError(f"Expected 1 to {_MOST_CERTIFICATES} certificates from the peer; {len(raw)} came.")
    return [load_certificate(der) for der in raw]
