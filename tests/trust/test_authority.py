"""The authority: it takes a key from a request and nothing else. OpenSSL is the second opinion."""

from __future__ import annotations

import hashlib
import shutil
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trust.authority import BACKDATED, Authority, check_certificate, issued_by
from trust.errors import TrustError
from trust.identity import Identity, identity_of, load_certificate
from trust.keys import key_to_pem, new_key, public_bytes, signing_request

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
NORTH = Identity(federation="net", role="site", name="north")
COORDINATOR = Identity(federation="net", role="coordinator", name="coordinator")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("home") / "authority", "net", now=NOW)


def greedy_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A request for everything that a member must not get."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "founder")])
    names = [
        x509.UniformResourceIdentifier("twinward://net/operator/founder"),
        x509.DNSName("coordinator.example.org"),
    ]
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=3), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_a_request_gets_the_identity_that_the_coordinator_gives_and_nothing_it_asks_for(
    authority: Authority,
) -> None:
    key = new_key()
    pem = authority.issue(greedy_request(key), NORTH, 90, now=NOW)
    certificate = load_certificate(pem)
    assert identity_of(pem) == NORTH
    assert certificate.public_key() == key.public_key()
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier(NORTH.uri)]
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "north"
    assert certificate.not_valid_before_utc == NOW - BACKDATED
    assert certificate.not_valid_after_utc == NOW + timedelta(days=90)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the second opinion, openssl, is not installed")
def test_openssl_verifies_what_the_authority_issues_and_for_its_purpose_only(
    authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)
    csr = signing_request(new_key(), "north")
    (tmp_path / "site.pem").write_bytes(authority.issue(csr, NORTH, 90, now=NOW))
    served = authority.issue_server(csr, COORDINATOR, ["localhost", "127.0.0.1"], 90, now=NOW)
    (tmp_path / "server.pem").write_bytes(served)

    def verifies(name: str, purpose: str, *more: str) -> bool:
        at = str(int(NOW.timestamp()))
        words = ["openssl", "verify", "-x509_strict", "-attime", at, "-purpose", purpose, *more]
        words += ["-CAfile", str(tmp_path / "ca.pem"), str(tmp_path / name)]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    assert verifies("site.pem", "sslclient") and not verifies("site.pem", "sslserver")
    assert verifies("server.pem", "sslserver") and not verifies("server.pem", "sslclient")
    assert verifies("server.pem", "sslserver", "-verify_hostname", "localhost")
    assert verifies("server.pem", "sslserver", "-verify_ip", "127.0.0.1")
    assert not verifies("server.pem", "sslserver", "-verify_hostname", "elsewhere.example.org")


def test_the_fingerprint_is_sha256_of_der_as_other_tools_print_it(authority: Authority) -> None:
    der = ssl.PEM_cert_to_DER_cert(authority.certificate_pem.decode())
    assert authority.fingerprint == hashlib.sha256(der).hexdigest()


def test_an_authority_is_found_again_and_never_made_over(tmp_path: Path) -> None:
    made = Authority.create(tmp_path / "authority", "net", now=NOW)
    assert (tmp_path / "authority/authority.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "authority").stat().st_mode & 0o777 == 0o700
    with pytest.raises(TrustError, match="empty or absent"):
        Authority.create(tmp_path / "authority", "net", now=NOW)
    again = Authority.open(tmp_path / "authority")
    assert again.fingerprint == made.fingerprint and again.federation == "net"
    assert issued_by(
        load_certificate(again.issue(signing_request(new_key(), "a"), NORTH, 1, now=NOW)), made.certificate
    )
    assert [path.name for path in tmp_path.iterdir()] == ["authority"]


def test_a_key_that_others_may_read_or_that_belongs_elsewhere_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Authority.create(tmp_path / name, "net", now=NOW)
    key = tmp_path / "one/authority.key"
    key.chmod(0o644)
    with pytest.raises(TrustError, match="chmod 600"):
        Authority.open(tmp_path / "one")
    key.chmod(0o600)
    shutil.copy(tmp_path / "two/authority.pem", tmp_path / "one/authority.pem")
    with pytest.raises(TrustError, match="do not belong together"):
        Authority.open(tmp_path / "one")
    with pytest.raises(TrustError, match="no file"):
        Authority.open(tmp_path / "three")


def test_a_request_must_be_signed_by_the_key_that_it_names(authority: Authority) -> None:
    """The signature of another key's request does not carry over to a request that names a victim's."""
    victim, thief = (x509.load_pem_x509_csr(signing_request(new_key(), "north")) for _ in range(2))
    der = victim.public_bytes(serialization.Encoding.DER)
    assert len(der) >= len(thief.signature) and der.endswith(victim.signature)
    broken = bytearray(der)
    broken[-1] ^= 1
    pem = ssl.DER_cert_to_PEM_cert(bytes(broken)).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    with pytest.raises(TrustError):
        authority.issue(pem.encode(), NORTH, 90, now=NOW)


@pytest.mark.parametrize("kind", ["rsa", "p384", "text", "certificate"])
def test_only_requests_for_p256_keys_are_taken(authority: Authority, kind: str) -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    data = {
        "rsa": lambda: builder.sign(rsa.generate_private_key(65537, 2048), hashes.SHA256()),
        "p384": lambda: builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()),
    }
    if kind in data:
        csr = data[kind]().public_bytes(serialization.Encoding.PEM)
    else:
        csr = b"text" if kind == "text" else authority.certificate_pem
    with pytest.raises(TrustError, match="signing request"):
        authority.issue(csr, NORTH, 90, now=NOW)


def test_no_member_gets_the_coordinators_identity_nor_one_of_another_federation(authority: Authority) -> None:
    csr = signing_request(new_key(), "north")
    with pytest.raises(TrustError, match="issue_server"):
        authority.issue(csr, COORDINATOR, 90, now=NOW)
    with pytest.raises(TrustError, match="federation"):
        authority.issue(csr, Identity(federation="other", role="site", name="north"), 90, now=NOW)
    with pytest.raises(TrustError, match="coordinator's identity"):
        authority.issue_server(csr, NORTH, ["localhost"], 90, now=NOW)
    with pytest.raises(TrustError, match="host"):
        authority.issue_server(csr, COORDINATOR, [], 90, now=NOW)


def test_a_certificate_never_outlives_its_authority(authority: Authority) -> None:
    pem = authority.issue(signing_request(new_key(), "north"), NORTH, 1e5, now=NOW)
    assert load_certificate(pem).not_valid_after_utc == authority.certificate.not_valid_after_utc


def test_a_member_takes_only_its_own_key_name_and_authority(authority: Authority, tmp_path: Path) -> None:
    key = new_key()
    pem = authority.issue(signing_request(key, "north"), NORTH, 90, now=NOW)
    check_certificate(pem, key_to_pem(key), NORTH, authority.certificate_pem)
    with pytest.raises(TrustError, match="another key"):
        check_certificate(pem, key_to_pem(new_key()), NORTH, authority.certificate_pem)
    south = Identity(federation="net", role="site", name="south")
    with pytest.raises(TrustError, match="south"):
        check_certificate(pem, key_to_pem(key), south, authority.certificate_pem)
    other = Authority.create(tmp_path / "other", "net", now=NOW)
    with pytest.raises(TrustError, match="not issued"):
        check_certificate(pem, key_to_pem(key), NORTH, other.certificate_pem)


def test_an_authority_that_shares_the_name_but_not_the_key_issued_nothing(
    authority: Authority, tmp_path: Path
) -> None:
    other = Authority.create(tmp_path / "other", "net", now=NOW)
    assert other.certificate.subject == authority.certificate.subject
    certificate = load_certificate(authority.issue(signing_request(new_key(), "n"), NORTH, 1, now=NOW))
    assert issued_by(certificate, authority.certificate)
    assert not issued_by(certificate, other.certificate)
    assert not issued_by(authority.certificate, authority.certificate)  # it may sign, so it is no member's


def test_equal_keys_have_equal_bytes() -> None:
    key = new_key()
    assert public_bytes(key.public_key()) == public_bytes(key.public_key())
    assert public_bytes(key.public_key()) != public_bytes(new_key().public_key())
