"""Members: invitations work once, endings hold at once and after a restart, names stay apart."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.door import watch_ended
from server.errors import ServerError
from server.members import Members
from trust.authority import Authority, serial_of
from trust.enrolment import EnrolmentRefused
from trust.errors import TrustError
from trust.identity import Identity, Role, load_certificate
from trust.keys import new_key, signing_request

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
LATER = NOW + timedelta(days=7)


@pytest.fixture
def members(tmp_path: Path) -> Iterator[Members]:
    with Members(tmp_path / "members.sqlite") as members:
        yield members


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("home") / "authority", "net", now=NOW)


def certificate(authority: Authority, name: str, role: Role = "site") -> bytes:
    identity = Identity(federation="net", role=role, name=name)
    return authority.issue(signing_request(new_key(), name), identity, 90, now=NOW)


def joined(members: Members, authority: Authority, name: str = "north") -> tuple[str, bytes]:
    """Secret and certificate of a site that has joined with key `k`."""
    secret = members.invite(name, "site", expires=LATER)
    pem = members.enrol(secret, name, "k", NOW, lambda role: certificate(authority, name, role))[1]
    return secret, pem


def code_of(members: Members, secret: str, site: str = "north", key: str = "k2", now: datetime = NOW) -> str:
    with pytest.raises(EnrolmentRefused) as refused:
        members.invited(secret, site, key, now)
    return refused.value.code


def test_an_invitation_makes_one_member(members: Members, authority: Authority) -> None:
    secret, pem = joined(members, authority)
    assert members.sites() == ("north",)
    assert members.active(serial_of(load_certificate(pem)))
    assert code_of(members, secret) == "token_used"


def test_the_same_key_gets_the_same_answer_again(members: Members, authority: Authority) -> None:
    secret, pem = joined(members, authority)

    def never(role: Role) -> bytes:
        raise AssertionError(role)

    assert members.enrol(secret, "north", "k", LATER + timedelta(days=1), never) == ("site", pem)


def test_an_error_while_issuing_leaves_the_invitation_unused(members: Members, authority: Authority) -> None:
    secret = members.invite("north", "site", expires=LATER)

    def fails(role: Role) -> bytes:
        raise TrustError("no")

    with pytest.raises(TrustError):
        members.enrol(secret, "north", "k", NOW, fails)
    assert members.members() == ()
    members.enrol(secret, "north", "k2", NOW, lambda role: certificate(authority, "north", role))
    assert members.sites() == ("north",)


def test_of_many_that_use_one_invitation_at_once_one_gets_in(members: Members, authority: Authority) -> None:
    secret = members.invite("north", "site", expires=LATER)
    start, codes = threading.Barrier(8), []

    def use(number: int) -> None:
        start.wait()
        try:
            members.enrol(
                secret, "north", f"k{number}", NOW, lambda role: certificate(authority, "north", role)
            )
            codes.append("in")
        except EnrolmentRefused as refused:
            codes.append(refused.code)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == ["in", *["token_used"] * 7]


def test_late_unknown_withdrawn_and_foreign_invitations_are_told_apart(members: Members) -> None:
    secret = members.invite("north", "site", expires=LATER)
    assert code_of(members, secret, now=LATER) == "token_expired"
    assert code_of(members, secret, site="south") == "token_of_another_site"
    assert code_of(members, "A" * 43) == "token_unknown"
    newer = members.invite("north", "receiver", expires=LATER)
    assert code_of(members, secret) == "token_withdrawn"
    assert members.invited(newer, "north", "k", NOW) == ("receiver", None)
    assert members.open_invitations(NOW) == {"north": LATER}
    assert members.withdraw("north") == 1
    assert code_of(members, newer) == "token_withdrawn"
    assert members.open_invitations(NOW) == {}


def test_a_name_that_exists_is_invited_again_only_on_purpose(members: Members, authority: Authority) -> None:
    _, old = joined(members, authority)
    with pytest.raises(ServerError, match="--replace"):
        members.invite("north", "site", expires=LATER)
    secret = members.invite("north", "site", expires=LATER, replace=True)
    assert members.active(serial_of(load_certificate(old)))  # until the new invitation is used
    new = members.enrol(secret, "north", "k2", NOW, lambda role: certificate(authority, "north", role))[1]
    assert members.active(serial_of(load_certificate(new)))
    assert not members.active(serial_of(load_certificate(old)))


def test_a_name_that_became_known_after_the_invitation_is_refused(
    members: Members, authority: Authority
) -> None:
    secret = members.invite("ann", "site", expires=LATER)
    members.add_operator("ann", certificate(authority, "ann", "operator"), NOW)
    assert code_of(members, secret, site="ann") == "name_taken"


def test_an_operators_name_is_never_a_sites_and_the_other_way_round(
    members: Members, authority: Authority
) -> None:
    members.add_operator("ann", certificate(authority, "ann", "operator"), NOW)
    with pytest.raises(ServerError, match="operator"):
        members.invite("ann", "site", expires=LATER, replace=True)
    joined(members, authority)
    with pytest.raises(ServerError, match="site"):
        members.add_operator("north", certificate(authority, "north", "operator"), NOW)
    with pytest.raises(ServerError, match="receiver"):
        members.invite("bob", "operator", expires=LATER)


@pytest.mark.parametrize("state", ["revoked", "left"])
def test_an_ending_holds_at_once_and_after_a_restart(
    tmp_path: Path, authority: Authority, state: str
) -> None:
    with Members(tmp_path / "m.sqlite") as members:
        secret, pem = joined(members, authority)
        members.end("north", state, "moved", NOW)  # type: ignore[arg-type]  # one of the two
        serial = serial_of(load_certificate(pem))
        assert not members.active(serial)
    with Members(tmp_path / "m.sqlite") as members:
        assert not members.active(serial)
        assert members.sites() == () and members.ended() == {"north"}
        member = members.member("north")
        assert member is not None and (member.state, member.why) == (state, "moved")
        assert code_of(members, secret, key="k") == "token_withdrawn"  # also for the key that joined
        with pytest.raises(ServerError, match="active member"):
            members.end("north", "revoked", "", NOW)
        with pytest.raises(EnrolmentRefused, match="no_member"):
            members.certify("north", certificate(authority, "north"))


def test_the_newest_two_certificates_of_a_member_count(members: Members, authority: Authority) -> None:
    pems = [joined(members, authority)[1]]
    for _ in range(3):
        pems.append(certificate(authority, "north"))
        members.certify("north", pems[-1])
    counts = [members.active(serial_of(load_certificate(pem))) for pem in pems]
    assert counts == [False, False, True, True]
    member = members.member("north")
    assert member is not None and member.serial == serial_of(load_certificate(pems[-1]))


def test_the_file_holds_no_secret_and_is_its_owners(tmp_path: Path, authority: Authority) -> None:
    path = tmp_path / "members.sqlite"
    with Members(path) as members:
        secret, _ = joined(members, authority)
        rows = sqlite3.connect(path).execute("SELECT * FROM invitation").fetchall()
    assert rows and secret not in str(rows)
    assert path.stat().st_mode & 0o777 == 0o600
    assert secret.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_only_authorities_certificates_are_taken_as_such(members: Members, authority: Authority) -> None:
    leaf = load_certificate(certificate(authority, "north"))
    with pytest.raises(ServerError, match="CA"):
        members.trust_pki("north", (leaf,))
    members.trust_pki("north", (authority.certificate,))
    assert members.pki("north") == (authority.certificate,) and members.pki("south") == ()
    members.trust_pki("north", ())
    assert members.pki() == ()


def test_an_ending_that_another_process_wrote_is_noticed(tmp_path: Path, authority: Authority) -> None:
    noticed, seen = threading.Event(), []

    def on_ended(name: str) -> None:
        seen.append(name)
        noticed.set()

    with Members(tmp_path / "m.sqlite") as members, Members(tmp_path / "m.sqlite") as elsewhere:
        joined(members, authority, "north")
        joined(members, authority, "south")
        stop = watch_ended(members, on_ended, poll_s=0.01)
        elsewhere.end("south", "revoked", "", NOW)
        assert noticed.wait(60)
        stop()
    assert seen == ["south"]
