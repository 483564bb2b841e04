"""`twinward evaluate` takes task and model from the run that trained, and all else from its words."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.evaluate import kept_settings, model_file
from conf.errors import ConfigError
from conf.load import load, to_yaml


def trained(folder: Path, *words: str) -> Path:
    (folder / "config.yaml").write_text(to_yaml(load(words)), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"")
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    "words", [["model=mlp", "model.hidden=7"], ["model=linear", "task.stride_min=30", "task.unit=mmol/L"], []]
)
def test_task_and_model_are_those_of_the_run(words: list[str], tmp_path: Path) -> None:
    model = trained(tmp_path, *words, "rounds=3", "privacy=none")
    config = load([*kept_settings(model, ["seed=4"]), "seed=4"])
    before = load(words)
    assert (config.task, config.model) == (before.task, before.model)
    assert (config.seed, config.rounds, config.privacy) == (4, load().rounds, load().privacy)


def test_a_word_that_is_given_again_wins(tmp_path: Path) -> None:
    model = trained(tmp_path, "task.unit=mmol/L", "task.stride_min=30")
    given = ["task.unit=mg/dL"]
    config = load([*kept_settings(model, given), *given])
    assert (config.task.unit, config.task.stride_min) == ("mg/dL", 30)


def test_a_group_that_is_chosen_anew_keeps_nothing_of_the_run(tmp_path: Path) -> None:
    model = trained(tmp_path, "model=mlp", "model.hidden=7")
    assert not [word for word in kept_settings(model, ["model=linear"]) if word.startswith("model")]


def test_a_model_without_its_run_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "alone.safetensors").write_bytes(b"")
    assert kept_settings(tmp_path / "alone.safetensors", []) == []


def test_a_folder_stands_for_the_model_in_it(tmp_path: Path) -> None:
    model = trained(tmp_path)
    assert model_file(tmp_path) == model_file(model) == model


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.safetensors does not exist"):
        model_file(tmp_path)
