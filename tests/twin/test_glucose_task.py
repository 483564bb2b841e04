"""The loss is what a plain restatement says, quantiles stay in order, and outputs mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.records import Row, glucose_task, site_of, toy_examples, virtual_examples
from twin.tasks.glucose import CHANGE_MG_DL
from twin.tasks.protocol import Examples, merge

seeds = st.integers(0, 100_000)
quick = settings(max_examples=30, deadline=None)


def drawn(seed: int, windows: int = 12) -> tuple[Tensor, Examples]:
    """Outputs of no network, and windows of which some miss some or all targets."""
    draws = np.random.default_rng(seed)
    examples = toy_examples(
        draws.normal(size=(windows, 3)),
        draws.normal(0, 30, (windows, 4)),
        np.sort(draws.integers(0, 3, windows)),
        draws.random((windows, 4)) > 0.3,
    )
    path, log_spread = draws.normal(0, 1.5, (windows, 4)), draws.uniform(-2.0, 2.5, (windows, 8))
    return torch.from_numpy(np.concatenate([path, log_spread], axis=1)), examples


def pinball(value: float, forecast: float, quantile: float) -> float:
    return quantile * (value - forecast) if value >= forecast else (1 - quantile) * (forecast - value)


@given(seeds)
@quick
def test_the_loss_is_half_the_squared_error_and_the_pinball_losses_over_what_was_observed(seed: int) -> None:
    outputs, examples = drawn(seed)
    expected: list[float] = []
    for n in range(len(examples)):
        terms = []
        for h, scale in enumerate(CHANGE_MG_DL):
            if examples.observed_NH[n, h]:
                truth = (float(examples.target_NH[n, h]) - 150.0) / scale
                path = float(outputs[n, h])
                low = path - np.exp(float(outputs[n, 4 + h]))
                high = path + np.exp(float(outputs[n, 8 + h]))
                terms.append((truth - path) ** 2 / 2 + pinball(truth, low, 0.1) + pinball(truth, high, 0.9))
        expected.append(float(np.mean(terms)) if terms else 0.0)
    np.testing.assert_allclose(glucose_task().loss(outputs, examples), expected, rtol=1e-5)


@given(seeds)
@quick
def test_the_outer_quantiles_do_not_pull_at_the_path(seed: int) -> None:
    outputs, examples = drawn(seed)
    outputs.requires_grad_()
    (gradient,) = torch.autograd.grad(glucose_task().loss(outputs, examples).sum(), outputs)
    seen = examples.observed_NH.double()
    error = (examples.target_NH - 150.0).double() / torch.tensor(CHANGE_MG_DL).double() - outputs[:, :4]
    expected = -(error * seen) / seen.sum(1, keepdim=True).clamp(min=1)
    np.testing.assert_allclose(gradient[:, :4], expected.detach(), atol=1e-5)
    assert (gradient[:, 4:][seen.repeat(1, 2) == 0] == 0).all()
    assert (gradient[:, 4:][seen.repeat(1, 2) > 0] != 0).all()


@given(seeds, st.floats(0.1, 200))
@quick
def test_quantiles_never_cross_whatever_a_network_says(seed: int, size: float) -> None:
    outputs, examples = drawn(seed)
    forecast = glucose_task().forecast(outputs * size, examples)
    assert (forecast.low_NH <= forecast.middle_NH).all()
    assert (forecast.middle_NH <= forecast.high_NH).all()
    assert np.isfinite(forecast.high_NH).all()
    assert forecast.low_NH.min() >= 1.0
    assert forecast.high_NH.max() <= 1000.0


@given(seeds)
@quick
def test_rest_spreads_and_moved_speak_of_the_same_forecast(seed: int) -> None:
    outputs, examples = drawn(seed)
    outputs[:, 4:] -= 1.0  # far from the limits of a spread
    task, draws = glucose_task(), np.random.default_rng(seed)
    path, wider = (
        torch.from_numpy(draws.normal(0, 0.3, (12, 4))),
        torch.from_numpy(draws.normal(0, 0.3, (12, 2, 4))),
    )
    moved = task.moved(outputs, path, wider)
    np.testing.assert_allclose(task.rest(moved, examples), task.rest(outputs, examples) - path, atol=1e-6)
    np.testing.assert_allclose(task.spreads(moved), task.spreads(outputs) * wider.exp(), rtol=1e-6)
    scale = np.array(CHANGE_MG_DL)
    before, after = task.forecast(outputs, examples), task.forecast(moved, examples)
    inside = (after.low_NH > 1) & (after.high_NH < 1000) & (before.low_NH > 1) & (before.high_NH < 1000)
    np.testing.assert_allclose(
        (after.middle_NH - before.middle_NH)[inside], (path.numpy() * scale)[inside], atol=1e-6
    )
    np.testing.assert_allclose(
        (after.middle_NH - after.low_NH)[inside],
        (task.spreads(moved)[:, 0].numpy() * scale)[inside],
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        examples.target_NH.double().numpy()[inside] - before.middle_NH[inside],
        (task.rest(outputs, examples).numpy() * scale)[inside],
        atol=1e-4,
    )


def test_the_table_is_of_order_one_and_ends_with_one() -> None:
    examples = virtual_examples()
    assert examples.table_NF.shape == (len(examples), len(glucose_task().columns))
    assert glucose_task().columns[-1] == "one"
    assert len(set(glucose_task().columns)) == len(glucose_task().columns)
    assert (examples.table_NF[:, -1] == 1).all()
    assert examples.table_NF.isfinite().all()
    assert examples.table_NF.abs().max() <= 30.0
    assert examples.table_NF.std(0).max() < 3.0


def test_what_a_patient_does_not_have_stands_at_zero_in_table_and_sequence() -> None:
    rows: list[Row] = [("p", "glucose", 5.0 * n, 140.0) for n in range(60)]
    examples = glucose_task().examples(site_of(rows))
    late = examples.at(examples.time_us_N >= examples.time_us_N[0] + 2 * 3_600_000_000)
    idle = [c for c in glucose_task().columns if not c.startswith(("day", "halfday", "one"))]
    table = dict(zip(glucose_task().columns, late.table_NF.T, strict=True))
    assert all((table[column] == 0).all() for column in idle if column != "age")
    waves = glucose_task().sequence(late)
    assert waves.shape == (len(late), glucose_task().channels, 24)
    assert (waves[:, [0, 3, 4, 5, 6, 7]] == 0).all()


def test_the_table_of_a_window_with_known_history_is_what_its_names_say() -> None:
    rows: list[Row] = [("p", "glucose", 5.0 * n, 100.0 + 3.0 * n) for n in range(40)]
    rows += [("p", "insulin_bolus", 110.0, 3.0), ("p", "carbohydrates", 60.0, 45.0)]
    rows += [("p", "heart_rate", 5.0 * n, 70.0 if n < 22 else 100.0) for n in range(25)]
    rows += [("p", "steps", 100.0, 1200.0), ("p", "insulin_basal", 0.0, 0.4)]
    examples = glucose_task().examples(site_of(rows))
    at = int(torch.nonzero(examples.anchor_N == 100.0 + 3.0 * 24)[0])  # two hours after the start
    row = dict(zip(glucose_task().columns, examples.table_NF[at].tolist(), strict=True))
    assert row["level"] == pytest.approx(32 / 50)
    for lag in (5, 30, 90, 115):
        assert row[f"change_{lag}"] == pytest.approx(3.0 * lag / 5 / 30, rel=1e-5)
    assert row["bolus_0_15"] == pytest.approx(1.5)
    assert row["carbs_30_60"] + row["carbs_60_120"] == pytest.approx(1.5)
    assert row["basal"] == pytest.approx(-0.6)
    assert row["heart_rate"] == pytest.approx(1.0)
    assert row["heart_rate_rise"] > 0.5
    assert row["steps_30"] == pytest.approx(2.0)
    assert row["missing_120"] == 0.0


def test_merged_sites_keep_their_windows_and_number_patients_on() -> None:
    one, other = virtual_examples(0), virtual_examples(1)
    both = merge([one, other])
    assert both.patients == one.patients + other.patients
    assert (both.patient_N.diff() >= 0).all()
    back = both.at(both.patient_N >= len(one.patients))
    assert torch.equal(back.table_NF, other.table_NF)
    assert torch.equal(back.patient_N - len(one.patients), other.patient_N)


def test_leaving_the_history_out_leaves_everything_else() -> None:
    examples = virtual_examples()
    without = examples.without_series()
    assert len(without) == len(examples)
    assert without.series_NTC.numel() == 0
    assert torch.equal(without.table_NF, examples.table_NF)
    assert torch.equal(without.at(torch.tensor([3, 5])).target_NH, examples.target_NH[[3, 5]])
