"""Oxygen in the blood as tables have it, and a public start that ranks whom it was not made from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from conf.load import load
from twin import models, tasks
from twin.physiology.oxygen import (
    alveolar_po2_mmhg,
    arterial_saturation,
    saturation,
    virtual_respiratory_site,
)
from twin.prior import initial_state
from twin.tasks.protocol import LastValueTask

WORDS = ["task=hypoxemia", "data=folder", "data.path=."]


@pytest.mark.parametrize(("po2", "fraction"), [(26.86, 0.50), (40.0, 0.75), (60.0, 0.906), (100.0, 0.975)])
def test_the_dissociation_curve_passes_the_standard_points(po2: float, fraction: float) -> None:
    assert float(saturation(np.array(po2))) == pytest.approx(fraction, abs=0.006)


def test_room_air_at_rest_gives_about_a_hundred_mmhg_in_the_alveoli() -> None:
    assert float(alveolar_po2_mmhg(np.array(21.0), np.array(40.0))) == pytest.approx(99.7, abs=0.1)


def test_less_oxygen_slower_breath_or_more_shunt_never_saturate_better() -> None:
    steps = np.linspace(0.0, 1.0, 30)
    oxygen = arterial_saturation(100 - 85 * steps, np.full(30, 40.0), np.full(30, 0.05))
    breath = arterial_saturation(np.full(30, 21.0), 40 + 50 * steps, np.full(30, 0.05))
    shunt = arterial_saturation(np.full(30, 21.0), np.full(30, 40.0), 0.6 * steps)
    for falling in (oxygen, breath, shunt):
        assert (np.diff(falling) <= 1e-12).all() and falling[-1] < falling[0]


def test_oxygen_helps_little_where_much_blood_passes_the_lung_unoxygenated() -> None:
    def gain(shunt: float) -> float:
        air, much = (arterial_saturation(np.array(f), np.array(40.0), np.array(shunt)) for f in (21.0, 100.0))
        return float((much - air) / (1.0 - air))

    assert gain(0.02) > 0.7 > 0.3 > gain(0.4)


@pytest.mark.parametrize("horizon_min", [5, 60])
def test_the_public_start_ranks_other_virtual_people_well_and_says_calibrated_risks(horizon_min: int) -> None:
    config = load([*WORDS, f"task.horizon_min={horizon_min}", f"task.stride_min={horizon_min}"])
    task = tasks.build(config.task)
    network = models.build(config.model, task)
    network.load_state_dict({k: torch.from_numpy(v) for k, v in initial_state(config).items()})
    site = virtual_respiratory_site(
        np.random.default_rng(7), people=200, moments=100, step_min=horizon_min / 5, horizon_min=horizon_min
    )
    examples = task.examples(site)
    said = task.forecast(network(examples), examples)
    assert isinstance(task, LastValueTask)
    last = task.forecast(task.persistence_outputs(examples), examples)
    label, probability = said.target_NH[:, 0], said.middle_NH[:, 0]
    rising = said.anchor_N >= 90
    assert roc_auc_score(label[rising], probability[rising]) > 0.9
    assert log_loss(label, probability) < log_loss(label, last.middle_NH[:, 0])
    assert probability.mean() == pytest.approx(label.mean(), rel=0.5)


@pytest.mark.parametrize("model", ["tcn"])
def test_hidden_layers_add_nothing_to_the_public_start(model: str) -> None:
    linear, other = initial_state(load(WORDS)), initial_state(load([*WORDS, f"model={model}"]))
    columns = linear["head.weight"].shape[1]
    np.testing.assert_array_equal(other["head.weight"][:, :columns], linear["head.weight"])
    assert not other["head.weight"][:, columns:].any()


def test_the_threshold_changes_the_public_start_and_what_is_shown_does_not() -> None:
    plain = initial_state(load(WORDS))
    lower = initial_state(load([*WORDS, "task.spo2_low_pct=85"]))
    shown = initial_state(load([*WORDS, "task.false_alarms_per_day=5"]))
    assert not np.array_equal(plain["head.weight"], lower["head.weight"])
    assert all(np.array_equal(plain[key], shown[key]) for key in plain)
