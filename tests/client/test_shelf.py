"""A site takes only the model that its coordinator signed, and keeps what it makes of it to itself."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.errors import ClientError
from client.home import SiteHome
from client.personalise import personalise
from client.shelf import Shelf
from conf.load import load
from server.app import make_offer
from tests.hospital_home import Coordinator, founded
from tests.model_package import card_of, packaged
from tests.records import write_sites
from trust.card import Card, pack
from trust.digest import Arrays, arrays_to_bytes
from trust.signing import Signer
from twin import prior


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    with founded(tmp_path) as found:
        yield found


def test_a_signed_model_is_kept_and_read_again(coordinator: Coordinator) -> None:
    shelf = Shelf(coordinator.home)
    assert shelf.held("heart") is None
    shelf.take(packaged(coordinator.plan, coordinator.model, coordinator.signer))
    held = shelf.held("heart")
    assert held is not None
    np.testing.assert_array_equal(held[1]["head.weight"], coordinator.model["head.weight"])
    assert shelf.tasks() == ("heart",)
    path = coordinator.home.models / "heart" / "global.package"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(coordinator.home.models.stat().st_mode) == 0o700


def test_a_model_of_a_foreign_key_or_for_another_use_is_refused(coordinator: Coordinator) -> None:
    shelf, model = Shelf(coordinator.home), coordinator.model
    with pytest.raises(ClientError, match="model_refused"):
        shelf.take(packaged(coordinator.plan, model, Signer.generate()))
    data = arrays_to_bytes(model)
    head = pack(card_of(coordinator.plan, data), data, lambda card: coordinator.signer.sign("plan", card))
    with pytest.raises(ClientError, match="model_refused"):
        shelf.take(head)


@pytest.mark.parametrize("admitted", ['tasks = ["glucose"]', 'models = ["tcn"]'])
def test_a_model_of_a_task_or_network_that_the_policy_does_not_admit_is_refused(
    coordinator: Coordinator, admitted: str
) -> None:
    key = admitted.split(" ", maxsplit=1)[0]
    lines = coordinator.home.policy.read_text().splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith(f"{key} = "))
    coordinator.home.policy.write_text("\n".join([*lines[:place], admitted, *lines[place + 1 :]]) + "\n")
    with pytest.raises(ClientError, match="policy does not admit"):
        Shelf(coordinator.home).take(packaged(coordinator.plan, coordinator.model, coordinator.signer))


@pytest.mark.parametrize(
    "change",
    [
        lambda card: replace(card, federation="other"),
        lambda card: replace(card, plan_sha256="0" * 64),
        lambda card: replace(card, task="glucose"),
        lambda card: replace(card, sha256="0" * 64),
    ],
    ids=["federation", "plan", "task", "bytes"],
)
def test_a_card_that_does_not_fit_is_refused(
    coordinator: Coordinator, change: Callable[[Card], Card]
) -> None:
    with pytest.raises(ClientError, match="model_refused"):
        Shelf(coordinator.home).take(
            packaged(coordinator.plan, coordinator.model, coordinator.signer, change=change)
        )


@pytest.mark.parametrize(
    "spoilt",
    [
        {"head.weight": np.zeros((2, 2), np.float32)},
        {"head.weight": np.full((1, 20), np.nan, np.float32)},
        {"head.weight": np.zeros((1, 20), np.float64)},
        {"backdoor": np.zeros(1, np.float32)},
    ],
    ids=["shape", "nan", "type", "further array"],
)
def test_arrays_that_are_not_the_networks_are_refused(coordinator: Coordinator, spoilt: Arrays) -> None:
    assert coordinator.model["head.weight"].shape == (1, 20)
    package = packaged(coordinator.plan, coordinator.model | spoilt, coordinator.signer)
    with pytest.raises(ClientError, match="model_refused"):
        Shelf(coordinator.home).take(package)


def test_an_older_model_does_not_come_back(coordinator: Coordinator) -> None:
    shelf = Shelf(coordinator.home)
    shelf.take(packaged(coordinator.plan, coordinator.model, coordinator.signer, serial=2))
    with pytest.raises(ClientError, match="serial"):
        shelf.take(packaged(coordinator.plan, coordinator.model, coordinator.signer, serial=1))


def test_a_model_that_was_changed_on_the_disk_is_not_used(coordinator: Coordinator) -> None:
    shelf = Shelf(coordinator.home)
    shelf.take(packaged(coordinator.plan, coordinator.model, coordinator.signer))
    path = coordinator.home.models / "heart" / "global.package"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ClientError, match="model_refused"):
        shelf.held("heart")


def test_personalising_needs_a_model(coordinator: Coordinator) -> None:
    with pytest.raises(ClientError, match="promotes"):
        personalise(coordinator.home, "heart")


def test_a_classifier_is_fitted_to_the_site(coordinator: Coordinator) -> None:
    Shelf(coordinator.home).take(packaged(coordinator.plan, coordinator.model, coordinator.signer))
    done = personalise(coordinator.home, "heart")
    assert sorted(done.figures) == ["global", "site"]
    assert (done.patients, done.moved) == (12, 0)
    assert set(Shelf(coordinator.home).get("heart", "site")) == {"shift_D", "precision"}


@pytest.fixture(scope="module")
def glucose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteHome]:
    root = tmp_path_factory.mktemp("glucose")
    with founded(root / "heart") as coordinator:
        home, signer = coordinator.home, coordinator.signer
        write_sites(root / "sites", {"alpha": 6})
        home.save(replace(home.settings(), data_path=str(root / "sites")))
        config = load(["task=glucose", "rounds=2"])
        model = prior.initial_state(config)
        plan = make_offer(config, "", model).with_participants({"alpha": 5})
        Shelf(home).take(packaged(plan, model, signer))
        yield home


def test_a_forecast_is_fitted_to_site_and_patients_and_judged_beside_persistence(glucose: SiteHome) -> None:
    done = personalise(glucose, "glucose")
    assert list(done.figures) == ["persistence", "global", "site", "personal"]
    assert done.patients == 6
    assert done.best != "persistence"
    rmse = {name: figures["rmse_30_mg_dl"] for name, figures in done.figures.items()}
    assert rmse["global"] < rmse["persistence"]


def test_what_is_kept_holds_every_patients_model_for_its_owner_alone(glucose: SiteHome) -> None:
    personalise(glucose, "glucose")
    shelf, folder = Shelf(glucose), glucose.models / "glucose"
    facts = json.loads((folder / "personal.json").read_text())
    personal, site = shelf.get("glucose", "personal"), shelf.get("glucose", "site")
    assert personal["shift_PHD"].shape == (len(facts["patients"]), *site["shift_HD"].shape)
    for name in ("site.safetensors", "personal.safetensors", "personal.json"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    # A patient whose own model did not prove better has the site's.
    site_P = torch.from_numpy(personal["shift_PHD"] - site["shift_HD"]).abs().amax((1, 2)) == 0
    assert site_P.tolist() == (~torch.from_numpy(personal["kept_P"]).bool()).tolist()
