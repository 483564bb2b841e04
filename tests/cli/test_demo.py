"""The demo's federation is real: processes, certificates, ledgers; and nothing of it outlives the demo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.processes import ProcessError, Processes

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SMALL = ["--sites=2", "--patients=10", "--days=3", "rounds=2", "--json", "--stay"]


class Shown:
    """A demo that stays, what it printed, and the processes that it started."""

    def __init__(self, folder: Path) -> None:
        words = [sys.executable, "-m", "cli.main", "demo", f"--dir={folder}", *SMALL]
        self.folder, self.said = folder, folder.with_name("stderr")
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=said, text=True, env=ENVIRONMENT, cwd=ROOT
            )
        text = ""
        assert self.process.stdout is not None
        while not text.endswith("\n}\n"):
            line = self.process.stdout.readline()
            assert line, self.said.read_text()
            text += line
        self.facts: dict[str, Any] = json.loads(text)
        self.children = children(self.process.pid)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    demo = Shown(tmp_path_factory.mktemp("demo") / "federation")
    yield demo
    demo.process.kill()
    demo.process.wait()


def children(parent: int) -> list[int]:
    return [
        int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if _field(stat, 1) == str(parent)
    ]


def _field(stat: Path, number: int) -> str:
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[number]
    except OSError:
        return ""


def is_running(process: int) -> bool:
    stat = Path("/proc") / str(process) / "stat"
    return _field(stat, 0) not in ("", "Z")


def twinward(*words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *words, "--json"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_each_hospital_answered_each_round_and_paid_for_it(shown: Shown) -> None:
    assert shown.facts["rounds"] == 2
    assert [row["site"] for row in shown.facts["sites"]] == ["hospital_1", "hospital_2"]
    for row in shown.facts["sites"]:
        assert row["rounds_answered"] == 2
        assert 0 < row["epsilon_spent"] <= 8.0
        assert row["audit_faults"] == 0
    assert shown.facts["audit_faults"] == 0
    assert len(shown.facts["model_sha256"]) == 64


def test_the_commands_that_it_names_work_while_it_stays(shown: Shown) -> None:
    operator = shown.folder / "coordinator" / "operators" / "founder"
    found = twinward("coordinator", "status", shown.facts["run"], "--operator", str(operator))
    assert found["run"]["state"] == "done"
    assert found["connected"] == ["hospital_1", "hospital_2"]
    site = twinward("site", "status", "--home", str(shown.folder / "hospitals" / "hospital_1" / "home"))
    assert site["running"]
    assert site["plans"]["done"] == 1


def test_no_invitation_is_shown(shown: Shown) -> None:
    said = shown.said.read_text()
    assert said.count("$ twinward site join TOKEN") == 2
    assert all("site join TOKEN" in line for line in said.splitlines() if "site join" in line)


def test_every_process_ends_with_the_demo_even_if_it_is_killed(shown: Shown) -> None:
    assert len(shown.children) == 3
    assert all(map(is_running, shown.children))
    shown.process.send_signal(signal.SIGKILL)
    shown.process.wait()
    end_s = time.monotonic() + 300
    while any(map(is_running, shown.children)) and time.monotonic() < end_s:
        time.sleep(0.1)
    assert not [child for child in shown.children if is_running(child)]


def test_a_process_that_ends_by_itself_is_noticed_with_its_last_words(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.start("lost", ["coordinator", "serve", f"--home={tmp_path / 'none'}"])
        with pytest.raises(ProcessError, match="twinward coordinator init"):
            processes.wait_for("nothing", lambda: False, 300)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "demo", f"--dir={tmp_path}"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2
    assert "--dir" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
