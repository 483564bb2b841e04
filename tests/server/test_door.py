"""The door: a certificate gets in for the member that it is, while it is one, and for nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from client.joining import OwnCertificate, join
from tests.founded import Founded, founded
from trust.authority import Authority
from trust.errors import TrustError
from trust.identity import Identity, Role
from trust.keys import key_to_pem, new_key, signing_request


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Founded]:
    with founded(tmp_path / "coordinator") as net:
        yield net


def certificate(authority: Authority, name: str, role: Role, net: Founded, federation: str = "net") -> bytes:
    identity = Identity(federation=federation, role=role, name=name)
    return authority.issue(signing_request(new_key(), name), identity, 30, now=net.clock())


def test_a_member_is_admitted_while_its_certificate_is_good(net: Founded, tmp_path: Path) -> None:
    joined = join(net.invite().token, tmp_path / "north")
    pem = joined.home.certificate.read_bytes()
    assert net.door.admit(pem) == joined.identity
    net.clock.ahead(days=91)
    assert net.door.judge(pem).code == "expired"
    net.clock.ahead(days=-91 - 2)
    assert net.door.judge(pem).code == "not_yet_valid"


def test_a_revoked_member_is_out_at_once_and_in_again_only_by_a_new_invitation(
    net: Founded, tmp_path: Path
) -> None:
    pem = join(net.invite().token, tmp_path / "north").home.certificate.read_bytes()
    net.members.end("north", "revoked", "lost laptop", net.clock())
    assert net.door.judge(pem).code == "revoked"
    again = join(net.invite(replace=True).token, tmp_path / "north", replace=True)
    assert net.door.admit(again.home.certificate.read_bytes()) == again.identity
    assert net.door.judge(pem).code == "revoked"


def test_certificates_of_the_authority_for_nobody_on_the_list_are_refused(net: Founded) -> None:
    assert net.door.judge(certificate(net.authority, "ghost", "site", net)).code == "unknown"
    assert net.door.judge(certificate(net.authority, "founder", "operator", net)).code == "revoked"
    assert net.door.judge(net.home.server_certificate.read_bytes()).code == "unknown"
    assert net.door.judge(net.authority.certificate_pem).code == "malformed"
    assert net.door.judge(b"").code == "malformed"


def test_a_role_that_the_list_does_not_give_is_refused(net: Founded, tmp_path: Path) -> None:
    join(net.invite().token, tmp_path / "north")
    pem = certificate(net.authority, "north", "operator", net)
    net.members.certify("north", pem)  # even if it were recorded by mistake
    assert net.door.judge(pem).code == "other_role"


def test_the_founder_is_admitted_as_operator(net: Founded) -> None:
    identity = net.door.admit((net.home.operators / "founder/certificate.pem").read_bytes())
    assert identity == Identity(federation="net", role="operator", name="founder")


def test_another_federation_or_a_foreign_authority_is_refused(net: Founded, tmp_path: Path) -> None:
    join(net.invite().token, tmp_path / "north")
    namesake = Authority.create(tmp_path / "namesake", "net", now=net.clock())
    assert net.door.judge(certificate(namesake, "north", "site", net)).code == "other_authority"
    other = Authority.create(tmp_path / "other", "other", now=net.clock())
    assert net.door.judge(certificate(other, "north", "site", net, "other")).code == "other_federation"


def test_a_hospitals_own_authority_certifies_that_hospital_and_nobody_else(
    net: Founded, tmp_path: Path
) -> None:
    own = Authority.create(tmp_path / "own", "net", now=net.clock())
    join(net.invite("south").token, tmp_path / "south")
    net.members.trust_pki("north", (own.certificate,))
    key = new_key()
    north = Identity(federation="net", role="site", name="north")
    pem = own.issue(signing_request(key, "north"), north, 30, now=net.clock())
    assert net.door.judge(pem).code == "unknown"  # trusted, and not joined
    mine = OwnCertificate(key=key_to_pem(key), certificate=pem)
    joined = join(net.invite("north").token, tmp_path / "north", own=mine)
    assert joined.home.certificate.read_bytes() == pem
    assert net.door.admit(pem) == north
    renewed = certificate(own, "north", "site", net)
    assert net.door.admit(renewed) == north  # its own people renew it
    for name, role in (
        ("south", "site"),
        ("founder", "operator"),
        ("coordinator", "site"),
        ("ghost", "site"),
    ):
        code = net.door.judge(certificate(own, name, role, net)).code  # type: ignore[arg-type]  # roles
        assert code == "other_authority"
    net.members.end("north", "revoked", "", net.clock())
    assert net.door.judge(pem).code == net.door.judge(renewed).code == "revoked"


def test_a_certificate_of_an_own_authority_that_nobody_trusts_does_not_join(
    net: Founded, tmp_path: Path
) -> None:
    own = Authority.create(tmp_path / "own", "net", now=net.clock())
    key = new_key()
    north = Identity(federation="net", role="site", name="north")
    pem = own.issue(signing_request(key, "north"), north, 30, now=net.clock())
    invitation = net.invite("north")
    with pytest.raises(TrustError, match="other_authority"):
        join(invitation.token, tmp_path / "north", own=OwnCertificate(key=key_to_pem(key), certificate=pem))
    net.members.trust_pki("south", (own.certificate,))
    with pytest.raises(TrustError, match="other_authority"):
        join(invitation.token, tmp_path / "north", own=OwnCertificate(key=key_to_pem(key), certificate=pem))
    net.members.trust_pki("north", (own.certificate,))
    with pytest.raises(TrustError, match="differ in key"):
        join(
            invitation.token,
            tmp_path / "north",
            own=OwnCertificate(key=key_to_pem(new_key()), certificate=pem),
        )
    assert net.members.sites() == ()


def test_the_listener_trusts_the_federations_authority_and_hospitals_own(
    net: Founded, tmp_path: Path
) -> None:
    assert net.door.roots_pem() == net.authority.certificate_pem
    own = Authority.create(tmp_path / "own", "net", now=net.clock())
    net.members.trust_pki("north", (own.certificate,))
    assert net.door.roots_pem() == net.authority.certificate_pem + own.certificate_pem


def test_the_servers_certificate_is_renewed_when_a_third_is_left(net: Founded) -> None:
    from server.founding import listener_credentials

    first = listener_credentials(net.home, net.authority, now=net.clock())
    assert listener_credentials(net.home, net.authority, now=net.clock() + timedelta(days=240)) == first
    second = listener_credentials(net.home, net.authority, now=net.clock() + timedelta(days=250))
    assert second.certificate != first.certificate and second.key == first.key
