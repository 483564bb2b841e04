"""Identities: what a name may be, and that a certificate says one thing only."""

from __future__ import annotations

import string
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given
from hypothesis import strategies as st

from trust.errors import TrustError
from trust.identity import ROLES, Identity, check_name, identity_of
from trust.keys import new_key

NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,62}", fullmatch=True)
KEY = new_key()


def certificate(names: list[x509.GeneralName]) -> bytes:
    """A self-signed certificate with these alternative names; without the extension if there are none."""
    subject = x509.Name([])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(KEY.public_key())
        .serial_number(7)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@given(federation=NAMES, name=NAMES, role=st.sampled_from(ROLES))
def test_an_identity_survives_the_way_into_a_certificate_and_back(
    federation: str, name: str, role: str
) -> None:
    identity = Identity(federation=federation, role=role, name=name)  # type: ignore[arg-type]  # drawn from ROLES
    assert identity_of(certificate([x509.UniformResourceIdentifier(identity.uri)])) == identity


@given(st.text(max_size=70))
def test_a_name_passes_just_when_it_has_the_letters_that_are_allowed(name: str) -> None:
    letters = set(string.ascii_lowercase + string.digits)
    fits = 0 < len(name) <= 63 and name[0] in letters and set(name) <= letters | {"_", "-"}
    if fits:
        assert check_name(name) == name
    else:
        with pytest.raises(TrustError, match="Expected the name"):
            check_name(name)


@pytest.mark.parametrize("name", ["", "-a", "_a", "A", "a" * 64, "a/b", "a\n", "a b", "ä", "a.b", "a%2f"])
def test_a_name_that_could_be_read_as_something_else_is_refused(name: str) -> None:
    with pytest.raises(TrustError):
        Identity(federation="net", role="site", name=name)
    with pytest.raises(TrustError):
        Identity(federation=name, role="site", name="north")


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["https://example.org/"],
        ["twinward://net/site/north", "twinward://net/operator/north"],
        ["twinward://net/site/north", "TWINWARD://net/operator/north"],
        ["twinward://net/root/north"],
        ["twinward://net/site/north/more"],
        ["twinward://net/site/north?role=operator"],
        ["twinward://net/site/North"],
        ["twinward://net/site/"],
        ["twinward://net//north"],
        ["twinward://user@net/site/north"],
    ],
)
def test_a_certificate_without_exactly_one_identity_has_none(uris: list[str]) -> None:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    with pytest.raises(TrustError, match="exactly one"):
        identity_of(certificate(names))


def test_other_kinds_of_names_neither_help_nor_hurt() -> None:
    names = [
        x509.DNSName("twinward.example.org"),
        x509.UniformResourceIdentifier("twinward://net/site/north"),
    ]
    assert identity_of(certificate(names)).uri == "twinward://net/site/north"
    with pytest.raises(TrustError):
        identity_of(certificate([x509.DNSName("net.site.north")]))


@pytest.mark.parametrize("data", [b"", b"-----BEGIN CERTIFICATE-----\n", b"\x30\x82\xff\xff", bytes(100)])
def test_bytes_that_are_no_certificate_are_refused(data: bytes) -> None:
    with pytest.raises(TrustError):
        identity_of(data)


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(TrustError, match="coordinator, site, receiver, operator"):
        Identity(federation="net", role="admin", name="north")  # type: ignore[arg-type]  # as a peer would
