"""Joining from the hospital's side: nothing is sent to a stranger, nothing is lost, keys stay home."""

from __future__ import annotations

import http.server
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from client.errors import ClientError
from client.home import SiteHome
from client.joining import certificate_of, join, leave, renew, renewal_due
from client.pinning import authority_behind
from link.errors import LinkError
from tests.founded import Founded, founded
from tests.ports import free_port
from trust.authority import Authority, check_certificate
from trust.enrolment import EnrolmentRefused
from trust.errors import TrustError
from trust.identity import Identity, load_certificate
from trust.keys import key_to_pem, new_key, signing_request

NORTH = Identity(federation="net", role="site", name="north")


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Founded]:
    with founded(tmp_path / "coordinator") as net:
        yield net


@contextmanager
def stranger(chain: bytes, key: bytes, tmp_path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Somebody who shows these certificates, and keeps what is said to him inside TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (tmp_path / "stranger.pem").write_bytes(key + chain)
    context.load_cert_chain(tmp_path / "stranger.pem")
    context.set_alpn_protocols(["h2"])
    heard: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(plain, server_side=True) as spoken:
                    while data := spoken.recv(4096):
                        heard.append(data)
            except OSError:
                plain.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], heard
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_a_hospital_that_joined_holds_all_it_needs_and_only_its_owner_reads_it(
    net: Founded, tmp_path: Path
) -> None:
    joined = join(net.invite().token, tmp_path / "north", data_path="/srv/data", timezone="Europe/Oslo")
    home = joined.home
    assert joined.identity == NORTH and not joined.clock_is_off
    check_certificate(
        home.certificate.read_bytes(), home.key.read_bytes(), NORTH, net.authority.certificate_pem
    )
    assert home.authority.read_bytes() == net.authority.certificate_pem
    assert home.coordinator_keys() == {net.signer.key_id: net.signer.public_hex}
    settings = home.settings()
    assert (settings.federation, settings.site, settings.role) == ("net", "north", "site")
    assert settings.address == net.home.settings().hospitals
    assert (settings.data_path, settings.timezone) == ("/srv/data", "Europe/Oslo")
    for name in ("key.pem", "secret.key"):
        assert (home.directory / name).stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in home.directory.glob("*pending*")) == []


def test_a_member_that_only_receives_joins_as_such(net: Founded, tmp_path: Path) -> None:
    joined = join(net.invite("east", "receiver").token, tmp_path / "east")
    assert joined.identity.role == joined.home.settings().role == "receiver"
    assert net.door.admit(joined.home.certificate.read_bytes()) == joined.identity
    assert net.members.sites() == ()


def test_the_key_never_leaves(net: Founded, tmp_path: Path) -> None:
    home = join(net.invite().token, tmp_path / "north").home
    secret = home.key.read_bytes().splitlines()[1]
    everything = b"".join(path.read_bytes() for path in net.home.directory.rglob("*") if path.is_file())
    assert secret not in everything


def test_a_second_use_elsewhere_is_refused_with_a_reason(net: Founded, tmp_path: Path) -> None:
    token = net.invite().token
    join(token, tmp_path / "north")
    with pytest.raises(EnrolmentRefused, match="If it was not you, tell the coordinator") as refused:
        join(token, tmp_path / "thief")
    assert refused.value.code == "token_used"
    assert not (tmp_path / "thief/certificate.pem").exists()


def test_a_late_use_is_refused_by_the_coordinators_clock(net: Founded, tmp_path: Path) -> None:
    token = net.invite(days=1).token
    net.clock.ahead(days=1)
    with pytest.raises(EnrolmentRefused, match="expired at"):
        join(token, tmp_path / "north")


def test_a_name_that_exists_is_refused(net: Founded, tmp_path: Path) -> None:
    invitation = net.invite("ann")
    key = new_key()
    ann = Identity(federation="net", role="operator", name="ann")
    pem = net.authority.issue(signing_request(key, "ann"), ann, 30, now=net.clock())
    net.members.add_operator("ann", pem, net.clock())
    with pytest.raises(EnrolmentRefused, match="exists already"):
        join(invitation.token, tmp_path / "ann")


def test_a_token_that_was_edited_for_another_site_or_role_gives_neither(net: Founded, tmp_path: Path) -> None:
    net.invite("south")
    invitation = net.invite("north")
    with pytest.raises(EnrolmentRefused, match="another site"):
        join(replace(invitation, site="south").token, tmp_path / "south")
    with pytest.raises(TrustError, match="Expected a welcome for"):
        join(replace(invitation, role="receiver").token, tmp_path / "north")
    assert not (tmp_path / "north/certificate.pem").exists()


def test_nothing_is_sent_to_somebody_with_another_authority(net: Founded, tmp_path: Path) -> None:
    """A man in the middle with an authority of the same name, and one who replays the real one."""
    fake = Authority.create(tmp_path / "fake", "net", now=net.clock())
    key = new_key()
    coordinator = Identity(federation="net", role="coordinator", name="coordinator")
    leaf = fake.issue_server(signing_request(key, "x"), coordinator, ["127.0.0.1"], 30, now=net.clock())
    for shown in (leaf, leaf + fake.certificate_pem, leaf + net.authority.certificate_pem):
        with stranger(shown, key_to_pem(key), tmp_path) as (port, heard):
            invitation = replace(net.invite(), address=f"127.0.0.1:{port}")
            with pytest.raises(TrustError, match="Nothing was sent"):
                join(invitation.token, tmp_path / "north")
        assert heard == []
    assert not (tmp_path / "north").exists()


def test_another_member_cannot_stand_in_for_the_coordinator(net: Founded, tmp_path: Path) -> None:
    """Its certificate is of the right authority, and is good for no host."""
    south = join(net.invite("south").token, tmp_path / "south").home
    chain = south.certificate.read_bytes() + net.authority.certificate_pem
    with stranger(chain, south.key.read_bytes(), tmp_path) as (port, heard):
        invitation = replace(net.invite(), address=f"127.0.0.1:{port}")
        with pytest.raises(LinkError, match="did not answer"):
            join(invitation.token, tmp_path / "north")
    assert invitation.secret.encode() not in b"".join(heard)
    assert not any(b"PRI * HTTP/2.0" in data and len(data) > 1000 for data in heard)


def test_a_fingerprint_of_another_certificate_is_refused(net: Founded) -> None:
    with pytest.raises(TrustError, match="another answers"):
        authority_behind(f"127.0.0.1:{net.port}", "0" * 64)


@pytest.mark.parametrize("years", [-10, 10])
def test_a_clock_that_is_ten_years_off_is_named_before_anything_is_sent(
    net: Founded, tmp_path: Path, years: int
) -> None:
    invitation = net.invite()
    off = datetime.now(UTC) + timedelta(days=365 * years)
    with pytest.raises(TrustError, match="clock says"):
        join(invitation.token, tmp_path / "north", now=lambda: off)
    assert join(invitation.token, tmp_path / "north").identity == NORTH  # it is still good


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_an_hour_off_joins_and_is_told(net: Founded, tmp_path: Path, hours: int) -> None:
    joined = join(
        net.invite().token, tmp_path / "north", now=lambda: datetime.now(UTC) + timedelta(hours=hours)
    )
    assert joined.clock_is_off
    assert abs(joined.skew_s - 3600 * hours) < 120


def test_whoever_lost_the_answer_asks_again_with_the_same_invitation(net: Founded, tmp_path: Path) -> None:
    """As after a crash between the coordinator's answer and the last file."""
    token = net.invite().token
    first = join(token, tmp_path / "north").home
    key, certificate = first.key.read_bytes(), first.certificate.read_bytes()
    first.certificate.unlink()
    again = join(token, tmp_path / "north").home
    assert (again.key.read_bytes(), again.certificate.read_bytes()) == (key, certificate)
    first.certificate.unlink()
    first.key.rename(first.directory / "key.pending.pem")
    again = join(token, tmp_path / "north").home
    assert (again.key.read_bytes(), again.certificate.read_bytes()) == (key, certificate)


def test_when_nobody_answers_the_key_is_kept_and_the_same_command_works_later(
    net: Founded, tmp_path: Path
) -> None:
    invitation = net.invite()
    nobody = f"127.0.0.1:{free_port()}"
    with pytest.raises(LinkError, match="firewall"):
        join(replace(invitation, address=nobody).token, tmp_path / "north")
    assert join(invitation.token, tmp_path / "north").identity == NORTH


def test_a_members_folder_is_not_joined_over_nor_lent_to_another_site(net: Founded, tmp_path: Path) -> None:
    home = join(net.invite().token, tmp_path / "north").home
    with pytest.raises(ClientError, match="--replace"):
        join(net.invite("south").token, home.directory)
    with pytest.raises(ClientError, match="another"):
        join(net.invite("south").token, home.directory, replace=True)
    with (
        founded(tmp_path / "other", federation="other") as other,
        pytest.raises(ClientError, match="belongs to federation"),
    ):
        join(other.invite().token, home.directory, replace=True)
    assert certificate_of(home)[0] == NORTH


def test_a_replaced_certificate_has_a_new_key_and_the_site_keeps_its_secret_and_data(
    net: Founded, tmp_path: Path
) -> None:
    home = join(net.invite().token, tmp_path / "north", data_path="/srv/data").home
    key, secret, old = home.key.read_bytes(), home.secret(), home.certificate.read_bytes()
    again = join(net.invite(replace=True).token, tmp_path / "north", replace=True).home
    assert again.key.read_bytes() != key and again.secret() == secret
    assert again.settings().data_path == "/srv/data"
    assert net.door.admit(again.certificate.read_bytes()) == NORTH
    assert net.door.judge(old).code == "revoked"


def test_a_site_renews_when_a_third_of_its_certificates_life_is_left(net: Founded, tmp_path: Path) -> None:
    home = join(net.invite().token, tmp_path / "north").home
    assert not renewal_due(home, net.clock() + timedelta(days=59))
    assert renewal_due(home, net.clock() + timedelta(days=61))
    net.clock.ahead(days=61)
    end = renew(home, lambda kind, payload: net.desk.serve(kind, "north", payload))
    assert end == load_certificate(home.certificate.read_bytes()).not_valid_after_utc
    assert not renewal_due(home, net.clock())
    assert net.door.admit(home.certificate.read_bytes()) == NORTH


def test_a_renewal_that_is_for_somebody_else_is_not_taken(net: Founded, tmp_path: Path) -> None:
    home = join(net.invite().token, tmp_path / "north").home
    south = join(net.invite("south").token, tmp_path / "south").home
    before = home.certificate.read_bytes()
    with pytest.raises(TrustError, match="Expected a welcome"):
        renew(home, lambda kind, payload: net.desk.serve(kind, "south", payload))
    other = signing_request(new_key(), "north")
    with pytest.raises(TrustError, match="another key"):
        renew(home, lambda kind, payload: net.desk.serve(kind, "north", other))
    net.members.end("north", "revoked", "", net.clock())
    with pytest.raises(EnrolmentRefused, match="no_member"):
        renew(home, lambda kind, payload: net.desk.serve(kind, "north", payload))
    assert home.certificate.read_bytes() == before
    assert certificate_of(south)[0].name == "south"


def test_a_site_that_leaves_destroys_its_key_and_keeps_what_it_owes(net: Founded, tmp_path: Path) -> None:
    home = join(net.invite().token, tmp_path / "north").home
    home.ledger.write_bytes(b"what was released stays released")
    secret = home.secret()
    assert leave(home, lambda kind, payload: net.desk.serve(kind, "north", payload), "moved")
    assert not home.key.exists() and not home.certificate.exists()
    assert home.ledger.exists() and home.secret() == secret
    member = net.members.member("north")
    assert member is not None and (member.state, member.why) == ("left", "moved")
    with pytest.raises(ClientError, match="no member's folder"):
        certificate_of(home)
    again = join(net.invite(replace=True).token, home.directory).home
    assert again.secret() == secret and again.ledger.exists()


def test_a_site_can_leave_without_telling(net: Founded, tmp_path: Path) -> None:
    home = join(net.invite().token, tmp_path / "north").home
    assert not leave(home, None)
    assert not home.key.exists()
    assert net.members.sites() == ("north",)


class _Connect(http.server.BaseHTTPRequestHandler):
    """An HTTP proxy that knows CONNECT alone, and writes down where it was asked to lead."""

    def do_CONNECT(self) -> None:
        asked: list[str] = self.server.asked  # type: ignore[attr-defined]  # set by the fixture
        asked.append(self.path)
        host, port = self.path.split(":")
        with socket.create_connection((host, int(port))) as far:
            self.send_response(200)
            self.end_headers()
            ends = {self.connection: far, far: self.connection}
            while True:
                for end in select.select(list(ends), [], [], 20)[0] or [None]:
                    data = end.recv(65536) if end is not None else b""
                    if not data or end is None:
                        return
                    ends[end].sendall(data)

    def log_message(self, *_: object) -> None:
        """Tests print nothing."""


@pytest.fixture
def proxy() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Connect)
    server.daemon_threads = True
    server.asked = []  # type: ignore[attr-defined]  # read by the handler
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_hospital_joins_through_its_proxy_and_remembers_it(
    net: Founded, tmp_path: Path, proxy: http.server.ThreadingHTTPServer
) -> None:
    url = f"http://127.0.0.1:{proxy.server_port}"
    joined = join(net.invite().token, tmp_path / "north", proxy=url)
    assert joined.identity == NORTH and joined.home.settings().proxy == url
    assert proxy.asked == [f"127.0.0.1:{net.port}"] * 2  # type: ignore[attr-defined]  # first to pin, then to join


def test_a_proxy_that_cannot_be_used_is_named(net: Founded, tmp_path: Path) -> None:
    for url in ("socks5://127.0.0.1:1", "http://user:word@127.0.0.1:1", "127.0.0.1:1"):
        with pytest.raises(LinkError, match="Expected a proxy") as refused:
            join(net.invite().token, tmp_path / "north", proxy=url)
        assert "user:word" not in str(refused.value)
    with pytest.raises(LinkError, match="through the proxy"):
        join(net.invite().token, tmp_path / "north", proxy="http://127.0.0.1:1")


def test_a_home_that_nobody_joined_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="site join"):
        certificate_of(SiteHome(tmp_path))
