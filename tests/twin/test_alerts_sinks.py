"""Notices reach real servers whole, signed and over TLS, and say no more than they must."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from twin.alerts.alert import PRIORITIES, Alert, Notice
from twin.alerts.delivery import Delivery
from twin.alerts.sinks import build
from twin.alerts.sinks.fhir import FhirSink
from twin.alerts.sinks.log import LogSink
from twin.alerts.sinks.mail import MailSink
from twin.alerts.sinks.webhook import WebhookSink, signature
from twin.errors import DataError

AT = datetime(2026, 3, 1, 8, 5, tzinfo=UTC)
SECRET = b"0123456789abcdef-secret"


def notice(
    number: int = 1, *, patient: str = "pseudo-77", priority: Any = "medium", event: Any = "raised"
) -> Notice:
    alert = Alert(
        id=f"low-glucose-{number}",
        patient_id=patient,
        rule="low-glucose",
        priority=priority,
        text="glucose is low",
        since=AT,
    )
    return Notice(id=f"n{number}", event=event, at=AT + timedelta(minutes=3), alert=alert)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(certificate, key) of a server on this machine."""
    folder = tmp_path_factory.mktemp("certificate")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return folder / "cert.pem", folder / "key.pem"


@contextmanager
def web(statuses: list[int], certificate: tuple[Path, Path] | None = None) -> Iterator[tuple[str, list[Any]]]:
    """A server that answers these statuses, then 200: its URL, and what came: method, path, headers, body."""
    came: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            came.append((self.command, self.path, dict(self.headers), body))
            self.send_response(statuses.pop(0) if statuses else 200)
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.end_headers()

        do_PUT = do_POST

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name of the parent's argument
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}/hook", came
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def secret_file(tmp_path: Path) -> str:
    path = tmp_path / "secret"
    path.write_bytes(SECRET + b"\n")
    return str(path)


def test_a_webhook_comes_over_tls_signed_whole_and_without_a_value(
    certificate: tuple[Path, Path], secret_file: str
) -> None:
    with web([], certificate) as (url, came):
        sink = WebhookSink(
            url=url, secret_file=secret_file, ca_file=str(certificate[0]), clock=lambda: 1700.9
        )
        sink.send(notice())
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            WebhookSink(url=url, secret_file=secret_file).send(notice())
    ((method, path, headers, body),) = came
    assert (method, path, headers["X-Twinward-Time"]) == ("POST", "/hook", "1700")
    assert headers["X-Twinward-Signature"] == signature(SECRET, "1700", body)
    assert signature(b"another secret 1", "1700", body) != signature(SECRET, "1700", body)
    assert Notice.from_dict(json.loads(body)) == notice()


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_webhook_that_is_not_taken_raises_and_follows_no_redirect(status: int, secret_file: str) -> None:
    with web([status]) as (url, came), pytest.raises(DataError, match=str(status)):
        WebhookSink(url=url, secret_file=secret_file).send(notice())
    assert len(came) == 1


def test_urls_in_the_clear_short_secrets_and_unknown_kinds_are_refused_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "short").write_text("short")
    with pytest.raises(DataError) as caught:
        build(
            [
                {"kind": "webhook", "url": "http://example.org/", "secret_file": str(tmp_path / "short")},
                {"kind": "webhook", "url": "https://example.org/", "secret_file": str(tmp_path / "short")},
                {"kind": "pigeon"},
                {"kind": "email", "host": "mail", "sender": "a@b", "to": ["c@d"], "tls": "none"},
                {"kind": "log", "colour": "red"},
            ]
        )
    for part in (
        "sink 1: expected an https",
        "sink 2: secret_file",
        "sink 3: kind 'pigeon'",
        "sink 4: tls",
        "sink 5",
    ):
        assert part in str(caught.value)
    assert [sink.name for sink in build([{"kind": "log"}, {"kind": "log", "name": "second"}])] == [
        "log",
        "second",
    ]


def test_the_log_says_which_rule_and_no_patient(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="twinward"):
        LogSink().send(notice(priority="high"))
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "low-glucose-1" in record.getMessage()
    assert "pseudo-77" not in record.getMessage()


@pytest.mark.parametrize("event", ["raised", "resolved"])
def test_fhir_gets_a_communication_and_a_flag_that_its_models_accept(event: Any, tmp_path: Path) -> None:
    from fhir.resources.R4B.communication import Communication
    from fhir.resources.R4B.flag import Flag

    (tmp_path / "token").write_text("t0ken\n")
    with web([]) as (url, came):
        sink = FhirSink(
            base=url,
            identifier_system="urn:site",
            token_file=str(tmp_path / "token"),
            subject=lambda pseudonym: f"MRN of {pseudonym}",
        )
        sink.send(notice(event=event))
    (first, second) = came
    said, flag = Communication.model_validate_json(first[3]), Flag.model_validate_json(second[3])
    assert (first[:2], second[:2]) == (
        ("PUT", "/hook/Communication/low-glucose-1-n1"),
        ("PUT", "/hook/Flag/low-glucose-1"),
    )
    assert first[2]["Authorization"] == "Bearer t0ken"
    assert said.subject.identifier.value == flag.subject.identifier.value == "MRN of pseudo-77"
    assert said.priority == "urgent"
    assert flag.status == ("active" if event == "raised" else "inactive")
    assert (flag.period.end is not None) == (event == "resolved")


class MailServer:
    """A mail server for one mail, with TLS from the first byte or after STARTTLS."""

    def __init__(self, certificate: tuple[Path, Path], *, starttls: bool) -> None:
        self.lines: list[str] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*certificate)
        self._starttls = starttls
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        connection.settimeout(60)
        if not self._starttls:
            connection = self._context.wrap_socket(connection, server_side=True)
        connection.sendall(b"220 here\r\n")
        secured, body, lines = not self._starttls, False, connection.makefile("rb")
        while line := lines.readline():
            text = line.decode().rstrip("\r\n")
            if body:
                body = text != "."
                self.lines.append(text)
                if body:
                    continue
            elif text.upper() == "STARTTLS":
                connection.sendall(b"220 go\r\n")
                connection = self._context.wrap_socket(connection, server_side=True)
                secured, lines = True, connection.makefile("rb")
                continue
            elif text.upper() == "DATA":
                assert secured
                body = True
                connection.sendall(b"354 go on\r\n")
                continue
            offer = (
                b"250-here\r\n250 STARTTLS\r\n" if text.upper().startswith("EHLO") and not secured else None
            )
            connection.sendall(b"221 bye\r\n" if text.upper() == "QUIT" else offer or b"250 ok\r\n")
            if text.upper() == "QUIT":
                break
        connection.close()
        self._socket.close()


@pytest.mark.parametrize("tls", ["starttls", "tls"])
def test_a_mail_goes_over_tls_and_names_neither_patient_nor_value(
    certificate: tuple[Path, Path], tls: Any
) -> None:
    server = MailServer(certificate, starttls=tls == "starttls")
    sink = MailSink(
        host="localhost",
        port=server.port,
        tls=tls,
        sender="ward@example.org",
        to=["on-call@example.org"],
        ca_file=str(certificate[0]),
    )
    sink.send(notice(event="resolved"))  # asks for nobody: not even a connection
    sink.send(notice(priority="high"))
    server.thread.join(60)
    mail = "\n".join(server.lines)
    assert "low-glucose-1" in mail
    assert "immediate operator response is required" in mail
    assert "pseudo-77" not in mail


class Flaky:
    """A sink of somebody else's that raises what it likes, by the number of the call."""

    def __init__(self, fails: set[int], poison: str = "") -> None:
        self.name, self.calls = "flaky", 0
        self._fails, self._poison = fails, poison
        self.taken: list[str] = []

    def send(self, notice: Notice) -> None:
        self.calls += 1
        if self.calls in self._fails or notice.id == self._poison:
            raise RuntimeError("pseudo-77 is in this text")
        self.taken.append(notice.id)


@given(st.sets(st.integers(1, 30)), st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_whatever_a_sink_does_every_notice_is_sent_or_counted_dead_and_others_get_theirs(
    fails: set[int], count: int
) -> None:
    flaky, good = Flaky(fails), Flaky(set())
    good.name = "good"
    delivery = Delivery([flaky, good], attempts=3, first_wait_s=1.0)
    delivery.offer(notice(number) for number in range(count))
    for now_s in range(0, 4000, 7):
        delivery.work(float(now_s))
    figures = delivery.figures()
    assert len(good.taken) == figures["good"].sent == count
    assert figures["flaky"].sent + figures["flaky"].dead == count
    assert figures["flaky"].waiting == 0
    assert len(flaky.taken) == figures["flaky"].sent
    assert figures["flaky"].failed == len([call for call in fails if call <= flaky.calls])
    assert {n.id for n in delivery.dead_letters("flaky")} | set(flaky.taken) == {
        f"n{n}" for n in range(count)
    }


def test_a_notice_that_a_sink_cannot_take_holds_up_no_other_and_comes_back_when_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sink = Flaky(set(), poison="n0")
    delivery = Delivery([sink], attempts=3, first_wait_s=1.0)
    delivery.offer(notice(number) for number in range(4))
    for now_s in range(60):
        delivery.work(float(now_s))
    assert sink.taken == ["n1", "n2", "n3"]
    assert delivery.figures()["flaky"].dead == 1
    assert "pseudo-77" not in caplog.text
    sink._poison = ""
    assert delivery.revive("flaky") == 1
    delivery.work(100.0)
    assert sink.taken[-1] == "n0"


def test_what_waits_outlives_a_restart_and_an_erased_patient_s_notices_do_not() -> None:
    down = Delivery([Flaky(set(range(100)))], first_wait_s=1.0)
    down.offer([notice(1), notice(2, patient="gone"), notice(3)])
    down.work(0.0)
    down.forget("gone")
    sink = Flaky(set())
    again = Delivery([sink])
    assert again.restore(down.snapshot()) == 0
    assert b"gone" not in down.snapshot()
    again.work(1e9)
    assert sorted(sink.taken) == ["n1", "n3"]
    assert again.figures()["flaky"].failed == 1
    assert Delivery([]).restore(down.snapshot()) == 2
    with pytest.raises(DataError):
        again.restore(b"[1]")


def test_a_full_queue_gives_up_the_least_urgent_first_and_says_so() -> None:
    delivery = Delivery([Flaky(set())], most=2)
    delivery.offer(notice(number, priority=priority) for number, priority in enumerate(PRIORITIES))
    figures = delivery.figures()["flaky"]
    assert (figures.waiting, figures.dead, figures.overflowed) == (2, 1, 1)
    assert [n.alert.priority for n in delivery.dead_letters("flaky")] == ["low"]
