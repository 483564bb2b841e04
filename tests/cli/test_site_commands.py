"""What a hospital's people see and decide, through the commands that they type."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from client.hospital import close_hospitals
from tests.hospital_home import AUTOMATIC, Coordinator, founded, write_policy
from trust.audit import AuditLog
from trust.digest import arrays_from_bytes


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    with founded(tmp_path) as found:
        assert found.declare().error == "awaiting_approval"
        yield found


def _site(coordinator: Coordinator, *words: str) -> int:
    return main(["site", *words, "--home", str(coordinator.home.directory)])


def _read(coordinator: Coordinator, capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert _site(coordinator, *words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_a_waiting_plan_is_listed_with_what_it_costs(
    coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    (entry,) = _read(coordinator, capsys, "plans")
    assert (entry["plan"], entry["state"], entry["policy"]) == (coordinator.offer.hash, "waiting", "wait")
    assert entry["epsilon"] == entry["epsilon_life_after"] == pytest.approx(8.0, abs=0.01)
    assert _site(coordinator, "plans") == 0
    assert coordinator.offer.hash[:12] in capsys.readouterr().out
    (whole,) = _read(coordinator, capsys, "plans", coordinator.offer.hash[:6])
    assert whole["json"] == json.loads(coordinator.offer.to_json())


def test_an_approval_lets_the_plan_run_and_stands_in_the_log(
    coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("approve", coordinator.offer.hash[:8], "--who", "dr a", "--why", "vote 12/26")
    assert _read(coordinator, capsys, *words)["state"] == "approved"
    assert coordinator.declare().error == ""
    with AuditLog(coordinator.home.audit) as log:
        record = log.last("approved")
    assert record is not None
    assert (record.who, record.why, record.facts) == ("dr a", "vote 12/26", {"plan": coordinator.offer.hash})


def test_a_refusal_ends_a_plan_that_runs(coordinator: Coordinator) -> None:
    assert _site(coordinator, "approve", coordinator.offer.hash) == 0
    coordinator.declare()
    coordinator.accept()
    assert coordinator.train(1)[0].error == ""
    assert _site(coordinator, "refuse", coordinator.offer.hash[:8], "--why", "enough") == 0
    assert coordinator.train(2)[0].error == "plan_refused"


def test_what_the_policy_refuses_cannot_be_approved(
    coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    write_policy(coordinator.home, replace(AUTOMATIC, tasks=("glucose",)))
    assert _site(coordinator, "approve", coordinator.offer.hash) == 1
    assert "does not overrule" in capsys.readouterr().err
    close_hospitals()
    assert coordinator.declare().error == "task_refused"


def test_a_rehearsal_prints_what_leaves_and_writes_it_where_asked(
    coordinator: Coordinator, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "update.safetensors"
    shown = _read(coordinator, capsys, "rehearse", coordinator.offer.hash[:8], "--out", str(out))
    assert [entry["kind"] for entry in shown["leaves"]] == ["query.declare", "query.accept", "train"]
    update = arrays_from_bytes(out.read_bytes())
    assert shown["leaves"][2]["arrays"] == {
        name: {"shape": list(array.shape), "type": str(array.dtype)} for name, array in update.items()
    }
    assert _site(coordinator, "rehearse", coordinator.offer.hash[:8]) == 0
    assert "nothing was sent" in capsys.readouterr().out
    with AuditLog(coordinator.home.audit) as log:
        assert [record.kind for record in log.records()] == [
            "policy_changed",
            "offered",
            "rehearsed",
            "rehearsed",
        ]


def test_a_plan_that_was_not_offered_yet_can_be_rehearsed_from_its_file(
    coordinator: Coordinator, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(replace(coordinator.offer, purpose="d" * 64).to_json())
    assert _read(coordinator, capsys, "rehearse", str(path))["policy"]["decision"] == "wait"


def test_a_plan_that_nobody_offered_is_named_as_such(
    coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _site(coordinator, "approve", "0000000000") == 1
    assert "plan_unknown" in capsys.readouterr().err


def test_a_folder_that_is_no_site_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["site", "plans", "--home", str(tmp_path)]) == 1
    assert "site join" in capsys.readouterr().err


def test_plug_ins_are_listed(coordinator: Coordinator, capsys: pytest.CaptureFixture[str]) -> None:
    assert _read(coordinator, capsys, "plugins") == []
