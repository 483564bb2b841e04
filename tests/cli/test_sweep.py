"""A sweep: processes of its own, coming back, failures that harm nobody else, Ctrl-C."""

from __future__ import annotations

import csv
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from cli import sweep
from cli.main import main
from cli.sweep_pool import Pool
from conf.errors import ConfigError
from conf.load import load
from simulate.folder import held
from tests.commands import started, twinward
from tests.heart_hospitals import write_folder
from tests.server.federation_of_processes import wait_until

QUICK = ["task=heart", "evaluation=folds", "evaluation.folds=2", "evaluation.bootstrap_samples=100"]
QUICK += ["evaluation.curves=false", "personal=none", "run.dir=sweep"]


def _words(folder: Path, *words: str) -> list[str]:
    return ["simulate", "-m", "data=folder", f"data.path={folder / 'hospitals'}", *QUICK, *words]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_folder(folder / "hospitals")
    return folder


@pytest.fixture(scope="module")
def swept(home: Path) -> Path:
    """The folder of a sweep of two good runs and two that every site refuses."""
    words = _words(home, "rounds=2", "privacy.minimum_patients=2,50", "seed=0,1", "--json")
    first = twinward(*words, cwd=home)
    assert first.returncode == 1, first.stderr
    (home / "first.json").write_text(first.stdout)
    (home / "first.csv").write_bytes((home / "sweep" / "sweep.csv").read_bytes())
    return home / "sweep"


def _alive(group: int) -> list[str]:
    """Processes of a group that run; a dead one whose parent is gone may stay listed in a container."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of) == group and state not in "ZX":
            found.append(path.parent.name)
    return found


def _stamps(sweep_folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sweep_folder.glob("*/summary.json")}


def test_failed_runs_fail_the_command_and_stop_no_others(home: Path, swept: Path) -> None:
    told = json.loads((home / "first.json").read_text())
    assert [entry["error"] is None for entry in told] == [True, True, False, False]
    assert told[0]["settings"] == ["privacy.minimum_patients=2", "seed=0"]
    assert "too_few_patients" in told[2]["error"]
    rows = list(csv.DictReader((home / "first.csv").open(newline="")))
    aurocs = [row["value"] for row in rows if (row["model"], row["metric"]) == ("global", "auroc")]
    wanted = [entry["summary"]["metrics"]["global"]["auroc"]["value"] for entry in told[:2]]
    assert [float(value) for value in aurocs] == wanted
    assert "<svg" in (swept / "sweep.html").read_text()


def test_a_sweep_that_is_to_be_resumed_as_a_run_says_what_continues_it(home: Path, swept: Path) -> None:
    answer = twinward("simulate", "--resume", str(swept), cwd=home)
    assert answer.returncode == 2
    assert "it holds a sweep, which the same command continues" in answer.stderr


def test_coming_back_with_more_values_reads_the_finished_and_tries_the_failed_again(
    home: Path, swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _stamps(swept)
    assert len(before) == 2
    monkeypatch.chdir(home)
    monkeypatch.setenv("COLUMNS", "200")
    words = _words(home, "rounds=2", "privacy.minimum_patients=2,50", "seed=0,1,2", "--jobs", "1")
    assert main(words) == 1
    said = capsys.readouterr()
    assert "6 runs in sweep, 2 of them finished before" in said.err
    assert "3 of 6 runs failed; the same command tries them again" in said.out
    assert said.out.count("Expected at least one site") == 3
    after = _stamps(swept)
    assert len(after) == 3
    assert {path: after[path] for path in before} == before
    assert len(list(swept.glob("*/config.yaml"))) == 6  # no run lies in two folders


def test_ctrl_c_ends_all_processes_and_leaves_runs_that_go_on(home: Path) -> None:
    words = _words(home, "rounds=100000", "seed=7,8", "run.dir=long")
    process = started(*(word for word in words if word != "run.dir=sweep"), cwd=home)
    stores = home / "long"
    wait_until(lambda: any(stores.glob("*/federations/all/coordinator.sqlite")))
    group = os.getpgid(process.pid)
    os.killpg(group, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=300)
    assert process.returncode in (130, -signal.SIGINT)
    assert "Go on with: the same command again" in said
    assert "Traceback" not in said
    wait_until(lambda: not _alive(group))
    assert not list(stores.glob("*/summary.json"))


def test_ctrl_c_does_not_reach_a_process_that_is_being_loaded(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    words = [*QUICK[:-1], "data=folder", f"data.path={tmp_path / 'data'}", f"run.dir={tmp_path / 'run'}"]

    class Interrupted(Pool):
        def _start(self) -> Any:
            started = super()._start()
            os.kill(started.process.pid or 0, signal.SIGINT)
            return started

    with Interrupted(jobs=1, threads=1) as pool:
        (ended,) = pool.outcomes([load(words)])
    assert "observations" in ended.error, ended.error  # it lived to tell that the folder is empty


def test_two_sweeps_in_one_folder_are_refused(home: Path) -> None:
    busy = home / "busy"
    words = ["data=folder", f"data.path={home / 'hospitals'}", *QUICK[:-1], "seed=0,1", f"run.dir={busy}"]
    with held(busy), pytest.raises(ConfigError, match="Another process is at work"):
        sweep.sweep(words, as_json=False)


def test_processes_and_threads_together_are_no_more_than_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [sweep.threads_each(jobs) for jobs in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [sweep.threads_each(jobs) for jobs in (1, 2, 3, 8)] == [3, 3, 2, 1]


def test_values_that_are_added_to_a_sweep_do_not_move_it() -> None:
    config = load([])
    few = sweep._folder(["seed=0,1", "rounds=3"], config)
    assert few == sweep._folder(["rounds=3", "seed=0,1,2,5"], config)
    assert few != sweep._folder(["rounds=4", "seed=0,1"], config)


def test_a_value_given_twice_is_one_run(tmp_path: Path) -> None:
    from conf.load import load_sweep

    words = ["seed=0,1,0"]
    assert len(sweep._planned(words, load_sweep(words), tmp_path)) == 2


def test_a_process_that_is_killed_is_one_failed_run_and_the_next_one_goes_on(
    home: Path, tmp_path: Path
) -> None:
    words = ["data=folder", f"data.path={home / 'hospitals'}", *QUICK[:-1]]
    long = load([*words, "rounds=100000", f"run.dir={tmp_path / 'long'}"])
    short = load([*words, "rounds=1", f"run.dir={tmp_path / 'short'}"])

    with Pool(jobs=1, threads=1) as pool:

        def kill_when_it_trains() -> None:
            wait_until((tmp_path / "long" / "federations" / "all" / "coordinator.sqlite").exists)
            os.kill(pool._processes[0].process.pid or 0, signal.SIGKILL)

        killer = threading.Thread(target=kill_when_it_trains)
        killer.start()
        killed, done = pool.outcomes([long, short])
        killer.join()
    assert (killed.place, done.place, done.error) == (0, 1, "")
    assert "code -9" in killed.error
    assert "fewer --jobs" in killed.error
    assert (tmp_path / "short" / "summary.json").exists()
