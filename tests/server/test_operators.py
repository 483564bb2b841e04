"""The operators' listener: operators only, judged at every call; closed commands, typed arguments."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from conf.errors import TwinwardError
from conf.load import load_plan, to_json
from link.tls import Credentials, channel_credentials, refuse_old_tls
from server.commands import ARGUMENTS, LONGEST_TEXT, Commands
from server.door import Door
from server.errors import ServerError
from server.founding import add_operator, found, listener_credentials
from server.home import CoordinatorHome, Settings
from server.inquiries import Inquiries
from server.members import Members
from server.operator import METHOD, Coordinator
from server.operators import RECORDED_REFUSALS_MIN, OperatorsListener
from server.questions import Questions
from server.queue import Queue
from server.registry import Registry
from trust.authority import Authority
from trust.identity import Identity, Role
from trust.keys import key_to_pem, new_key, signing_request
from trust.signing import Signer

NOW = datetime.now(UTC)
CONFIG = to_json(load_plan(["task=heart", "rounds=2"]))
LAUNCH: dict[str, Any] = {"quorum": 2, "round_s": 60.0, "approval_s": 60.0, "sites": []}


@dataclass
class Office:
    """A coordinator without hospitals, and what its audit log was told."""

    home: CoordinatorHome
    authority: Authority
    members: Members
    queue: Queue
    listener: OperatorsListener
    records: list[tuple[str, dict[str, Any]]]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.listener.port}"

    def founder(self) -> Credentials:
        folder = self.home.operators / "founder"
        return Credentials(
            key=(folder / "key.pem").read_bytes(),
            certificate=(folder / "certificate.pem").read_bytes(),
            authorities=self.authority.certificate_pem,
        )

    def certified(self, name: str, role: Role, authority: Authority | None = None) -> Credentials:
        """A certificate of the federation's authority, or of another, for somebody whom no list names."""
        key = new_key()
        identity = Identity(federation="net", role=role, name=name)
        pem = (authority or self.authority).issue(signing_request(key, name), identity, 10, now=NOW)
        return Credentials(key=key_to_pem(key), certificate=pem, authorities=self.authority.certificate_pem)

    def call(self, mine: Credentials, command: str = "runs", **arguments: Any) -> dict[str, Any]:
        with Coordinator(self.address, mine, timeout_s=60.0) as at:
            return at.call(command, **arguments)


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    settings = Settings(federation="net", host="127.0.0.1", bind="127.0.0.1")
    home = found(tmp_path / "home", settings, operator="founder", now=NOW)
    authority, records = Authority.open(home.authority), []
    signer = Signer.load(home.signing_key)

    def record(kind: str, *, who: str, why: str = "", **facts: str | int) -> None:
        records.append((kind, {"who": who, "why": why, **facts}))

    with Members(home.members) as members:
        queue, registry = Queue(home.queue), Registry(home.registry)
        questions = Questions(home.questions)
        commands = Commands(
            home=home,
            federation="net",
            queue=queue,
            registry=registry,
            sign=lambda data: signer.sign("model", data),
            record=record,
            connected=lambda: ["alpha"],
            inquiries=Inquiries(questions=questions, members=lambda: ["alpha"], record=record),
        )
        listener = OperatorsListener(
            "127.0.0.1:0",
            lambda: listener_credentials(home, authority, now=datetime.now(UTC)),
            Door(members, authority.certificate),
            commands,
        )
        yield Office(home, authority, members, queue, listener, records)
        listener.stop(0.1)
        queue.close()
        questions.close()
        registry.close()


def test_an_operator_launches_follows_and_steers_a_run(office: Office) -> None:
    founder = office.founder()
    run = office.call(founder, "launch", config=CONFIG, request="r", **LAUNCH)["run"]
    assert (run["id"], run["state"], run["who"]) == ("run-0001", "queued", "founder")
    assert run["config"]["task"]["name"] == "heart"
    again = office.call(founder, "launch", config=CONFIG, request="r", **LAUNCH)["run"]
    assert again["id"] == "run-0001"
    assert office.call(founder, "pause", run="run-0001", why="lunch")["run"]["state"] == "paused"
    assert office.call(founder, "resume", run="run-0001", why="")["run"]["state"] == "queued"
    assert office.call(founder, "stop", run="run-0001", why="enough")["run"]["state"] == "stopped"
    listed = office.call(founder)["runs"]
    assert [entry["reason"] for entry in listed] == ["enough"]
    told = [(kind, facts["who"], facts["why"]) for kind, facts in office.records]
    assert told == [
        ("run_launched", "founder", ""),
        ("run_launched", "founder", ""),
        ("run_paused", "founder", "lunch"),
        ("run_resumed", "founder", ""),
        ("run_stopped", "founder", "enough"),
    ]


@pytest.mark.parametrize("role", ["site", "receiver", "operator"])
def test_whoever_is_no_listed_operator_is_refused_and_recorded(office: Office, role: Role) -> None:
    with pytest.raises(ServerError, match="none of an active operator"):
        office.call(office.certified("mallory", role))
    assert [kind for kind, _ in office.records] == ["operator_refused"]


def test_a_member_that_trains_is_no_operator(office: Office) -> None:
    secret = office.members.invite("alpha", "site", expires=NOW + timedelta(days=1))
    mine = office.certified("alpha", "site")
    office.members.enrol(secret, "alpha", "key", NOW, lambda _: mine.certificate)
    with pytest.raises(ServerError, match="none of an active operator"):
        office.call(mine, "stop", run="run-0001", why="")
    assert office.records == [("operator_refused", {"who": "alpha", "why": "other_role"})]


def test_a_revoked_operator_is_refused_on_the_connection_that_is_open(office: Office) -> None:
    with Coordinator(office.address, office.founder()) as at:
        at.call("runs")
        office.members.end("founder", "revoked", "left the firm", NOW)
        with pytest.raises(ServerError, match="none of an active operator"):
            at.call("runs")


def test_an_operator_who_got_a_new_certificate_cannot_use_the_old_one(office: Office) -> None:
    old = office.founder()
    add_operator(office.home, office.authority, office.members, "founder", now=NOW)
    with pytest.raises(ServerError, match="none of an active operator"):
        office.call(old)
    assert office.call(office.founder()) == {"runs": []}


def test_a_certificate_of_another_authority_does_not_get_in(office: Office, tmp_path: Path) -> None:
    foreign = Authority.create(tmp_path / "foreign", "net", now=NOW)
    with pytest.raises(ServerError, match="No coordinator answers"):
        office.call(office.certified("founder", "operator", foreign))
    assert office.records == []


def test_without_a_certificate_there_is_no_connection(office: Office) -> None:
    credentials = grpc.ssl_channel_credentials(office.authority.certificate_pem)
    with grpc.secure_channel(office.address, credentials) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(METHOD)(b"{}", timeout=60)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    with grpc.insecure_channel(office.address) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary(METHOD)(b"{}", timeout=60)


def test_tls_1_2_is_refused_even_with_a_good_certificate(office: Office, tmp_path: Path) -> None:
    refuse_old_tls("127.0.0.1", office.listener.port, office.founder())  # raises if it is spoken
    path = tmp_path / "pair.pem"
    path.write_bytes(office.founder().key + office.founder().certificate)
    context = ssl.create_default_context(cadata=office.authority.certificate_pem.decode())
    context.load_cert_chain(path)
    with (
        socket.create_connection(("127.0.0.1", office.listener.port), 10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as spoken,
    ):
        assert spoken.version() == "TLSv1.3"  # the same pair, with the version left open


def test_knocking_does_not_fill_the_log(office: Office) -> None:
    mallory = office.certified("mallory", "site")
    with Coordinator(office.address, mallory) as at:
        for _ in range(3 * RECORDED_REFUSALS_MIN):
            with pytest.raises(ServerError):
                at.call("runs")
    assert len(office.records) == RECORDED_REFUSALS_MIN


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04pickle",
        b"[]",
        b'{"command": "runs"}',
        b'{"command": 1, "arguments": {}}',
        b'{"command": "runs", "arguments": []}',
        b'{"command": "runs", "arguments": {}, "more": 1}',
        b"[" * 100_000,
    ],
)
def test_a_request_of_another_form_is_refused(office: Office, data: bytes) -> None:
    with grpc.secure_channel(office.address, channel_credentials(office.founder())) as channel:
        answer = json.loads(channel.unary_unary(METHOD)(data, timeout=60))
    assert "command" in answer["error"]
    assert office.records == []


def test_a_request_over_the_cap_is_refused_before_it_is_read(office: Office) -> None:
    with grpc.secure_channel(office.address, channel_credentials(office.founder())) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(METHOD)(b" " * 5_000_000, timeout=60)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("command", "arguments", "told"),
    [
        ("delete", {}, "no command"),
        ("__class__", {}, "no command"),
        ("runs", {"run": "x"}, "arguments"),
        ("status", {}, "arguments"),
        ("status", {"run": 1}, "Expected str"),
        ("status", {"run": "../../etc/passwd"}, "id of a run"),
        ("promote", {"number": True, "why": ""}, "Expected int"),
        ("promote", {"number": 1, "why": ""}, "no model 1"),
        ("stop", {"run": "run-0001", "why": "x" * (LONGEST_TEXT + 1)}, "at most"),
        ("launch", LAUNCH | {"config": CONFIG, "request": "r", "sites": [1, 2]}, "Expected list"),
        ("launch", LAUNCH | {"config": CONFIG, "request": "r", "quorum": 0}, "quorum"),
        ("launch", LAUNCH | {"config": CONFIG, "request": "r", "round_s": float("inf")}, "deadlines"),
        ("launch", LAUNCH | {"config": "{", "request": "r"}, "JSON"),
        ("launch", LAUNCH | {"config": '{"rounds": 0}', "request": "r"}, "rounds=0"),
        ("launch", LAUNCH | {"config": '{"_target_": "os.system"}', "request": "r"}, "no such key"),
    ],
)
def test_commands_and_arguments_that_are_not_allowed_change_nothing(
    office: Office, command: str, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(TwinwardError, match=told):
        office.call(office.founder(), command, **arguments)
    assert office.queue.runs() == ()


def test_every_command_is_in_the_table_and_no_other() -> None:
    from server.commands import _WORK

    assert set(_WORK) == set(ARGUMENTS)


def test_waiting_ends_with_a_change(office: Office) -> None:
    seen = office.queue.changes()
    found: list[int] = []

    def wait() -> None:
        found.append(office.call(office.founder(), "wait", seen=seen, timeout_s=15.0)["changes"])

    waiter = threading.Thread(target=wait)
    waiter.start()
    office.call(office.founder(), "launch", config=CONFIG, request="r", **LAUNCH)
    waiter.join(timeout=30.0)
    assert found
    assert found[0] > seen


def test_two_listeners_cannot_share_a_port(office: Office) -> None:
    with pytest.raises(ServerError, match="taken"):
        OperatorsListener(
            office.address,
            lambda: listener_credentials(office.home, office.authority, now=datetime.now(UTC)),
            Door(office.members, office.authority.certificate),
            office.listener._commands,
        )
