"""Mutual TLS 1.3 for gRPC, and the name a certificate bears.

Both sides show an EC certificate that the federation's authority signed. The coordinator's bears its
host name or address, which a hospital checks; a hospital's bears its identity as a URI and no host
name, so that no hospital can stand in for the coordinator.
"""

from __future__ import annotations

import socket
import ssl
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from link import TLS13_ONLY  # before grpc: see link/__init__.py

import grpc  # isort: skip
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from link.errors import LinkError


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What one side shows, and whom it believes; all PEM.

    Attributes:
        key: the private key.
        certificate: the certificate, followed by those between it and its authority, if any.
        authorities: one or more certificates of authorities.
    """

    key: bytes
    certificate: bytes
    authorities: bytes

    def __repr__(self) -> str:
        return "Credentials(…)"


def server_credentials(current: Callable[[], Credentials]) -> grpc.ServerCredentials:
    """Credentials of a listener; `current` is asked at every handshake, so that they can be renewed.

    Raises:
        LinkError: TLS 1.2 could be spoken: gRPC was imported too early, or a key is not EC.
    """
    known = current()
    check_ready(known)
    last = [known]

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        fresh = current()
        if fresh == last[0]:
            return None
        last[0] = fresh
        return _configuration(fresh)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(known), fetch, require_client_authentication=True
    )


def channel_credentials(mine: Credentials) -> grpc.ChannelCredentials:
    """Credentials of a connection that a hospital or an operator opens.

    Raises:
        LinkError: as `server_credentials`.
    """
    check_ready(mine)
    return grpc.ssl_channel_credentials(
        root_certificates=mine.authorities, private_key=mine.key, certificate_chain=mine.certificate
    )


def check_ready(credentials: Credentials) -> None:
    """Refuses to work where TLS 1.2 could be spoken.

    Raises:
        LinkError: gRPC was imported before link, or the key is not on an elliptic curve.
    """
    if not TLS13_ONLY:
        raise LinkError(
            "Expected TLS 1.3 only; gRPC was imported before its ciphers could be chosen."
            " Import link first, or set GRPC_SSL_CIPHER_SUITES=ECDHE-RSA-AES128-GCM-SHA256."
        )
    if not isinstance(load_pem_private_key(credentials.key, None), ec.EllipticCurvePrivateKey):
        raise LinkError("Expected a key on an elliptic curve (P-256); another kind would admit TLS 1.2.")


def refuse_old_tls(host: str, port: int, credentials: Credentials, timeout_s: float = 10.0) -> None:
    """Tries TLS 1.2 with a valid certificate at a listener of one's own.

    Raises:
        LinkError: the listener spoke it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # what is tried is the version alone, at our own port
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pair.pem"
        path.touch(mode=0o600)
        path.write_bytes(credentials.key + b"\n" + credentials.certificate)
        context.load_cert_chain(path)
    try:
        with (
            socket.create_connection((host, port), timeout_s) as plain,
            context.wrap_socket(plain) as spoken,
        ):
            version = spoken.version()
    except OSError:
        return
    raise LinkError(f"Expected TLS 1.3 only; the listener spoke {version}.")


def load_certificate(pem: bytes) -> x509.Certificate:
    """The first certificate of a PEM text.

    Raises:
        LinkError: there is none.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise LinkError("Expected a certificate in PEM; the text does not parse.") from None


def _configuration(credentials: Credentials) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(credentials.key, credentials.certificate)], root_certificates=credentials.authorities
    )
