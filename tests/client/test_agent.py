"""The quiet loop of a hospital's process goes on whatever one of its chores runs into."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from client.agent import Agent, Pace
from client.calling import credentials_of
from client.policy import DEFAULT_POLICY
from link.errors import CallRefused
from link.hospital import HospitalLink, HospitalSettings, State
from tests.hospital_home import Coordinator, founded
from tests.server.federation_of_processes import wait_until
from trust.audit import AuditLog
from trust.digest import sha256


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    with founded(tmp_path) as found:
        yield found


def test_neither_what_a_peer_sends_nor_a_full_disk_nor_a_broken_policy_ends_the_process(
    coordinator: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    home = coordinator.home
    nested = b"[" * 100_000
    package = len(nested).to_bytes(4, "big") + nested
    link = SimpleNamespace(state=State(connected=True), call=lambda *_, **__: package)
    home.status_path.mkdir()  # so that it cannot be written
    agent = Agent(home, pace=Pace(status_s=0.0, renew_s=1e9, fetch_s=0.0))
    agent._due["renew"] = float("inf")
    with AuditLog(home.audit) as log:
        agent._tick(cast("HospitalLink", link), log)
        home.policy.write_text("[admit")
        agent._tick(cast("HospitalLink", link), log)
    told = caplog.text
    assert "could not fetch the model of heart: RecursionError" in told
    assert "could not write status.json" in told and "could not fetch models" in told
    assert "Expected TOML" in told


def test_a_policy_that_is_edited_is_recorded_without_a_request(coordinator: Coordinator) -> None:
    link = SimpleNamespace(state=State(connected=False))
    agent = Agent(coordinator.home, pace=Pace(status_s=1e9))
    agent._due["status"] = float("inf")
    with AuditLog(coordinator.home.audit) as log:
        for text in ("", "", "# looser\n", "# tighter\n", "# tighter\n"):
            coordinator.home.policy.write_text(text + DEFAULT_POLICY)
            agent._tick(cast("HospitalLink", link), log)
        records = list(log.records())
    assert [record.kind for record in records] == ["policy_changed"] * 3
    hashes = [str(record.facts["policy"]) for record in records]
    assert [str(record.facts["before"]) for record in records] == ["", *hashes[:2]]
    assert hashes[2] == sha256(coordinator.home.policy.read_bytes())


def test_a_stop_ends_a_call_that_a_coordinator_does_not_answer(coordinator: Coordinator) -> None:
    silent = HospitalSettings(
        address="127.0.0.1:9",
        credentials=lambda: credentials_of(coordinator.home),
        transfers=coordinator.home.transfers,
    )
    agent = Agent(coordinator.home)
    link = agent._link = HospitalLink(silent, lambda message: message)
    said: list[str] = []

    def call() -> None:
        for _ in range(2):  # one that waits, and one that begins after the stop
            with pytest.raises(CallRefused) as refused:
                link.call("model", b"", 600.0)
            said.append(refused.value.code)

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    wait_until(lambda: bool(link._calls))
    agent.stop()
    caller.join(30.0)
    assert said == ["stopped", "stopped"]
