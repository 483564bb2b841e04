"""Whole runs through the command: what is printed, what is left, coming back, Ctrl-C."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from conf.load import from_yaml, load
from conf.naming import run_directory
from tests.commands import ROOT, started, twinward

SMALL = [
    "sites=2",
    "data.patients_per_site=6",
    "data.days=2",
    "rounds=2",
    "privacy.minimum_patients=2",
    "evaluation.folds=2",
    "evaluation.bootstrap_samples=100",
    "evaluation.curves=false",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `twinward simulate` ran once, with its output beside the run."""
    folder = tmp_path_factory.mktemp("home")
    answer = twinward("simulate", *SMALL, cwd=folder)
    assert answer.returncode == 0, answer.stderr
    (folder / "stdout").write_text(answer.stdout)
    (folder / "stderr").write_text(answer.stderr)
    return folder


@pytest.fixture(scope="module")
def finished(home: Path) -> Path:
    return home / run_directory(load(SMALL))


def test_a_run_leaves_what_the_readme_promises(finished: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in (
        "report.html",
        "summary.json",
        "metrics.csv",
        "rounds.csv",
        "model.safetensors",
        "config.yaml",
    ):
        assert f"`{name}`" in readme
        assert (finished / name).stat().st_size > 0
    assert from_yaml((finished / "config.yaml").read_text(encoding="utf-8")).rounds == 2


def test_a_run_ends_with_a_table_and_the_path_of_the_report(home: Path, finished: Path) -> None:
    text = (home / "stdout").read_text()
    assert "persistence" in text.lower()
    assert str((finished / "report.html").relative_to(home)) in text


def test_progress_goes_to_the_error_stream_in_plain_lines(home: Path) -> None:
    text = (home / "stderr").read_text()
    assert "done in" in text
    assert "\x1b" not in text


def test_coming_back_to_a_finished_run_recomputes_nothing(home: Path, finished: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns
        for path in finished.rglob("*")
        if path.suffix in (".safetensors", ".json")
    }
    again = twinward("simulate", "--resume", str(finished), "--json", cwd=home)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == json.loads((finished / "summary.json").read_text())
    assert twinward("simulate", *SMALL, cwd=home).returncode == 0
    after = {
        path: path.stat().st_mtime_ns
        for path in finished.rglob("*")
        if path.suffix in (".safetensors", ".json")
    }
    assert before == after
    assert before


def test_a_trained_model_is_judged_on_people_it_never_met(home: Path, finished: Path) -> None:
    words = [
        "seed=9",
        "sites=1",
        "data.patients_per_site=4",
        "data.days=2",
        "evaluation.bootstrap_samples=100",
    ]
    answer = twinward("evaluate", str(finished), *words, "--json", cwd=home)
    assert answer.returncode == 0, answer.stderr
    summary = json.loads(answer.stdout)
    assert summary["metrics"]["global"]["rmse_30_mg_dl"]["value"] > 0


def test_an_interrupt_says_how_to_go_on(home: Path) -> None:
    words = [word for word in SMALL if not word.startswith("rounds")]
    process = started("simulate", *words, "rounds=100000", "run.dir=long", cwd=home)
    deadline_s = time.monotonic() + 300
    while not (home / "long" / "config.yaml").exists() and process.poll() is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    # Python ends itself by the signal where it caught it in code that a C library runs; shells say 130 too.
    assert process.returncode in (130, -signal.SIGINT)
    assert "twinward simulate --resume long" in said
    assert "Traceback" not in said
