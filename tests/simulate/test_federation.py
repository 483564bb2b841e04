"""A federation over the real apps: what goes through the grid, what it costs, what it gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message

import client.app
import simulate.federation
import strategies
from client.site import Part, close_sites, only, open_ledger, training_examples
from link.local import LocalGrid
from server.app import coordinate, store_path
from server.errors import ServerError
from server.store import Store
from simulate.federation import FederationResult, run_config, run_federation
from strategies.flower import FlowerStrategy, to_record
from tests.heart_hospitals import SITES, settings, write_folder
from trust.digest import Arrays, arrays_sha256
from twin import models, prior, tasks
from twin.splits import Split


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("hospitals"))


@pytest.fixture(scope="module")
def private(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> FederationResult:
    return run_federation(settings(folder), directory=tmp_path_factory.mktemp("private"))


class CountingGrid(LocalGrid):
    """A LocalGrid that notes what goes through it."""

    made: list[CountingGrid] = []  # noqa: RUF012  reset by the test

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        listed = list(messages)
        self.kinds = [*getattr(self, "kinds", []), *(message.metadata.message_type for message in listed)]
        if self not in CountingGrid.made:
            CountingGrid.made.append(self)
        return super().send_and_receive(listed, timeout=timeout)


def test_every_round_goes_through_grid_and_client_app(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CountingGrid.made = []
    monkeypatch.setattr(simulate.federation, "LocalGrid", CountingGrid)
    result = run_federation(settings(folder), directory=tmp_path)
    (grid,) = CountingGrid.made
    assert grid.kinds == ["query.declare"] * 3 + ["query.accept"] * 3 + ["train"] * 12
    assert grid.answered == 18
    for site in SITES:
        with open_ledger(settings(folder), tmp_path, site) as ledger:
            (plan,) = ledger.plans()
        assert (plan.plan_hash, plan.rounds_complete) == (result.plan_sha256, 4)


def test_a_finished_federation_is_read_and_not_run_again(
    private: FederationResult, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(simulate.federation, "LocalGrid")
    monkeypatch.delattr(simulate.federation, "training_examples")
    assert run_federation(settings(folder), directory=private.directory).sha256 == private.sha256


def test_the_same_seed_gives_the_same_model_and_another_seed_another(
    private: FederationResult, folder: Path, tmp_path: Path
) -> None:
    assert run_federation(settings(folder), directory=tmp_path / "same").sha256 == private.sha256
    other = run_federation(settings(folder, "seed=1"), directory=tmp_path / "other")
    assert other.sha256 != private.sha256


def test_the_same_data_elsewhere_gives_the_same_model(private: FederationResult, tmp_path: Path) -> None:
    copy = write_folder(tmp_path / "copy")
    assert run_federation(settings(copy), directory=tmp_path / "run").sha256 == private.sha256


def test_the_result_says_what_each_site_spent_and_how_many_trained(private: FederationResult) -> None:
    assert sorted(private.sites) == list(SITES)
    for site in private.sites.values():
        assert (site.patients, site.declared, site.train_windows, site.refused) == (12, 10, 12, None)
        assert site.epsilon is not None
        assert 7.9 < site.epsilon <= 8.0
    assert [entry.participants for entry in private.rounds] == [3, 3, 3, 3]
    assert private.sha256 == arrays_sha256(private.model)
    assert all(entry.bytes_up > 0 for entry in private.rounds)


def test_on_round_hears_each_committed_model_and_they_stay_readable(folder: Path, tmp_path: Path) -> None:
    heard: list[tuple[int, Arrays]] = []
    result = run_federation(
        settings(folder), directory=tmp_path, on_round=lambda number, model: heard.append((number, model))
    )
    assert [number for number, _ in heard] == [1, 2, 3, 4]
    for number, model in heard:
        assert arrays_sha256(model) == arrays_sha256(result.model_after(number))


def test_the_final_model_is_the_mean_of_the_last_rounds(private: FederationResult) -> None:
    last = [private.model_after(number)["head.weight"] for number in (3, 4)]
    np.testing.assert_allclose(private.model["head.weight"], np.mean(last, axis=0), rtol=1e-6)


def test_a_directory_of_other_settings_is_refused(private: FederationResult, folder: Path) -> None:
    with pytest.raises(ServerError, match="begun with other settings"):
        run_federation(settings(folder, "seed=5"), directory=private.directory)


def test_left_out_sites_and_patients_take_no_part(folder: Path, tmp_path: Path) -> None:
    split = Split(kind="folds", count=4, index=1)
    result = run_federation(
        settings(folder), directory=tmp_path, split=split, left_out=("beta",), patients_limit={"gamma": 6}
    )
    assert {name: site.patients for name, site in result.sites.items()} == {"alpha": 9, "gamma": 6}
    examples = training_examples(settings(folder), "alpha", Part(split=split))
    everybody = tuple(f"alpha-{place:02d}" for place in range(12))
    assert not set(examples.patients) & set(split.test_patients("alpha", everybody))


def test_windows_stand_patient_by_patient_however_patients_are_named(folder: Path) -> None:
    examples = training_examples(settings(folder), "alpha", Part())
    turned = replace(examples, patients=tuple(reversed(examples.patients)))
    back = only(turned, tuple(sorted(turned.patients)))
    assert back.patients == tuple(sorted(turned.patients))
    assert (np.diff(back.patient_N.numpy()) >= 0).all()
    for name in turned.patients:
        before = turned.table_NF[turned.patient_N == turned.patients.index(name)]
        assert torch.equal(back.table_NF[back.patient_N == back.patients.index(name)], before)


def test_a_site_with_too_few_patients_refuses_and_the_others_go_on(folder: Path, tmp_path: Path) -> None:
    result = run_federation(settings(folder), directory=tmp_path, patients_limit={"beta": 3})
    assert result.sites["beta"].refused == "too_few_patients"
    assert result.sites["beta"].epsilon == 0.0
    assert [entry.participants for entry in result.rounds] == [2, 2, 2, 2]
    assert result.sites["alpha"].refused is None


def test_a_federation_that_every_site_refuses_says_why(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"too_few_patients \(alpha, beta, gamma\)"):
        run_federation(settings(folder, "privacy.minimum_patients=50"), directory=tmp_path)


@pytest.mark.parametrize("weighting", ["patients", "equal"])
def test_a_round_without_privacy_is_plain_gradient_descent(
    folder: Path, tmp_path: Path, weighting: str
) -> None:
    config = settings(
        folder,
        "privacy=none",
        "strategy.learning_rate=0.5",
        f"strategy.weighting={weighting}",
        rounds=1,
    )
    result = run_federation(config, directory=tmp_path, patients_limit={"gamma": 5})
    task = tasks.build(config.task)
    start = prior.initial_state(config)["head.weight"]
    weights = {"alpha": 10, "beta": 10, "gamma": 5} if weighting == "patients" else dict.fromkeys(SITES, 1)
    expected = start.astype(np.float64)
    for site in SITES:
        network = models.build(config.model, task)
        network.load_state_dict({k: torch.from_numpy(v) for k, v in prior.initial_state(config).items()})
        examples = training_examples(config, site, Part(patients_limit=(("gamma", 5),)))
        task.loss(network(examples), examples).mean().backward()  # type: ignore[no-untyped-call]  # torch's stubs leave it untyped
        gradient = network.head.weight.grad
        assert gradient is not None
        expected -= 0.5 * weights[site] / sum(weights.values()) * gradient.numpy()
    np.testing.assert_allclose(result.model["head.weight"], expected, rtol=1e-5, atol=1e-6)


def test_flowers_own_loop_over_the_same_apps_gives_the_same_model(folder: Path, tmp_path: Path) -> None:
    config = settings(folder, "strategy.average_last=0", "privacy.sampling_rate=0.5", "engine=local")
    ours = run_federation(config, directory=tmp_path / "ours")
    with Store(store_path(tmp_path / "ours")) as store:
        plan = store.plan()
    assert plan is not None
    grid = LocalGrid(client.app.app, run_config(config, tmp_path / "flower", Part()), range(3))
    try:
        nodes = dict(zip(SITES, grid.get_node_ids(), strict=True))
        for site in SITES:
            with (
                open_ledger(config, tmp_path / "flower", site) as ledger,
                open_ledger(config, tmp_path / "ours", site) as other,
            ):
                ledger.open_plan(plan.hash, other.plans()[0].release)
        model = prior.initial_state(config)
        strategy = FlowerStrategy(
            rule=strategies.build(plan.strategy),
            plan=plan,
            model=model,
            trainable=["head.weight"],
            nodes=nodes,
        )
        arrays = strategy.start(grid, to_record(model), num_rounds=config.rounds).arrays
    finally:
        close_sites()
    assert arrays is not None
    assert arrays_sha256({name: array.numpy() for name, array in arrays.items()}) == ours.sha256


def test_privacy_changes_the_model_and_terms_stand_in_the_plan(
    private: FederationResult, folder: Path, tmp_path: Path
) -> None:
    open_result = run_federation(settings(folder, "privacy=none"), directory=tmp_path)
    assert open_result.noise_multiplier == 0.0
    assert private.noise_multiplier > 0.5
    assert all(site.epsilon is None for site in open_result.sites.values())
    assert open_result.sha256 != private.sha256


def test_fedprox_pulls_local_steps_towards_the_global_model(folder: Path, tmp_path: Path) -> None:
    steps = ["privacy=none", "strategy=fedprox", "strategy.local_steps=20"]
    mu = {"free": "strategy.proximal_mu=0.001", "held": "strategy.proximal_mu=1"}
    free, held = (
        run_federation(settings(folder, *steps, mu[name], rounds=1), directory=tmp_path / name) for name in mu
    )
    start = held.model_after(0)["head.weight"]
    moved = [np.linalg.norm(result.model["head.weight"] - start) for result in (free, held)]
    assert moved[1] < 0.9 * moved[0]


def test_a_store_of_another_model_than_its_hash_is_refused(private: FederationResult) -> None:
    with Store(store_path(private.directory)) as store, pytest.raises(ServerError, match="damaged"):
        store.arrays("0" * 64)


def test_coordinate_returns_at_once_when_done_whatever_the_grid(
    private: FederationResult, folder: Path
) -> None:
    grid = LocalGrid(client.app.app, {}, [])
    with Store(store_path(private.directory)) as store:
        assert coordinate(grid, store, settings(folder), "") == private.sha256
    assert grid.sent == 0


def test_results_are_frozen(private: FederationResult) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        private.sha256 = "x"  # type: ignore[misc]  # that it cannot be set is what is tested
