"""The enrolment listener against strangers: raw gRPC and raw HTTP/2 over TLS on loopback."""

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from link.tls import Credentials, refuse_old_tls
from server.enrolment_listener import EnrolmentListener, Limits
from server.errors import ServerError
from server.throttle import Throttle
from tests.founded import Founded, founded
from trust.authority import check_certificate
from trust.enrolment import MAX_BYTES, METHOD, EnrolmentRefused, EnrolRequest, Welcome, read_answer
from trust.identity import Identity, identity_of, load_certificate
from trust.invitation import Invitation, new_secret
from trust.keys import key_to_pem, new_key, signing_request

import grpc  # isort: skip  (link must come first)

ROOT = Path(__file__).parents[2]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
GIB = 1 << 30


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Founded]:
    with founded(tmp_path / "coordinator", limits=Limits(per_peer_min=1000)) as net:
        yield net


def raw_call(net: Founded, data: bytes, method: str = METHOD) -> bytes:
    """The bytes that the listener answers to any bytes."""
    credentials = grpc.ssl_channel_credentials(root_certificates=net.authority.certificate_pem)
    with grpc.secure_channel(f"127.0.0.1:{net.port}", credentials) as channel:
        answer: bytes = channel.unary_unary(method)(data, timeout=60)
        return answer


def request(invitation: Invitation, **changes: str) -> EnrolRequest:
    csr = signing_request(new_key(), invitation.site).decode()
    made = EnrolRequest(site=invitation.site, secret=invitation.secret, csr_pem=csr)
    return replace(made, **changes)


def refusal(net: Founded, asked: EnrolRequest) -> str:
    with pytest.raises(EnrolmentRefused) as refused:
        read_answer(raw_call(net, asked.to_bytes()))
    return refused.value.code


def test_who_is_invited_gets_a_certificate_for_its_name_and_key(net: Founded) -> None:
    invitation, key = net.invite(), new_key()
    asked = request(invitation, csr_pem=signing_request(key, "some other name").decode())
    welcome = read_answer(raw_call(net, asked.to_bytes()))
    identity = Identity(federation="net", role="site", name="north")
    check_certificate(
        welcome.certificate_pem.encode(), key_to_pem(key), identity, net.authority.certificate_pem
    )
    assert (welcome.federation, welcome.role, welcome.name) == ("net", "site", "north")
    assert dict(welcome.signing_keys) == {net.signer.key_id: net.signer.public_hex}
    assert welcome.address == net.home.settings().hospitals
    assert ("site_joined", "north", "") in net.recorded


def test_a_second_a_late_and_a_foreign_use_are_refused_and_recorded(net: Founded) -> None:
    invitation = net.invite("north")
    other = net.invite("south")
    read_answer(raw_call(net, request(invitation).to_bytes()))
    assert refusal(net, request(invitation)) == "token_used"
    assert refusal(net, request(other, site="north")) == "token_of_another_site"
    assert refusal(net, request(other, secret=new_secret())) == "token_unknown"
    net.clock.ahead(days=7)
    assert refusal(net, request(other)) == "token_expired"
    assert [why for kind, _, why in net.recorded if kind == "join_refused"] == [
        "token_used",
        "token_of_another_site",
        "token_unknown",
        "token_expired",
    ]
    assert net.members.sites() == ("north",)


def test_a_stranger_cannot_fill_the_audit_log(net: Founded) -> None:
    invitation = net.invite()
    for _ in range(30):
        assert refusal(net, request(invitation, secret=new_secret())) == "token_unknown"
    assert len(net.recorded) == 10
    read_answer(raw_call(net, request(invitation).to_bytes()))
    assert refusal(net, request(invitation)) == "token_used"
    assert [kind for kind, _, _ in net.recorded[10:]] == ["site_joined", "join_refused"]


def test_a_request_for_a_stolen_public_key_is_refused(net: Founded) -> None:
    """A request in which the key was swapped for another's keeps the signature of the first."""
    invitation = net.invite()
    mine, theirs = signing_request(new_key(), "north"), signing_request(new_key(), "north")
    der = [ssl.PEM_cert_to_DER_cert(_as_certificate(pem)) for pem in (mine, theirs)]
    point = [entry.index(b"\x03\x42\x00\x04") + 3 for entry in der]
    swapped = der[0][: point[0]] + der[1][point[1] : point[1] + 65] + der[0][point[0] + 65 :]
    pem = ssl.DER_cert_to_PEM_cert(swapped).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    assert refusal(net, request(invitation, csr_pem=pem)) == "request_invalid"
    assert read_answer(raw_call(net, request(invitation).to_bytes())).name == "north"  # still unused


def _as_certificate(pem: bytes) -> str:
    return pem.decode().replace("CERTIFICATE REQUEST", "CERTIFICATE")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"site":"north"}',
        b'{"site":1,"secret":"a","csr_pem":"b","certificate_pem":""}',
        b'{"site":"north","secret":"a","csr_pem":"b","certificate_pem":"","more":""}',
        b'{"site":"north","secret":null,"csr_pem":"b","certificate_pem":""}',
        b"[" * 10_000,
        b'{"site":"' + b"a" * 15_000,
    ],
)
def test_whatever_else_comes_is_malformed(net: Founded, data: bytes) -> None:
    with pytest.raises(EnrolmentRefused, match="malformed"):
        read_answer(raw_call(net, data))


@pytest.mark.parametrize("site", ["", "North", "a/b", "x" * 5000, "a\nroot logged in"])
def test_what_a_stranger_calls_himself_is_not_written_into_the_log_as_it_is(net: Founded, site: str) -> None:
    assert refusal(net, request(net.invite(), site=site)) == "token_of_another_site"
    who = net.recorded[-1][1]
    assert who.replace("_", "").isalnum() or set(who) == {"_"}
    assert len(who) <= 63


def test_there_is_one_method_and_nothing_else(net: Founded) -> None:
    for method in (
        "/twinward.Enrolment/List",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/a/b",
    ):
        with pytest.raises(grpc.RpcError) as error:
            raw_call(net, b"", method)
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_message_above_the_cap_is_refused(net: Founded) -> None:
    with pytest.raises(grpc.RpcError) as error:
        raw_call(net, bytes(MAX_BYTES + 1))
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_tls_1_2_is_not_spoken(net: Founded) -> None:
    pem = net.home.server_certificate.read_bytes()
    shown = Credentials(key=net.home.server_key.read_bytes(), certificate=pem, authorities=b"")
    refuse_old_tls("127.0.0.1", net.port, shown)


def test_attempts_are_counted_by_address(tmp_path: Path) -> None:
    with founded(tmp_path / "coordinator", limits=Limits(per_peer_min=3)) as net:
        invitation = net.invite()
        wrong = replace(invitation, secret=new_secret())
        codes = [refusal(net, request(wrong)) for _ in range(3)]
        assert codes == ["token_unknown"] * 3
        assert refusal(net, request(invitation)) == "too_many_attempts"


def test_a_throttle_lets_go_after_a_minute_and_one_peer_does_not_use_up_the_others() -> None:
    throttle = Throttle(per_peer=2, in_all=4)
    assert [throttle.allow("a", at) for at in (0.0, 1.0, 2.0, 3.0, 4.0)] == [True, True, False, False, False]
    assert [throttle.allow("b", 5.0), throttle.allow("b", 6.0), throttle.allow("c", 7.0)] == [
        True,
        True,
        False,
    ]
    assert throttle.allow("a", 70.0)
    for number in range(10_000):
        throttle.allow(str(number), 71.0)
    assert not throttle.allow("new", 72.0)


def test_two_listeners_do_not_share_a_port(net: Founded) -> None:
    shown = Credentials(
        key=net.home.server_key.read_bytes(),
        certificate=net.home.server_certificate.read_bytes(),
        authorities=net.authority.certificate_pem,
    )
    with pytest.raises(ServerError, match="listen"):
        EnrolmentListener(net.desk, address=f"127.0.0.1:{net.port}", current=lambda: shown)


def test_a_member_renews_on_its_stream_and_a_stranger_or_former_member_does_not(net: Founded) -> None:
    invitation, key = net.invite(), new_key()
    csr = signing_request(key, "north")
    read_answer(raw_call(net, request(invitation, csr_pem=csr.decode()).to_bytes()))
    north = Identity(federation="net", role="site", name="north")
    net.clock.ahead(days=70)
    welcome = read_answer(net.desk.serve("renew", "north", csr))
    assert net.door.admit(welcome.certificate_pem.encode()) == north
    end = load_certificate(welcome.certificate_pem.encode()).not_valid_after_utc
    assert (end - net.clock()).days in (89, 90)
    for stranger in (replace(north, name="south"), replace(north, role="operator")):
        with pytest.raises(EnrolmentRefused, match="no_member"):
            net.desk.renew(stranger, csr)
    with pytest.raises(EnrolmentRefused, match="no_member"):
        read_answer(net.desk.serve("renew", "south", csr))
    with pytest.raises(EnrolmentRefused, match="request_invalid"):
        read_answer(net.desk.serve("renew", "north", b"text"))
    assert net.desk.serve("leave", "north", b"moved") == b""
    assert ("site_left", "north", "moved") in net.recorded
    with pytest.raises(EnrolmentRefused, match="no_member"):
        read_answer(net.desk.serve("renew", "north", csr))
    with pytest.raises(EnrolmentRefused, match="no_member"):
        read_answer(net.desk.serve("leave", "north", b""))
    with pytest.raises(ServerError, match="kind"):
        net.desk.serve("delete", "north", b"")


def test_a_renewal_cannot_change_the_name(net: Founded) -> None:
    read_answer(raw_call(net, request(net.invite()).to_bytes()))
    north = Identity(federation="net", role="site", name="north")
    welcome = read_answer(net.desk.serve("renew", "north", signing_request(new_key(), "founder")))
    assert identity_of(welcome.certificate_pem.encode()) == north


def test_forms_come_back_whole_and_hide_the_secret() -> None:
    asked = EnrolRequest(site="north", secret=new_secret(), csr_pem="x")
    assert EnrolRequest.from_bytes(asked.to_bytes()) == asked
    assert asked.secret not in repr(asked)
    with pytest.raises(EnrolmentRefused, match="malformed"):
        Welcome.from_bytes(asked.to_bytes())


SERVE = """
import sys, threading
from pathlib import Path
from tests.founded import founded
with founded(Path(sys.argv[1])) as net:
    print(net.port, flush=True)
    sys.stdin.read()
"""


def memory_kib(pid: int, key: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key)))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux' /proc")
@pytest.mark.parametrize("length", [GIB, 100], ids=["declared", "lied_about"])
def test_a_gibibyte_before_authentication_costs_the_coordinator_no_memory(
    tmp_path: Path, length: int
) -> None:
    """Sends as much of 1 GiB as the listener takes, with the length as it is and with a short one."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(tmp_path / "coordinator")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline())
        before = memory_kib(server.pid, "VmRSS")
        taken = flood(port, length)
        assert taken < GIB, "the listener took it all"
        # Usually 10 MiB: gRPC's buffers of what came before it closed the stream.
        assert memory_kib(server.pid, "VmHWM") - before < GIB // 8 // 1024
        assert server.poll() is None
    finally:
        server.kill()
        server.wait()


def flood(port: int, length: int) -> int:
    """Bytes that the listener let a stranger send as one message, of 1 GiB at most."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    taken, chunk = 0, bytes(16_384)
    with socket.create_connection(("127.0.0.1", port), 20) as plain, context.wrap_socket(plain) as spoken:
        spoken.sendall(PREFACE + frame(4, 0, 0, b"") + frame(1, 4, 1, headers()))
        spoken.settimeout(2)
        try:
            spoken.sendall(frame(0, 0, 1, b"\0" + struct.pack(">I", length)))
            while taken < GIB:  # without heeding flow control, as an attacker would
                spoken.sendall(frame(0, 0, 1, chunk))
                taken += len(chunk)
        except OSError:
            pass
    return taken


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2 (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def headers() -> bytes:
    """A gRPC call's headers as HPACK literals without indexing (RFC 7541, section 6.2.2)."""
    fields = {
        ":method": "POST",
        ":scheme": "https",
        ":path": METHOD,
        ":authority": "127.0.0.1",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    parts = [text.encode() for pair in fields.items() for text in pair]
    sized = [bytes([len(part)]) + part for part in parts]
    return b"".join(b"\0" + name + value for name, value in zip(sized[::2], sized[1::2], strict=True))


def test_an_answer_that_is_neither_welcome_nor_refusal_is_malformed() -> None:
    for data in (b"", b"{}", json.dumps({"code": "token_used"}).encode(), b'{"code":1,"text":""}'):
        with pytest.raises(EnrolmentRefused, match="malformed"):
            read_answer(data)
    with pytest.raises(EnrolmentRefused) as refused:
        read_answer(json.dumps({"code": "token_used", "text": "\x1b[2Jgone\n"}).encode())
    assert refused.value.code == "token_used" and refused.value.text.isprintable()
