"""The certificate authority of a federation: one EC P-256 key, one self-signed certificate.

It takes from a signing request the public key and nothing else. Names, roles, dates and rights are
the coordinator's to give: a request that asks for another name, for the right to sign, or for a
hundred years gets what the coordinator decided.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import shutil
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trust.digest import sha256
from trust.errors import TrustError
from trust.identity import Identity, check_name, identity_of, load_certificate
from trust.keys import (
    PUBLIC,
    key_from_pem,
    key_to_pem,
    new_key,
    public_bytes,
    read_private,
    sync_directory,
    write_file,
)

YEARS: Final = 20
"""How long an authority lives. Its end is the federation's: every member would have to join anew."""

BACKDATED: Final = timedelta(days=1)
"""Certificates begin a day ago, so that members whose clock is behind can use them at once."""

_KEY: Final = "authority.key"
_CERTIFICATE: Final = "authority.pem"


class Authority:
    """Signs the certificates of one federation. Made by `create` or `open`."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate
        self.federation = federation_of(certificate)

    @classmethod
    def create(cls, directory: Path, federation: str, *, now: datetime) -> Authority:
        """A new authority, in a directory that is there whole or not at all.

        Raises:
            TrustError: the directory holds something, or the name is not allowed.
        """
        check_name(federation, "federation")
        if directory.exists() and any(directory.iterdir()):
            raise TrustError(f"Expected an empty or absent directory for the authority; {directory} is not.")
        key = new_key()
        certificate = _self_signed(key, federation, now)
        temporary = directory.with_name(f".{directory.name}.{secrets.token_hex(8)}")
        temporary.mkdir(mode=0o700, parents=True)
        try:
            write_file(temporary / _KEY, key_to_pem(key))
            write_file(temporary / _CERTIFICATE, to_pem(certificate), mode=PUBLIC)
            os.rename(temporary, directory)  # noqa: PTH104 - fails where another process was faster
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise TrustError(f"Expected to make the authority at {directory}; something is there.") from None
        sync_directory(directory.parent)
        return cls(key, certificate)

    @classmethod
    def open(cls, directory: Path) -> Authority:
        """The authority in a directory.

        Raises:
            TrustError: absent, readable by others, or key and certificate do not belong together.
        """
        key = key_from_pem(read_private(directory / _KEY))
        try:
            certificate = load_certificate((directory / _CERTIFICATE).read_bytes())
        except FileNotFoundError:
            raise TrustError(f"Expected the authority's certificate at {directory / _CERTIFICATE}.") from None
        if _public(certificate) != public_bytes(key.public_key()):
            raise TrustError(f"The key and the certificate in {directory} do not belong together.")
        return cls(key, certificate)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate that members trust."""
        return to_pem(self.certificate)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate's DER bytes, 64 hexadecimal digits."""
        return fingerprint(self.certificate)

    def issue(self, csr_pem: bytes, identity: Identity, days: float, *, now: datetime) -> bytes:
        """A client's certificate in PEM for the public key of a request.

        Raises:
            TrustError: the request does not prove possession of an EC P-256 key, the identity is of
                another federation, or is the coordinator's.
        """
        if identity.role == "coordinator":
            raise TrustError("Expected a member's identity; the coordinator's comes from issue_server.")
        return self._issue(csr_pem, identity, [], ExtendedKeyUsageOID.CLIENT_AUTH, days, now)

    def issue_server(
        self, csr_pem: bytes, identity: Identity, hosts: Sequence[str], days: float, *, now: datetime
    ) -> bytes:
        """The coordinator's certificate in PEM for its listeners.

        Args:
            hosts: DNS names and IP addresses under which members reach it, at least one.

        Raises:
            TrustError: as `issue`; not the coordinator's identity; no host, or one that is no name.
        """
        if identity.role != "coordinator" or not hosts:
            raise TrustError("Expected the coordinator's identity and at least one host name or address.")
        names = [_host(host) for host in hosts]
        return self._issue(csr_pem, identity, names, ExtendedKeyUsageOID.SERVER_AUTH, days, now)

    def _issue(
        self,
        csr_pem: bytes,
        identity: Identity,
        hosts: list[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        days: float,
        now: datetime,
    ) -> bytes:
        if identity.federation != self.federation:
            raise TrustError(
                f"Expected an identity of federation {self.federation!r}; it is of {identity.federation!r}."
            )
        end = min(now + timedelta(days=days), self.certificate.not_valid_after_utc)
        names = [x509.UniformResourceIdentifier(identity.uri), *hosts]
        key = request_key(csr_pem)
        builder = (
            _builder(_name(identity.name, self.federation), key, now - BACKDATED, end)
            .issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(sign=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        return to_pem(builder.sign(self._key, hashes.SHA256()))


def request_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a signing request whose maker holds the private one.

    Raises:
        TrustError: it does not parse, is signed by another key, or the key is not EC P-256.
    """
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, InvalidSignature, UnsupportedAlgorithm):
        raise TrustError("Expected a certificate signing request in PEM; it does not parse.") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TrustError("Expected a signing request for an EC P-256 key; it is for a key of another kind.")
    if not signed:
        raise TrustError("The signing request is not signed by the key that it names.")
    return key


def federation_of(authority: x509.Certificate) -> str:
    """The federation whose authority a certificate is.

    Raises:
        TrustError: it is not a self-signed certificate of an authority of ours.
    """
    names = authority.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    try:
        authority.verify_directly_issued_by(authority)
        limits = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        if not limits.ca or len(names) != 1:
            raise ValueError
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        raise TrustError("Expected the self-signed certificate of a federation's authority.") from None
    return check_name(str(names[0].value), "federation")


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether an authority signed a certificate itself, and the certificate may not sign others."""
    try:
        certificate.verify_directly_issued_by(authority)
        limits = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return True  # the default of RFC 5280 is: not an authority
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return not limits.ca


def check_certificate(pem: bytes, key_pem: bytes, identity: Identity, authority_pem: bytes) -> None:
    """Returns if a certificate that a coordinator gave is what a member asked for.

    Raises:
        TrustError: it is for another key or name, or another authority issued it.
    """
    certificate = load_certificate(pem)
    if _public(certificate) != public_bytes(key_from_pem(key_pem).public_key()):
        raise TrustError("The certificate that came is for another key than the one made here.")
    if identity_of(pem) != identity:
        raise TrustError(f"Expected a certificate for {identity.uri}; one for {identity_of(pem).uri} came.")
    if not issued_by(certificate, load_certificate(authority_pem)):
        raise TrustError("The certificate that came was not issued by the federation's authority.")


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate's DER bytes, 64 hexadecimal digits."""
    return sha256(certificate.public_bytes(serialization.Encoding.DER))


def serial_of(certificate: x509.Certificate) -> str:
    """The serial number as hexadecimal digits."""
    return f"{certificate.serial_number:x}"


def to_pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def _self_signed(key: ec.EllipticCurvePrivateKey, federation: str, now: datetime) -> x509.Certificate:
    name = _name("authority", federation)
    builder = (
        _builder(name, key.public_key(), now - BACKDATED, now + timedelta(days=365 * YEARS))
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(sign=False), critical=True)
    )
    return builder.sign(key, hashes.SHA256())


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common: str, federation: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _key_usage(*, sign: bool) -> x509.KeyUsage:
    """For signing handshakes (a member), or for signing certificates (the authority)."""
    return x509.KeyUsage(
        digital_signature=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=not sign,
        crl_sign=not sign,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise TrustError(f"Expected a host name or an IP address; {host[:80]!r} came.") from None


def _public(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
