"""At a site's door the kernel says who asks; what is not allowed is refused; all is recorded first."""

from __future__ import annotations

import getpass
import json
import os
import resource
import socket
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from client.counter import Answer, ask, receive, send
from client.door import MOST_CALLERS, MOST_OF_ONE, Door, Service
from client.errors import ClientError
from trust.roles import Roles, roles

ME = getpass.getuser()
TABLE = pd.DataFrame(
    {
        "patient_id": pd.Series(["a", "b"], dtype="str"),
        "time": pd.to_datetime(["2024-03-01T00:00Z", "2024-03-01T00:05Z"]).as_unit("us"),
        "value": [101.5, np.nan],
    }
)


class Log:
    """Holds what was recorded, in order with what was answered."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []
        self.full = False

    def record(self, *entry: str) -> None:
        if self.full:
            raise ClientError("audit_failed", "The audit log cannot be written.")
        self.told.append(entry)

    def read(self, words: Any) -> Answer:
        self.told.append(("answered",))
        return Answer(facts={"rows": int(words["rows"])}, table=TABLE.head(int(words["rows"])))

    def fail(self, _: Any) -> Answer:
        raise KeyError("Kirk")


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def held() -> list[str]:
    return ["clinician"]


@pytest.fixture
def door(tmp_path: Path, log: Log, held: list[str]) -> Iterator[Door]:
    def rights() -> Roles:
        return roles({ME: list(held)}, {})

    services = {
        "observations": Service(
            right="observations:read", answer=log.read, about=lambda words: f"{words['rows']} rows"
        ),
        "erase": Service(right="erase", answer=log.read),
        "broken": Service(right="twin:read", answer=log.fail),
    }
    made = Door(tmp_path / "run" / "door", services, roles=rights, record=log.record)
    yield made
    made.close()


def test_a_table_comes_as_it_is_and_the_record_before_it(door: Door, log: Log) -> None:
    answer = ask(door.path, "observations", rows=2)
    assert answer.facts == {"rows": 2} and answer.table is not None
    pd.testing.assert_frame_equal(answer.table, TABLE)
    assert log.told == [("access_granted", ME, "observations:read", "2 rows"), ("answered",)]


def test_what_no_role_allows_is_refused_recorded_and_not_done(door: Door, log: Log) -> None:
    with pytest.raises(ClientError, match=r"right erase.*docs/access\.md") as refused:
        ask(door.path, "erase", rows=1)
    assert refused.value.code == "access_refused"
    assert log.told == [("access_refused", ME, "erase", "")]


def test_a_change_of_rights_holds_from_the_next_question_on(door: Door, held: list[str]) -> None:
    ask(door.path, "observations", rows=1)
    held.clear()
    with pytest.raises(ClientError, match="access_refused"):
        ask(door.path, "observations", rows=1)


def test_without_the_audit_log_there_is_no_answer(door: Door, log: Log) -> None:
    log.full = True
    with pytest.raises(ClientError, match="audit_failed"):
        ask(door.path, "observations", rows=1)
    assert log.told == []


def test_an_error_that_is_not_ours_shows_nothing(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ClientError, match="internal_error") as failed:
        ask(door.path, "broken")
    assert "Kirk" not in str(failed.value) + caplog.text and "KeyError" in caplog.text


def test_what_is_no_question_ends_the_call_and_not_the_door(door: Door) -> None:
    for frame in (b"", b"[]", b"{" * 50_000, json.dumps({"ask": 1, "words": {}}).encode(), b"\xff"):
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(door.path))
            send(line, frame)
            with pytest.raises(ValueError, match="closed"):
                receive(line, 1000)
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(door.path))
        line.sendall(struct.pack(">I", 1 << 31))  # announces two gigabytes
        with pytest.raises((ValueError, OSError)):
            receive(line, 1000)
    with pytest.raises(ClientError, match="no question"):
        ask(door.path, "anything")
    assert ask(door.path, "observations", rows=0).facts == {"rows": 0}


def test_only_this_user_reaches_the_socket_and_it_goes_with_the_door(door: Door) -> None:
    assert stat.S_IMODE(door.path.stat().st_mode) == 0o600
    door.close()
    assert not door.path.exists()
    with pytest.raises(ClientError, match="twinward site up"):
        ask(door.path, "observations", rows=1)


def test_a_socket_that_a_dead_process_left_is_taken_over(tmp_path: Path, log: Log) -> None:
    path = tmp_path / "door"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    made = Door(path, {}, roles=lambda: roles({}, {}), record=log.record)
    with pytest.raises(ClientError, match="no question"):
        ask(path, "x")
    made.close()


def test_callers_who_say_nothing_take_no_more_than_their_own_places(door: Door) -> None:
    assert MOST_OF_ONE < MOST_CALLERS
    idle = [socket.socket(socket.AF_UNIX) for _ in range(MOST_OF_ONE)]
    for line in idle:
        line.connect(str(door.path))
    with pytest.raises(ClientError, match="unavailable"):
        ask(door.path, "observations", rows=1)
    for line in idle:
        line.close()
    assert _asked_until_answered(door) == {"rows": 1}


def test_a_caller_who_speaks_a_byte_at_a_time_has_no_more_time_than_others(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.door.QUESTION_S", 0.3)
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(door.path))
        line.sendall(struct.pack(">I", 60_000))
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            _drip(line)


def test_the_door_outlives_a_process_without_a_free_file(door: Door) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as line:
        try:
            kept: list[int] = []
            highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
            kept = _every_file_left()
            line.connect(str(door.path))
            time.sleep(0.3)  # the door cannot accept it
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for descriptor in kept:
                os.close(descriptor)
    assert _asked_until_answered(door) == {"rows": 1}


def test_a_group_that_may_ask_can_reach_the_socket(tmp_path: Path, log: Log) -> None:
    made = Door(
        tmp_path / "run" / "door", {}, roles=lambda: roles({}, {}), record=log.record, group=os.getgid()
    )
    folder, at = made.path.parent.stat(), made.path.stat()
    made.close()
    assert (stat.S_IMODE(folder.st_mode), stat.S_IMODE(at.st_mode)) == (0o710, 0o660)
    assert folder.st_gid == at.st_gid == os.getgid()


def _asked_until_answered(door: Door) -> Any:
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s:
        try:
            return ask(door.path, "observations", rows=1).facts
        except ClientError:
            time.sleep(0.05)
    return None


def _drip(line: socket.socket) -> None:
    for _ in range(300):
        line.sendall(b" ")
        time.sleep(0.02)


def _every_file_left() -> list[int]:
    found: list[int] = []
    try:
        while True:
            found.append(os.dup(0))
    except OSError:
        return found
