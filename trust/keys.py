"""Private keys: made where they are used, written so that only their owner reads them.

EC P-256, because TLS 1.3 knows it everywhere and gRPC's suites leave a server with such a
certificate no older version (link/tls.py).
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from trust.errors import TrustError

PRIVATE: Final = 0o600
PUBLIC: Final = 0o644


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new EC P-256 key from the system's generator."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The private key as PKCS#8 PEM, not encrypted: its file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def key_from_pem(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """The EC P-256 private key in PEM.

    Raises:
        TrustError: it is no such key, or it is encrypted.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        raise TrustError("Expected a private key in PEM without a passphrase; it does not parse.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TrustError("Expected an EC P-256 private key; the file holds a key of another kind.")
    return key


def public_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """The public key as DER (SubjectPublicKeyInfo): equal bytes, equal key."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def signing_request(key: ec.EllipticCurvePrivateKey, name: str) -> bytes:
    """A certificate signing request in PEM: proves that its maker holds the key; asks for nothing."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def write_file(path: Path, data: bytes, *, mode: int = PRIVATE, replace: bool = False) -> None:
    """Writes a file that is there whole or not at all, and durable on return.

    Args:
        mode: from the first byte on, so that nobody reads a key while it is being written.
        replace: False refuses to overwrite.

    Raises:
        TrustError: the file exists and `replace` is False.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)  # whatever the umask is
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)
    except FileExistsError:
        raise TrustError(f"Expected no file at {path}; there is one, and it is not overwritten.") from None
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def read_private(path: Path) -> bytes:
    """The bytes of a file that only its owner may read.

    Raises:
        TrustError: it is absent, or others may read or write it.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise TrustError(
                    f"Expected {path} to be readable by its owner only; its mode is {mode:o}."
                    f" Find out who read it, then: chmod 600 {path}"
                )
            return file.read()
    except FileNotFoundError:
        raise TrustError(f"Expected a private key at {path}; there is no file.") from None


def sync_directory(directory: Path) -> None:
    """Makes what was created or renamed in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
