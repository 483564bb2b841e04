"""Every engine that runs in this process carries out the same plan and gives the same model."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import client.ahead
import client.app
import client.chunks
import client.egress
import client.stacked
from client.site import open_ledger
from conf.errors import TwinwardError
from link.stopwatch import Stopwatch, watched
from simulate.federation import FederationResult, run_federation
from simulate.profile import profile_lines, write_profile
from tests.heart_hospitals import SITES, settings, write_folder

ROUND = ["strategy.local_steps=3", "privacy.sampling_rate=0.7"]
PLANS = {
    "fedavg": ["model=mlp", "model.hidden=5"],
    "fedprox": ["model=mlp", "model.hidden=5", "strategy=fedprox", "strategy.proximal_mu=0.5"],
    "fedadam": ["model=linear", "strategy=fedadam"],
    "scaffold": ["model=linear", "strategy=scaffold"],
    "no privacy": ["model=mlp", "model.hidden=5", "privacy=none", "strategy.learning_rate=0.1"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("hospitals"))


def _run(folder: Path, directory: Path, engine: str, *words: str) -> FederationResult:
    return run_federation(settings(folder, f"engine={engine}", *ROUND, *words), directory=directory)


@pytest.mark.parametrize("plan", sorted(PLANS))
def test_every_engine_gives_the_model_that_local_gives(plan: str, folder: Path, tmp_path: Path) -> None:
    local = _run(folder, tmp_path / "local", "local", *PLANS[plan])
    for engine in ("batched", "auto"):
        other = _run(folder, tmp_path / engine, engine, *PLANS[plan])
        assert (other.plan_sha256, other.sites) == (local.plan_sha256, local.sites)
        assert [entry.participants for entry in other.rounds] == [3, 3, 3, 3]
        for name, value in local.model.items():
            np.testing.assert_allclose(other.model[name], value, rtol=2e-4, atol=3e-6)


def test_batched_trains_all_sites_at_once_and_each_ledger_holds_its_rounds(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a site was trained alone")

    monkeypatch.setattr(client.app, "train", refuse)
    monkeypatch.setattr(client.stacked, "train", refuse)
    result = _run(folder, tmp_path, "batched")
    for site in SITES:
        with open_ledger(settings(folder, *ROUND), tmp_path, site) as ledger:
            (plan,) = ledger.plans()
        assert (plan.plan_hash, plan.rounds_complete, plan.steps_reserved) == (result.plan_sha256, 4, 12)


@pytest.mark.parametrize(
    ("where", "after"),
    [("ahead.complete", 0), ("ahead.complete", 1), ("egress.inspect", 1), ("egress.inspect", 2)],
    ids=["before any", "after two", "one answered", "two answered"],
)
def test_a_batched_round_that_was_cut_off_goes_on_to_the_same_bits(
    where: str, after: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.chunks, "MOST_SITES", 2)
    whole = _run(folder, tmp_path / "whole", "batched")
    of, name = where.split(".")
    module, done = {"ahead": client.ahead, "egress": client.egress}[of], [0]
    act = getattr(module, name)

    def cut(*arguments: Any) -> Any:
        said = getattr(arguments[-1], "expected", None)
        second = said.round == 2 if said is not None else arguments[0][0].request.round == 2
        if second and done[0] == after:
            raise KeyboardInterrupt
        done[0] += second
        return act(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, cut)
        with pytest.raises(KeyboardInterrupt):
            _run(folder, tmp_path / "cut", "batched")
    again = _run(folder, tmp_path / "cut", "batched")
    assert again.sha256 == whole.sha256
    assert again.sites == whole.sites


def test_batched_refuses_what_local_refuses(folder: Path, tmp_path: Path) -> None:
    few = ["privacy.minimum_patients=100"]
    texts = []
    for engine in ("local", "batched"):
        with pytest.raises(TwinwardError) as refused:
            _run(folder, tmp_path / engine, engine, *few)
        texts.append(str(refused.value))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("engine", ["local", "batched"])
def test_a_profile_says_where_the_time_of_rounds_went(engine: str, folder: Path, tmp_path: Path) -> None:
    watch = Stopwatch()
    began_s = time.perf_counter()
    with watched(watch):
        _run(folder, tmp_path, engine)
    took_s = time.perf_counter() - began_s
    write_profile(watch, tmp_path)
    figures = json.loads((tmp_path / "profile.json").read_text())
    assert {"training", "sites' ledgers", "egress gate", "messages", "aggregation"} <= set(figures["phases"])
    assert figures["rounds"] == 4
    assert figures["phases"]["egress gate"]["calls"] == 18
    # Phases within phases are counted once, so that together they are no more than there was.
    assert 0 < sum(entry["seconds"] for entry in figures["phases"].values()) <= took_s + 0.01
    assert sum(entry["share"] for entry in figures["phases"].values()) == pytest.approx(1.0, abs=0.01)
    assert len(profile_lines(figures)) == len(figures["phases"]) + 2
