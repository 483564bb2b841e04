"""The `twinward` command as its users meet it: real processes, exit codes, messages."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import COMMANDS, Once
from conf.describe import groups, keys

ROOT = Path(__file__).parents[2]


def twinward(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_help_lists_every_command_and_a_run_that_works() -> None:
    answer = twinward("--help")
    assert answer.returncode == 0
    assert all(name in answer.stdout for name in COMMANDS)
    assert "\n  twinward simulate\n" in answer.stdout


def test_help_of_simulate_lists_every_group_option_and_key_with_its_default() -> None:
    answer = twinward("simulate", "--help")
    assert answer.returncode == 0
    for group, options in groups().items():
        assert f"\n  {group}" in answer.stdout
        assert all(option.name in answer.stdout for option in options)
    assert all(f"\n  {name}=" in answer.stdout for name in keys())


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help(name: str) -> None:
    answer = twinward(*name.split(), "--help")
    assert answer.returncode == 0
    assert answer.stdout.startswith(f"usage: twinward {name}")


def test_help_loads_neither_torch_nor_flower_nor_hydra() -> None:
    heavy = "{'torch', 'flwr', 'pandas', 'hydra', 'matplotlib'}"
    program = (
        "import sys, cli.main\n"
        "try: cli.main.main(['simulate', '--help'])\nexcept SystemExit: pass\n"
        f"print({heavy} & set(sys.modules))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    assert answer.stdout.splitlines()[-1] == "set()"


def test_a_log_says_the_same_thing_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(Once())
    for site in ("north", "north", "south"):
        logging.getLogger("twinward.test").warning("site %s is small", site)
    assert caplog.messages == ["site north is small", "site south is small"]


def test_no_command_shows_the_usage_and_fails() -> None:
    answer = twinward()
    assert answer.returncode == 2
    assert "usage: twinward COMMAND" in answer.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["simulat"], "there is no command 'simulat'; did you mean simulate?"),
        (["data", "chekc"], "there is no command 'data chekc'; did you mean data check?"),
        (["simulate", "--resume", "nowhere"], "nowhere is no run: there is no such folder"),
        (["simulate", "--resume", "."], ". is no run: it has no config.yaml"),
        (["simulate", "--resume", "nowhere", "rounds=1"], "with the settings it has"),
        (["evaluate", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
        (["privacy", "plan", "patients=9,x"], "patients=x: expected whole numbers from 1"),
        (["privacy", "plan", "privacy=none"], "nothing to plan"),
        (["privacy", "plan", "rounds=0"], "rounds=0: expected a whole number from 1"),
        (["data", "convert", "hall"], "NAME is one of"),
    ],
)
def test_a_wrong_command_says_what_is_wrong_in_one_message_without_a_traceback(
    words: list[str], said: str, tmp_path: Path
) -> None:
    answer = twinward(*words, cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.startswith("twinward: ")
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr


def test_whoever_writes_dashes_before_a_setting_is_told_how_it_is_written(tmp_path: Path) -> None:
    answer = twinward("simulate", "--rounds", "5", cwd=tmp_path)
    assert answer.returncode == 2
    assert "a setting is written without dashes: rounds=VALUE" in answer.stderr


def test_wrong_settings_are_all_told_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    answer = twinward("simulate", "rounds=0", "stratgy=fedprox", "privacy.epsilon=much", cwd=tmp_path)
    assert answer.returncode == 2
    assert "3 faults in the configuration; nothing was run" in answer.stderr
    assert "did you mean strategy?" in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_one_wrong_run_of_a_sweep_stops_all_of_them_before_the_first(tmp_path: Path) -> None:
    answer = twinward("simulate", "-m", "rounds=1,0", cwd=tmp_path)
    assert answer.returncode == 2
    assert "rounds=0" in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_options_may_stand_among_the_settings() -> None:
    answer = twinward("privacy", "plan", "privacy.epsilon=2", "--json", "patients=9,57")
    assert answer.returncode == 0
    plan = json.loads(answer.stdout)
    assert plan["epsilon"] <= 2.0
    assert [site["patients"] for site in plan["sites"]] == [9, 57]


def test_a_plan_counts_the_steps_of_all_rounds() -> None:
    answer = twinward("privacy", "plan", "rounds=7", "strategy.local_steps=3", "--json")
    assert json.loads(answer.stdout)["release"]["steps"] == 21


def test_checking_a_folder_of_no_use_fails_and_says_why(tmp_path: Path) -> None:
    site = tmp_path / "studies" / "north"
    site.mkdir(parents=True)
    (site / "observations.csv").write_text(
        "patient_id,time,signal,value,unit\na,2024-01-01T00:00:00Z,glucose,100,parsec\n"
    )
    answer = twinward("data", "check", "studies", cwd=tmp_path)
    assert answer.returncode == 1
    assert "parsec" in answer.stdout
    told = twinward("data", "check", "studies", "--json", cwd=tmp_path)
    assert told.returncode == 1
    assert json.loads(told.stdout)


def test_checking_a_sound_folder_succeeds(tmp_path: Path) -> None:
    for name in ("north", "south"):
        site = tmp_path / "studies" / name
        site.mkdir(parents=True)
        rows = [
            f"{p},2024-01-01T{h:02d}:{m:02d}:00Z,glucose,{100 + h},mg/dL"
            for p in range(6)
            for h in range(24)
            for m in range(0, 60, 5)
        ]
        (site / "observations.csv").write_text("patient_id,time,signal,value,unit\n" + "\n".join(rows) + "\n")
    answer = twinward("data", "check", "studies", cwd=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "north" in answer.stdout
    assert "south" in answer.stdout


def test_a_place_that_cannot_be_written_is_said_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = twinward("simulate", "sites=2", f"run.dir={tmp_path / 'file' / 'run'}")
    assert answer.returncode == 1
    assert "Not a directory. Is run.dir a place to write to?" in answer.stderr
    assert "Traceback" not in answer.stderr
