"""Renewing and leaving over the hospitals' real listener, and being revoked while connected."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from client.calling import call_once, credentials_of
from client.errors import ClientError
from client.home import SiteHome
from client.joining import OwnCertificate, join, leave, renew
from link.coordinator import LinkServer, ServerSettings
from link.hospital import HospitalLink, HospitalSettings
from link.tls import Credentials
from server.door import watch_ended
from server.founding import listener_credentials
from tests.founded import Founded, founded
from tests.server.federation_of_processes import wait_until
from trust.authority import Authority
from trust.identity import Identity, load_certificate
from trust.keys import key_to_pem, new_key, signing_request


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Founded]:
    with founded(tmp_path / "coordinator") as net:
        yield net


@contextmanager
def listening(net: Founded) -> Iterator[LinkServer]:
    """The hospitals' listener, whose list of members and desk are the federation's."""

    def current() -> Credentials:
        shown = listener_credentials(net.home, net.authority, now=net.clock())
        return replace(shown, authorities=net.door.roots_pem())

    server = LinkServer(
        ServerSettings(address="127.0.0.1:0", credentials=current, transfers=net.home.transfers),
        net.door.admit,
        members=net.members.sites,
        serve=net.desk.serve,
    )
    port = server.start()
    stop = watch_ended(net.members, server.cut, poll_s=0.05)
    net.home.save(replace(net.home.settings(), hospitals_port=port))
    try:
        yield server
    finally:
        stop()
        server.stop(0)


def at(home: SiteHome, server: LinkServer) -> SiteHome:
    """The site, told where this test's listener is."""
    home.save(replace(home.settings(), address=f"127.0.0.1:{server.port}"))
    return home


def test_a_site_renews_over_its_stream_and_goes_on_with_the_new_certificate(
    net: Founded, tmp_path: Path
) -> None:
    with listening(net) as server:
        home = at(join(net.invite().token, tmp_path / "north").home, server)
        before = home.certificate.read_bytes()
        renew(home, partial(call_once, home))
        assert home.certificate.read_bytes() != before
        renew(home, partial(call_once, home))  # which shows the new one


def test_a_site_leaves_over_its_stream(net: Founded, tmp_path: Path) -> None:
    with listening(net) as server:
        home = at(join(net.invite().token, tmp_path / "north").home, server)
        kept = [path.read_bytes() for path in (home.key, home.certificate)]
        assert leave(home, partial(call_once, home), "moved")
        member = net.members.member("north")
        assert member is not None and (member.state, member.why) == ("left", "moved")
        for path, data in zip((home.key, home.certificate), kept, strict=True):
            path.write_bytes(data)  # from a backup
            path.chmod(0o600)
        with pytest.raises(ClientError, match="no member"):
            call_once(home, "renew", b"")


def test_a_revoked_site_is_cut_off_while_it_is_connected(net: Founded, tmp_path: Path) -> None:
    with listening(net) as server:
        home = at(join(net.invite().token, tmp_path / "north").home, server)
        ended = threading.Event()

        def on_state(state: object) -> None:
            if getattr(state, "ended", ""):
                ended.set()

        settings = HospitalSettings(
            address=home.settings().address,
            credentials=lambda: credentials_of(home),
            transfers=home.transfers,
        )
        link = HospitalLink(settings, lambda message: message, on_state=on_state)
        link.start()
        try:
            assert link.wait_until_connected(60)
            net.members.end("north", "revoked", "", net.clock())
            assert ended.wait(60)
            assert link.state.ended in ("revoked", "not_admitted")
            wait_until(lambda: server.connected() == {})
        finally:
            link.stop()


def test_a_hospital_with_an_authority_of_its_own_connects_as_itself_and_as_nobody_else(
    net: Founded, tmp_path: Path
) -> None:
    own = Authority.create(tmp_path / "own", "net", now=net.clock())
    with listening(net) as server:
        net.members.trust_pki("north", (own.certificate,))
        home = at(join(net.invite().token, tmp_path / "north", own=certified(own, "north", net)).home, server)
        assert b"BEGIN CERTIFICATE" in call_once(home, "renew", signing_request(new_key(), "north"))
        at(join(net.invite("south").token, tmp_path / "south").home, server)
        pretended = certified(own, "south", net)
        for path, data in ((home.key, pretended.key), (home.certificate, pretended.certificate)):
            path.write_bytes(data)
        with pytest.raises(ClientError, match="no member"):
            call_once(home, "leave", b"")
        assert net.members.sites() == ("north", "south")


def certified(own: Authority, name: str, net: Founded) -> OwnCertificate:
    key = new_key()
    identity = Identity(federation="net", role="site", name=name)
    pem = own.issue(signing_request(key, name), identity, 30, now=net.clock() - timedelta(days=1))
    assert load_certificate(pem).issuer == own.certificate.subject
    return OwnCertificate(key=key_to_pem(key), certificate=pem)
