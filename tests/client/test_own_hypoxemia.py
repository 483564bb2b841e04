"""A site's own models of hypoxemia: kept in its store, used by its ward, erased with a patient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from client import research
from client.forecasting import Models
from client.home import SiteHome
from client.own_models import Own, OwnModels
from client.personalise import personalise
from client.shelf import Shelf
from conf.load import load
from server.app import make_offer
from tests.hospital_home import founded
from tests.model_package import packaged
from tests.site_home import settle
from tests.stored import KEY, batch, minutes
from twin import models, tasks
from twin.store import Store
from twin.ward.forecaster import Forecaster
from twin.ward.ward import Ward

PEOPLE = [f"p{number}" for number in range(8)]
LAST = 119


def breathing() -> list[tuple[object, ...]]:
    """Two hours of eight people, each about a level of one's own, from 87 to 97 %."""
    draws = np.random.default_rng(5)
    return [
        (patient, "spo2", minute, float(np.round(np.clip(level + draws.normal(0, 1.5), 70, 100))))
        for patient, level in zip(PEOPLE, np.linspace(87, 97, len(PEOPLE)), strict=True)
        for minute in range(LAST + 1)
    ]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[SiteHome]:
    with founded(tmp_path) as coordinator:
        home = settle(coordinator.home)
        home.save(replace(home.settings(), data_path="store"))
        config = load(["data=folder", f"data.path={tmp_path}", "task=hypoxemia", "rounds=2"])
        # The public start takes seconds to make; risk that falls with the level does here.
        network = models.build(config.model, task := tasks.build(config.task))
        network.head.weight.data[0, task.columns.index("level")] = -2.0
        model = {name: values.numpy() for name, values in network.state_dict().items()}
        plan = make_offer(config, "", model).with_participants({"alpha": 5})
        Shelf(home).take(packaged(plan, model, coordinator.signer))
        yield home


def test_what_personalising_keeps_is_what_the_ward_forecasts_with_and_what_erasing_takes(
    home: SiteHome,
) -> None:
    with home.lock(), research.opened(home) as store:
        store.commit(batch(*breathing()))
        own = OwnModels(store)
        done = personalise(home, "hypoxemia", own)
        assert list(done.figures) == ["persistence", "global", "site", "personal"]
        ((forecaster,), now) = (list(Models(home, own)()), minutes(LAST))
        kept = own.of("hypoxemia", done.card.sha256)
        assert kept is not None and kept.personal is not None and set(kept.patients) == set(PEOPLE)
        offset = dict(zip(kept.patients, kept.personal["offset_P"].tolist(), strict=True))
        assert done.moved == sum(value != 0 for value in offset.values()) > 0

        site = store.site("alpha", purpose="care")
        ward = Ward.from_site(site, forecasters=[forecaster])
        told = ward.forecasts(now).set_index("patient_id")
        assert (told["model"] == "personal 1").sum() == done.moved
        (ahead,) = ward.twin(PEOPLE[0], now).forecasts
        assert ahead.probability == told.loc[PEOPLE[0], "probability"]
        # By the site's model alone each patient's log odds differ by the patient's own offset.
        plain = Forecaster.build(forecaster.task, forecaster.network, version="1", site=kept.site)
        by_site = Ward.from_site(site, forecasters=[plain]).forecasts(now).set_index("patient_id")
        moved = _log_odds(told) - _log_odds(by_site)
        np.testing.assert_allclose(moved, [offset[str(p)] for p in told.index], atol=1e-6)

        store.erase(PEOPLE[0])
        assert own.of("hypoxemia", done.card.sha256) is None
        assert PEOPLE[0] not in set(store.models()["patient_id"])


def _log_odds(told: pd.DataFrame) -> np.ndarray:
    chance = told["probability"].to_numpy(np.float64)
    return np.asarray(np.log(chance / (1 - chance)))


def test_a_number_of_each_patient_comes_back_from_the_store_as_one(tmp_path: Path) -> None:
    """An offset, or whether a path was kept: arrays with no further axis."""
    personal = {"offset_P": np.array([0.5, -1.0]), "shift_PHD": np.arange(12.0).reshape(2, 2, 3)}
    with Store.create(tmp_path / "store.duckdb", KEY) as store:
        store.commit(batch(("a", "spo2", 0, 97), ("b", "spo2", 0, 91)))
        own = OwnModels(store)
        own.keep("t", Own(base="0" * 64, site={}, personal=personal, patients=("a", "b")))
        found = own.of("t", "0" * 64)
    assert found is not None and found.personal is not None
    order = [found.patients.index(patient) for patient in ("a", "b")]
    for name, values in personal.items():
        np.testing.assert_array_equal(found.personal[name][order], values)
