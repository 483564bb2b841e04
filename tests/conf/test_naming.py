"""Where a run lies when nobody says."""

from __future__ import annotations

from pathlib import Path

from conf.load import load
from conf.naming import run_directory


def test_equal_settings_lie_in_one_folder_and_others_elsewhere() -> None:
    assert run_directory(load(["rounds=3", "seed=1"])) == run_directory(load(["seed=1", "rounds=3"]))
    settings: tuple[list[str], ...] = (
        ["rounds=3"],
        ["seed=1"],
        ["privacy=none"],
        ["privacy.delta=1e-5"],
        [],
        ["task.stride_min=30"],
    )
    assert len({run_directory(load(words)) for words in settings}) == len(settings)


def test_a_folder_that_is_given_is_taken() -> None:
    assert run_directory(load(["run.dir=runs/mine"])) == Path("runs/mine")
