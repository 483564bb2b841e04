"""Baselines are what scikit-learn and numpy make of the same table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import Ridge

from simulate.baselines import (
    LinearData,
    fit_linear,
    fit_linear_patients,
    linear_data,
    linear_outputs,
    logistic_outputs,
    persistence_outputs,
)
from tests.records import glucose_task, toy_examples, virtual_examples
from twin.halves import halves
from twin.personal.bayes import PRECISIONS
from twin.tasks.glucose import CHANGE_MG_DL
from twin.tasks.protocol import Examples

SCALE = np.array(CHANGE_MG_DL)
RIDGES = [precision for precision in PRECISIONS if precision != float("inf")]


@pytest.fixture(scope="module")
def examples() -> Examples:
    return virtual_examples(0)


@pytest.fixture(scope="module")
def data(examples: Examples) -> LinearData:
    return linear_data(glucose_task(), examples, *halves(examples, 60.0))


def plain_rows(examples: Examples, horizon: int, patients: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Table and scaled change of glucose of some patients where it was observed."""
    rows = (torch.isin(examples.patient_N, torch.tensor(patients)) & examples.observed_NH[:, horizon]).numpy()
    change = (examples.target_NH[:, horizon] - examples.anchor_N).double().numpy()[rows] / SCALE[horizon]
    return examples.table_NF.double().numpy()[rows], change


def plain_ridge(examples: Examples, horizon: int, patients: list[int], alpha: float) -> np.ndarray:
    fitted = Ridge(alpha=alpha, fit_intercept=False, solver="cholesky")
    found: np.ndarray = fitted.fit(*plain_rows(examples, horizon, patients)).coef_
    return found


def test_linear_regression_is_scikit_learns_with_the_penalty_that_suits_unseen_patients(
    examples: Examples, data: LinearData
) -> None:
    trained = [0, 2, 3, 5, 8]
    errors = []
    for alpha in RIDGES:
        error = 0.0
        for held in trained:  # fewer than ten patients: each is a group of its own
            others = [patient for patient in trained if patient != held]
            for h in range(4):
                x, y = plain_rows(examples, h, [held])
                error += float(((y - x @ plain_ridge(examples, h, others, alpha)) ** 2).sum())
        errors.append(error)
    best = RIDGES[int(np.argmin(errors))]
    expected = np.stack([plain_ridge(examples, h, trained, best) for h in range(4)])
    found = fit_linear({"a": data}, {"a": torch.tensor(trained)})
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_several_sites_are_fitted_as_if_they_were_one(examples: Examples, data: LinearData) -> None:
    first, second = torch.tensor([0, 2, 4]), torch.tensor([1, 3])
    apart = fit_linear({"a": data, "b": data}, {"a": first, "b": second})
    together = fit_linear({"a": data}, {"a": torch.cat([first, second])})
    torch.testing.assert_close(apart, together)


def test_windows_of_patients_who_do_not_train_change_no_fit(examples: Examples, data: LinearData) -> None:
    trained = torch.tensor([0, 1, 2])
    own = examples.at(torch.isin(examples.patient_N, trained))
    alone = linear_data(glucose_task(), own, *halves(own, 60.0))
    torch.testing.assert_close(
        fit_linear({"a": data}, {"a": trained}),
        fit_linear({"a": alone}, {"a": trained}),
        atol=1e-6,
        rtol=1e-6,
    )


def test_a_patients_own_regression_sees_the_earlier_half_alone(examples: Examples, data: LinearData) -> None:
    early, late = halves(examples, 60.0)
    trained = torch.arange(1, 6)
    found = fit_linear_patients(data, trained)
    candidates = [plain_ridge(examples.at(early), 1, [0], alpha) for alpha in RIDGES]
    assert any(np.allclose(found[0, 1], candidate, atol=1e-4) for candidate in candidates)
    # The judged half of a patient who does not train reaches no patient's weights.
    mine = torch.nonzero(late & (examples.patient_N == 0))[:, 0]
    target = examples.target_NH.clone()
    target[mine] = 333.0
    spoilt = linear_data(glucose_task(), replace(examples, target_NH=target), early, late)
    again = fit_linear_patients(spoilt, trained)
    assert torch.equal(again, found)


def test_persistence_says_that_it_stays_as_it_is(examples: Examples) -> None:
    task = glucose_task()
    forecast = task.forecast(persistence_outputs(task, examples), examples)
    metrics = {metric.name: metric for metric in task.metrics()}
    everybody = np.ones((1, len(examples.patients)))
    for minutes, h in ((30, 1), (60, 3)):
        seen = examples.observed_NH[:, h].numpy()
        change = (examples.target_NH[:, h] - examples.anchor_N).double().numpy()[seen]
        rmse = metrics[f"rmse_{minutes}_mg_dl"](forecast, everybody)[0]
        assert rmse == pytest.approx(np.sqrt(np.mean(change**2)), rel=1e-6)
        mae = metrics[f"mae_{minutes}_mg_dl"](forecast, everybody)[0]
        assert mae == pytest.approx(np.mean(np.abs(change)), rel=1e-6)


def test_the_band_of_a_linear_model_is_the_quantiles_of_what_its_fit_leaves_over() -> None:
    draws = np.random.default_rng(0)
    left = torch.from_numpy(draws.gamma(2.0, 1.0, (2001, 4)) - 2.0)
    seen = torch.from_numpy(draws.random((2001, 4)) > 0.2)
    examples = toy_examples(np.zeros((1, 3)), np.zeros((1, 4)), np.zeros(1, int))
    task = glucose_task()
    path = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    forecast = task.forecast(linear_outputs(task, examples, path, left, seen), examples)
    for h in range(4):
        low, high = np.quantile(left[seen[:, h], h].numpy(), [0.1, 0.9])
        middle = 150.0 + float(path[0, h]) * SCALE[h]
        assert forecast.middle_NH[0, h] == pytest.approx(middle)
        assert forecast.low_NH[0, h] == pytest.approx(middle + low * SCALE[h])
        assert forecast.high_NH[0, h] == pytest.approx(middle + high * SCALE[h])


def test_logistic_regression_is_the_optimum_of_its_penalised_loss() -> None:
    draws = np.random.default_rng(1)
    table = draws.normal(size=(80, 4))
    table[:, -1] = 1.0
    label = (draws.random(80) < 1 / (1 + np.exp(-2 * table[:, 0] - 0.7))).astype(np.float32)
    base = toy_examples(table, np.zeros((80, 4)), np.arange(80))
    parts = [
        labelled(base.at(torch.arange(80) < 50), label[:50]),
        labelled(base.at(torch.arange(80) >= 50), label[50:]),
    ]

    def loss(weights: np.ndarray) -> float:
        margin = (2 * label - 1) * (table @ weights)
        return float(np.logaddexp(0, -margin).sum() + 0.5 * (weights[:-1] ** 2).sum())

    best = minimize(loss, np.zeros(4), method="BFGS").x
    found = logistic_outputs(parts, base)
    assert found is not None
    np.testing.assert_allclose(found[:, 0], table @ best, atol=0.02)


def test_logistic_regression_of_one_class_or_of_nobody_is_not_defined() -> None:
    base = toy_examples(np.ones((5, 3)), np.zeros((5, 4)), np.arange(5))
    assert logistic_outputs([labelled(base, np.ones(5, np.float32))], base) is None
    assert logistic_outputs([labelled(base.at(torch.arange(0)), np.ones(0, np.float32))], base) is None


def labelled(examples: Examples, label: np.ndarray) -> Examples:
    return replace(examples, target_NH=torch.from_numpy(label)[:, None])
