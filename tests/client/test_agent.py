"""The quiet loop of a hospital's process goes on whatever one of its chores runs into."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from client.agent import Agent, Pace
from link.hospital import HospitalLink, State
from tests.hospital_home import Coordinator, founded
from trust.audit import AuditLog


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
    link = SimpleNamespace(state=State(connected=True), call=lambda *_: package)
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
