"""SCAFFOLD over the real apps: corrections reach the trainer, survive a halt, and cannot be abused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from client.app import corrected
from client.errors import ClientError
from client.site import OpenSite
from server.app import store_path
from server.store import Store
from simulate.federation import run_federation
from strategies.bound import correction_bound
from strategies.rule import norm
from tests.heart_hospitals import settings, write_folder
from trust.digest import Arrays
from trust.plan import Plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("hospitals"))


class Halted(Exception):
    """Raised to end a run between two rounds."""


def _halt(number: int, model: Arrays) -> None:
    raise Halted


def test_corrections_survive_a_halt_and_no_private_update_is_refused(folder: Path, tmp_path: Path) -> None:
    words = ["strategy.local_steps=3", "strategy.average_last=0"]
    config = settings(folder, "strategy=scaffold", *words, rounds=2)
    whole = run_federation(config, directory=tmp_path / "whole")
    with pytest.raises(Halted):
        run_federation(config, directory=tmp_path / "halted", on_round=_halt)
    assert run_federation(config, directory=tmp_path / "halted").sha256 == whole.sha256
    assert [(entry.participants, entry.refused) for entry in whole.rounds] == [(3, ()), (3, ())]


def test_corrections_begin_in_the_second_round_and_matter_only_with_several_steps(
    folder: Path, tmp_path: Path
) -> None:
    models = {}
    for steps in (1, 4):
        for name in ("fedavg", "scaffold"):
            words = [f"strategy={name}", "strategy.learning_rate=1", f"strategy.local_steps={steps}"]
            config = settings(folder, "privacy=none", "strategy.average_last=0", *words, rounds=2)
            result = run_federation(config, directory=tmp_path / f"{name}-{steps}")
            models[name, steps] = [result.model_after(number)["head.weight"] for number in (1, 2)]
    np.testing.assert_allclose(models["fedavg", 4][0], models["scaffold", 4][0], atol=1e-6)
    np.testing.assert_allclose(models["fedavg", 1][1], models["scaffold", 1][1], atol=1e-6)
    assert np.abs(models["fedavg", 4][1] - models["scaffold", 4][1]).max() > 1e-4


def test_a_site_shortens_a_correction_that_is_too_long_and_refuses_a_broken_one(
    folder: Path, tmp_path: Path
) -> None:
    config = settings(folder, "strategy=scaffold", rounds=1)
    run_federation(config, directory=tmp_path)
    with Store(store_path(tmp_path)) as store:
        plan = cast("Plan", store.plan())
    shape = (1, 4)
    site = cast("OpenSite", cast("Any", SimpleNamespace(shapes={"head.weight": shape})))
    most = correction_bound(4, plan)
    short = {"head.weight": np.full(shape, most / 4, np.float32)}
    assert corrected(site, plan, short) is short
    long = corrected(site, plan, {"head.weight": np.full(shape, 5e3, np.float32)})
    assert long is not None
    assert norm(long) == pytest.approx(most, rel=1e-5)
    for bad in (np.full(shape, np.nan, np.float32), np.full(shape, 1e5, np.float32), np.zeros((4, 1), "f4")):
        with pytest.raises(ClientError):
            corrected(site, plan, {"head.weight": bad})
    other = replace(plan, strategy=replace(plan.strategy, name="fedavg"))
    with pytest.raises(ClientError, match="with no other"):
        corrected(site, other, short)
