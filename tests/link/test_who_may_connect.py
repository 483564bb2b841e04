"""Who may connect: TLS 1.3 alone, certificates of the authority alone, members alone, and only for now."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from flwr.app import Message

from link.coordinator import LinkServer, ServerSettings
from link.errors import LinkError
from link.hospital import HospitalLink
from link.listener import METHOD, SERVICE
from link.tls import Credentials, check_ready, refuse_old_tls
from tests.link.federation_of_certificates import PATIENCE_S, Authority, Federation, federation


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Federation]:
    with federation(tmp_path) as made:
        yield made


def echo(message: Message) -> Message:
    return Message(message.content, reply_to=message)


def _version(port: int, mine: Credentials, folder: Path, version: ssl.TLSVersion) -> str | None:
    pair = folder / "pair.pem"
    pair.write_bytes(mine.key + mine.certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=mine.authorities.decode())
    context.load_cert_chain(pair)
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", port), 5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as spoken,
    ):
        return spoken.version()


def test_tls_1_2_is_refused_even_with_a_valid_certificate(there: Federation, tmp_path: Path) -> None:
    mine = there.authority.member("alpha")
    with pytest.raises(OSError, match=r"EOF|ALERT|alert|reset"):
        _version(there.port, mine, tmp_path, ssl.TLSVersion.TLSv1_2)
    assert _version(there.port, mine, tmp_path, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"


def test_a_listener_that_speaks_tls_1_2_is_found_out(tmp_path: Path) -> None:
    mine = Authority().coordinator()
    pair = tmp_path / "pair.pem"
    pair.write_bytes(mine.key + mine.certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    import threading

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            context.wrap_socket(plain, server_side=True).close()

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(LinkError, match=r"TLSv1\.2"):
            refuse_old_tls("127.0.0.1", listener.getsockname()[1], mine)


@pytest.mark.parametrize("first", ["grpc", "flwr.app"])
def test_grpc_imported_before_its_ciphers_were_chosen_is_refused(first: str) -> None:
    import os

    code = f"import {first}, link; print(link.TLS13_ONLY)"
    environment = {key: value for key, value in os.environ.items() if key != "GRPC_SSL_CIPHER_SUITES"}
    root = Path(__file__).parents[2]
    run = [sys.executable, "-c"]
    late = subprocess.run([*run, code], env=environment, cwd=root, capture_output=True, text=True, check=True)
    assert late.stdout.strip() == "False"
    code = f"import link, {first}; print(link.TLS13_ONLY)"
    soon = subprocess.run([*run, code], env=environment, cwd=root, capture_output=True, text=True, check=True)
    assert soon.stdout.strip() == "True"


def test_work_is_refused_where_tls_1_2_could_be_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    mine = Authority().member("alpha")
    check_ready(mine)
    with pytest.raises(LinkError, match="elliptic"):
        check_ready(replace(mine, key=key))
    monkeypatch.setattr("link.tls.TLS13_ONLY", False)
    with pytest.raises(LinkError, match=r"1\.3"):
        check_ready(mine)


@pytest.mark.parametrize("shown", ["nothing", "foreign", "plain"])
def test_without_a_certificate_of_the_authority_nobody_gets_in(there: Federation, shown: str) -> None:
    foreign = Authority().member("alpha")
    root = there.authority.pem
    address = f"127.0.0.1:{there.port}"
    with {
        "nothing": lambda: grpc.secure_channel(address, grpc.ssl_channel_credentials(root)),
        "foreign": lambda: grpc.secure_channel(
            address, grpc.ssl_channel_credentials(root, foreign.key, foreign.certificate)
        ),
        "plain": lambda: grpc.insecure_channel(address),
    }[shown]() as channel:
        call = channel.stream_stream(f"/{SERVICE}/{METHOD}")(iter([b""]), timeout=PATIENCE_S)
        with pytest.raises(grpc.RpcError) as refused:
            next(call)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert there.events == []


@pytest.mark.parametrize("role", ["operator", "coordinator"])
def test_another_role_is_not_admitted_on_the_hospitals_port(there: Federation, role: str) -> None:
    link = there.hospital("alpha", echo, credentials=there.authority.member("alpha", role), wait=False)
    assert there.wait_for("refused", "", "not_admitted")
    assert not link.state.connected


def test_the_listener_has_one_method(there: Federation) -> None:
    mine = there.authority.member("alpha")
    credentials = grpc.ssl_channel_credentials(there.authority.pem, mine.key, mine.certificate)
    with grpc.secure_channel(f"127.0.0.1:{there.port}", credentials) as channel:
        for path in (f"/{SERVICE}/Other", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(path)(b"", timeout=PATIENCE_S)
            assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


def _ended(link: HospitalLink, *codes: str) -> bool:
    with link._changed:
        return link._changed.wait_for(lambda: link.state.ended in codes, PATIENCE_S)


def test_a_hospital_refuses_a_coordinator_of_another_authority(there: Federation) -> None:
    mine = replace(there.authority.member("alpha"), authorities=Authority().pem)
    link = there.hospital("alpha", echo, credentials=mine, wait=False)
    assert _ended(link, "unreachable")
    assert there.events == []


def test_a_hospital_cannot_stand_in_for_the_coordinator(tmp_path: Path, there: Federation) -> None:
    impostor = there.authority.member("beta")
    settings = ServerSettings(
        address="127.0.0.1:0", credentials=lambda: impostor, transfers=tmp_path / "impostor"
    )
    server = LinkServer(settings, there.admit)
    port = server.start()
    try:
        for server_name in ("", "beta"):
            link = there.hospital("alpha", echo, port=port, wait=False, server_name=server_name)
            assert _ended(link, "unreachable")
        assert server.connected() == {}
    finally:
        server.stop()


def test_a_revoked_hospital_is_cut_off_at_once_and_does_not_come_back(there: Federation) -> None:
    link = there.hospital("alpha", echo)
    there.hospital("beta", echo)
    there.revoked.add("alpha")
    assert there.wait_for("disconnected", "alpha", "revoked")
    assert _ended(link, "revoked", "not_admitted")
    assert there.wait_for("refused", "", "not_admitted")
    assert set(there.server.connected()) == {"beta"}


def test_cut_ends_a_connection_without_waiting_for_the_next_look(tmp_path: Path) -> None:
    from link.session import Pace

    with federation(tmp_path, pace=Pace(beat_s=3600, dead_after_s=7200, check_s=3600)) as there:
        there.hospital("alpha", echo)
        there.revoked.add("alpha")
        there.server.cut("alpha")
        assert there.wait_for("disconnected", "alpha", "revoked")


def test_certificates_are_renewed_and_authorities_added_while_the_listener_runs(
    tmp_path: Path, there: Federation
) -> None:
    own = Authority("a hospital's own")
    current = [there.authority.coordinator()]
    settings = ServerSettings(
        address="127.0.0.1:0", credentials=lambda: current[0], transfers=tmp_path / "renewed"
    )
    server = LinkServer(settings, there.admit)
    port = server.start()
    try:
        brought = replace(own.member("gamma"), authorities=there.authority.pem)
        link = there.hospital("gamma", echo, port=port, credentials=brought, wait=False)
        assert _ended(link, "unreachable")
        fresh = there.authority.coordinator()
        current[0] = replace(fresh, authorities=there.authority.pem + own.pem)
        assert link.wait_until_connected(PATIENCE_S)
    finally:
        server.stop()


def test_two_listeners_do_not_share_a_port(there: Federation, tmp_path: Path) -> None:
    mine = there.authority.coordinator()
    settings = ServerSettings(
        address=f"127.0.0.1:{there.port}", credentials=lambda: mine, transfers=tmp_path / "two"
    )
    with pytest.raises(LinkError, match="cannot be taken"):
        LinkServer(settings, there.admit).start()


def test_nothing_of_a_key_is_shown(there: Federation) -> None:
    assert "PRIVATE" not in repr(there.authority.member("alpha"))
