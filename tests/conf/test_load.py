"""The door to a configuration: what it composes, and what comes back from text."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.describe import groups
from conf.errors import ConfigError
from conf.load import from_json, from_yaml, load, load_sweep, to_json, to_yaml
from conf.schema import Config


def test_without_words_the_defaults_of_the_schema_come() -> None:
    assert load() == Config()


@pytest.mark.parametrize(
    ("group", "option"), [(group, option.name) for group, options in groups().items() for option in options]
)
def test_every_option_of_every_group_composes(group: str, option: str, tmp_path: Path) -> None:
    folder = ["data=folder", f"data.path={tmp_path}"]
    needs = {"data=folder": folder[1:], "task=heart": folder, "task=hypoxemia": folder}
    config = load([f"{group}={option}", *needs.get(f"{group}={option}", [])])
    assert getattr(config, group).name == option


def test_an_option_sets_what_its_file_says_and_a_word_overrules_it() -> None:
    assert load(["privacy=none"]).privacy.epsilon is None
    assert load(["strategy=fedprox"]).strategy.proximal_mu > 0
    assert load(["strategy.proximal_mu=0.7", "strategy=fedprox"]).strategy.proximal_mu == 0.7


def test_a_noise_multiplier_takes_the_place_of_the_default_epsilon() -> None:
    privacy = load(["privacy.noise_multiplier=2"]).privacy
    assert (privacy.noise_multiplier, privacy.epsilon) == (2.0, None)


def test_a_path_may_hold_any_character_and_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "it's (one), of=two [studies] {ü} \\ $x"
    folder.mkdir()
    assert load(["data=folder", f"data.path={folder}"]).data.path == str(folder)
    monkeypatch.chdir(tmp_path)
    assert load(["data=folder", f"data.path={folder.name}"]).data.path == str(folder)


def test_one_name_of_a_site_is_a_list_of_one(tmp_path: Path) -> None:
    for name in ("hall", "001"):
        (tmp_path / name).mkdir()
    folder = ["data=folder", f"data.path={tmp_path}"]
    assert load([*folder, "sites=hall"]).sites == ["hall"]
    assert load([*folder, "sites=[hall,001]"]).sites == ["hall", "001"]
    assert load([*folder, "sites=2"]).sites == 2


def test_a_configuration_survives_json_and_yaml() -> None:
    config = load(["strategy=fedadam", "privacy.delta=1e-5", "rounds=7", "data.timezone=null"])
    assert from_json(to_json(config)) == config
    assert from_yaml(to_yaml(config)) == config


@given(epsilon=st.floats(0.001, 1e6), delta=st.floats(1e-12, 0.1), seed=st.integers(0, 2**31 - 1))
def test_no_digit_of_a_number_is_lost_in_text(epsilon: float, delta: float, seed: int) -> None:
    config = Config(seed=seed)
    config.privacy.epsilon, config.privacy.delta = epsilon, delta
    assert from_json(to_json(config)) == config
    assert from_yaml(to_yaml(config)) == config


def test_equal_configurations_have_equal_json() -> None:
    assert to_json(load(["rounds=3", "seed=1"])) == to_json(load(["seed=1", "rounds=3"]))


def test_text_from_elsewhere_is_not_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINWARD_SECRET", "leaked")
    raw = asdict(Config())
    raw["run"]["dir"] = "${oc.env:TWINWARD_SECRET}"
    assert from_json(json.dumps(raw)).run.dir == "${oc.env:TWINWARD_SECRET}"


def test_text_from_elsewhere_tells_every_fault_of_its_form() -> None:
    with pytest.raises(ConfigError) as error:
        from_json('{"rounds": "3", "data": {"nam": "virtual"}, "task": 4, "model": {"name": 3}, "extra": {}}')
    assert "data.nam: there is no such key; did you mean name?" in str(error.value)
    for said in ("rounds=3", "task=4", "model.name=3", "extra"):
        assert said in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "[1]", "null", '{"seed": -1}', '{"seed": NaN}', '{"model": {"name": "x"}}']
)
def test_text_that_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        from_json(text)
    with pytest.raises(ConfigError):
        from_yaml(text.replace("NaN", ".nan"))


def test_a_sweep_is_the_product_of_its_values_in_order() -> None:
    runs = load_sweep(["rounds=1,2", "strategy=fedavg,fedadam", "seed=5"])
    assert [(c.rounds, c.strategy.name, c.seed) for _, c in runs] == [
        (1, "fedavg", 5),
        (1, "fedadam", 5),
        (2, "fedavg", 5),
        (2, "fedadam", 5),
    ]
    assert runs[1][0] == ["rounds=1", "strategy=fedadam", "seed=5"]


def test_a_sweep_over_lists_of_sites_keeps_the_lists(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    runs = load_sweep(["data=folder", f"data.path={tmp_path}", "sites=[a],[a,b]"])
    assert [config.sites for _, config in runs] == [["a"], ["a", "b"]]


def test_the_faults_of_all_runs_of_a_sweep_come_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        load_sweep(["rounds=0,2,many", "strategy=fedavg,fedadm"])
    assert "3 faults" in str(error.value)
    for said in ("rounds=0", "rounds=many", "strategy=fedadm"):
        assert said in str(error.value)
