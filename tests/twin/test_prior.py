"""The public start: the same for everybody, whitened, and already better than nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conf.load import load
from tests.records import glucose_task, virtual_examples
from twin import models, prior, tasks
from twin.tasks.glucose import CHANGE_MG_DL
from twin.tasks.protocol import Forecast


def test_the_start_depends_on_task_and_model_alone() -> None:
    one = prior.initial_state(load([]))
    words = ["seed=7", "privacy=none", "rounds=3", "data.days=2", "strategy=fedadam", "task.unit=mmol/L"]
    other = prior.initial_state(load(words))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[key], other[key]) for key in one)
    assert all(value.dtype == np.float32 for value in one.values())


def test_changing_a_start_in_place_does_not_change_the_next_one() -> None:
    config = load([])
    spoilt = prior.initial_state(config)
    spoilt["head.weight"][:] = np.nan
    assert np.isfinite(prior.initial_state(config)["head.weight"]).all()


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_the_start_is_made_the_same_again_and_leaves_other_draws_alone(model: str) -> None:
    make = prior._initial_state.__wrapped__
    task = tuple(vars(load(["task.stride_min=60"]).task).items())
    before = torch.get_rng_state()
    first = make(task, model, 4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = make(task, model, 4)
    assert all(np.array_equal(first[key], again[key]) for key in first)


def test_public_people_have_unit_covariance_in_whitened_coordinates_where_they_vary_much() -> None:
    state = prior.initial_state(load([]))
    table = prior._public_examples(15).table_NF.double().numpy()
    white = (table - state["centre_F"]) @ state["whitening_FF"].astype(float)
    np.testing.assert_array_equal(white[:, -1], 1.0)
    raw = np.cov(table[:, :-1].T, bias=True)
    covariance = np.cov(white[:, :-1].T, bias=True)
    values, vectors = np.linalg.eigh(raw)
    # The ridge leaves v / (v + ridge) of a variance v: nearly one where it is large.
    expected = values / (values + prior.RIDGE)
    np.testing.assert_allclose(vectors.T @ covariance @ vectors, np.diag(expected), atol=1e-4)
    assert expected.max() > 0.9


def test_the_start_forecasts_people_it_was_not_made_from_better_than_the_last_value() -> None:
    task = glucose_task()
    network = models.build(load([]).model, task)
    network.load_state_dict({k: torch.from_numpy(v) for k, v in prior.initial_state(load([])).items()})
    for number in range(3):
        examples = virtual_examples(number)
        with torch.no_grad():
            said = task.forecast(network(examples), examples)
        plain = task.forecast(torch.zeros(len(examples), task.outputs), examples)
        for place in (1, 3):
            assert rmse(said, place) < 0.95 * rmse(plain, place)


def rmse(forecast: Forecast, place: int) -> float:
    seen = forecast.observed_NH[:, place]
    return float(np.sqrt(np.mean((forecast.middle_NH - forecast.target_NH)[seen, place] ** 2)))


def test_shapes_of_paths_stand_at_right_angles_and_spreads_have_one_shape_each() -> None:
    state = prior.initial_state(load([]))
    basis, h = state["basis_OQ"], len(CHANGE_MG_DL)
    shapes = basis[:h, :-2]
    np.testing.assert_allclose(shapes.T @ shapes, h * np.eye(shapes.shape[1]), atol=1e-4)
    np.testing.assert_array_equal(basis[h:, :-2], 0.0)
    np.testing.assert_array_equal(basis[:, -2:].sum(1), [0] * h + [1] * 2 * h)


def test_a_task_without_public_people_starts_at_nothing() -> None:
    config = load(["task=heart", "data=folder", "data.path=/"])
    state = prior.initial_state(config)
    assert not state["head.weight"].any()
    columns = len(tasks.build(config.task).columns)
    np.testing.assert_array_equal(state["whitening_FF"], 2.0 * np.eye(columns))
