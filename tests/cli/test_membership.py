"""Founding, inviting, joining and leaving as people do it: real processes, folders and listeners."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from server.enrolment import EnrolmentDesk
from server.enrolment_listener import EnrolmentListener
from server.founding import listener_credentials
from server.home import CoordinatorHome
from server.members import Members
from tests.ports import free_ports
from trust.audit import AuditLog
from trust.authority import Authority
from trust.identity import identity_of
from trust.invitation import Invitation

ROOT = Path(__file__).parents[2]


def twinward(cwd: Path, *words: str, said: str = "", code: int = 0) -> str:
    """What a command prints; on another exit code than expected the test fails with its messages."""
    answer = subprocess.run(
        [sys.executable, "-m", "cli.main", *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "140", "NO_COLOR": "1"},
        input=said,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert answer.returncode == code, answer.stderr
    return answer.stdout if code == 0 else answer.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a founded federation in it."""
    hospitals, enrolment, operators = map(str, free_ports(3))
    words = ["coordinator", "init", "--federation", "net", "--host", "127.0.0.1", "--operator", "ann"]
    ports = ["--hospitals-port", hospitals, "--enrolment-port", enrolment, "--operators-port", operators]
    said = twinward(tmp_path, *words, *ports)
    assert Authority.open(tmp_path / "coordinator/authority").fingerprint in said
    return tmp_path


@contextmanager
def enrolling(home: CoordinatorHome) -> Iterator[None]:
    """The coordinator's enrolment listener, on the port in its settings."""
    authority, settings = Authority.open(home.authority), home.settings()
    with Members(home.members) as members, AuditLog(home.audit) as audit:
        desk = EnrolmentDesk(
            members=members,
            authority=authority,
            address=settings.hospitals,
            signing_keys={},
            record=audit.append,
        )
        listener = EnrolmentListener(
            desk,
            address=settings.enrolment,
            current=lambda: listener_credentials(home, authority, now=datetime.now(UTC)),
        )
        try:
            yield
        finally:
            listener.stop(0)


def kinds(path: Path) -> list[str]:
    with AuditLog(path) as audit:
        return [record.kind for record in audit.records()]


def test_a_hospital_joins_and_leaves_with_the_commands_that_are_printed(folder: Path) -> None:
    invited = json.loads(twinward(folder, "coordinator", "invite", "north", "--json"))
    with enrolling(CoordinatorHome(folder / "coordinator")):
        words = ["site", "join", "-", "--home", "north", "--data", "data"]
        printed = twinward(folder, *words, said=invited["token"] + "\n")
        assert "north is a site of net" in printed
        refused = twinward(folder, "site", "join", invited["token"], "--home", "other", code=1)
        assert "token_used" in refused
    assert identity_of((folder / "north/certificate.pem").read_bytes()).uri == "twinward://net/site/north"
    listed = {
        entry["name"]: entry for entry in json.loads(twinward(folder, "coordinator", "sites", "--json"))
    }
    assert {name: entry["state"] for name, entry in listed.items()} == {"ann": "active", "north": "active"}
    twinward(folder, "site", "leave", "--home", "north", "--offline", "--why", "test")
    assert not (folder / "north/key.pem").exists()
    assert "no member's folder" in twinward(folder, "site", "leave", "--home", "north", code=1)
    assert kinds(folder / "north/audit.sqlite") == ["site_joined", "site_left"]
    twinward(folder, "coordinator", "revoke", "north", "--why", "left")
    assert "revoked" in twinward(folder, "coordinator", "sites")
    assert kinds(folder / "coordinator/audit.sqlite") == [
        "federation_founded",
        "site_invited",
        "site_joined",
        "join_refused",
        "member_revoked",
    ]


def test_an_invitation_says_where_to_join_and_can_be_withdrawn(folder: Path) -> None:
    printed = twinward(folder, "coordinator", "invite", "north", "--receiver", "--days", "2")
    token = next(line for line in printed.splitlines() if line.startswith("twinward1."))
    invitation = Invitation.parse(token)
    assert (invitation.site, invitation.role) == ("north", "receiver")
    assert invitation.address == CoordinatorHome(folder / "coordinator").settings().enrolment
    assert "withdrawn" in twinward(folder, "coordinator", "revoke", "north")
    with enrolling(CoordinatorHome(folder / "coordinator")):
        assert "token_withdrawn" in twinward(folder, "site", "join", token, code=1)


def test_commands_that_cannot_work_say_why_and_change_nothing(folder: Path) -> None:
    before = kinds(folder / "coordinator/audit.sqlite")
    found = ("coordinator", "init", "--federation", "net", "--host", "h")
    assert "empty or absent" in twinward(folder, *found, code=1)
    assert "--days" in twinward(folder, "coordinator", "invite", "north", "--days", "0", code=2)
    assert "1 to 63" in twinward(folder, "coordinator", "invite", "North", code=1)
    assert "is the name of an operator" in twinward(
        folder, "coordinator", "invite", "ann", "--replace", code=1
    )
    assert "one of: ann" in twinward(folder, "coordinator", "revoke", "north", code=1)
    assert "coordinator init" in twinward(folder, "coordinator", "sites", "--home", "nowhere", code=1)
    assert "either a PEM file" in twinward(folder, "coordinator", "trust-pki", "north", code=2)
    assert "begins with" in twinward(folder, "site", "join", "hello", code=1)
    assert "go together" in twinward(folder, "site", "join", "hello", "--key", "k", code=2)
    assert kinds(folder / "coordinator/audit.sqlite") == before
    assert not (folder / "nowhere").exists() and not (folder / "site").exists()


def test_operators_and_authorities_of_hospitals_are_added_and_removed(folder: Path) -> None:
    twinward(folder, "coordinator", "operator", "bob", "--days", "30")
    taken = folder / "coordinator/operators/bob"
    assert sorted(path.name for path in taken.iterdir()) == [
        "authority.pem",
        "certificate.pem",
        "key.pem",
        "operator.json",
    ]
    assert (taken / "key.pem").stat().st_mode & 0o777 == 0o600
    assert identity_of((taken / "certificate.pem").read_bytes()).uri == "twinward://net/operator/bob"
    own = Authority.create(folder / "own", "own", now=datetime.now(UTC))
    printed = twinward(folder, "coordinator", "trust-pki", "north", "own/authority.pem")
    assert own.fingerprint in printed
    with Members(folder / "coordinator/members.sqlite") as members:
        assert members.pki("north") == (own.certificate,)
        twinward(folder, "coordinator", "trust-pki", "north", "--remove")
        assert members.pki("north") == ()
