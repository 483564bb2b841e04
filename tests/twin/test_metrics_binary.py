"""Binary figures against scikit-learn, with ties, weights and several rows per patient."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, roc_auc_score

from twin.tasks.metrics import binary as binary_module
from twin.tasks.metrics import binary_metrics
from twin.tasks.protocol import Forecast

METRICS = {metric.name: metric for metric in binary_metrics()}


def random_forecast(seed: int, patients: int = 40, rows: int = 90) -> Forecast:
    generator = np.random.default_rng(seed)
    label_N = (generator.random(rows) < 0.4).astype(float)
    # Rounded, so that many probabilities are equal.
    probability_N = np.round(np.clip(0.4 + 0.2 * label_N + generator.normal(0, 0.25, rows), 0, 1), 1)
    return Forecast(
        low_NH=probability_N[:, None],
        middle_NH=probability_N[:, None],
        high_NH=probability_N[:, None],
        target_NH=label_N[:, None],
        observed_NH=np.ones((rows, 1), dtype=bool),
        anchor_N=np.zeros(rows),
        patient_N=np.sort(generator.integers(0, patients, rows)),
        time_us_N=np.zeros(rows),
        patients=tuple(map(str, range(patients))),
    )


@pytest.mark.parametrize("seed", range(5))
def test_figures_equal_scikit_learn_under_any_weighting(seed: int) -> None:
    forecast = random_forecast(seed)
    label_N, probability_N = forecast.target_NH[:, 0], forecast.middle_NH[:, 0]
    weights_BP = np.random.default_rng(seed).integers(0, 4, (20, 40)).astype(float)
    figures = {name: metric(forecast, weights_BP) for name, metric in METRICS.items()}
    for row, weight_P in enumerate(weights_BP):
        weight_N = weight_P[forecast.patient_N]
        expected = {
            "auroc": roc_auc_score(label_N, probability_N, sample_weight=weight_N),
            "auprc": average_precision_score(label_N, probability_N, sample_weight=weight_N),
            "brier": brier_score_loss(label_N, probability_N, sample_weight=weight_N),
            "accuracy": accuracy_score(label_N, probability_N >= 0.5, sample_weight=weight_N),
        }
        for name, value in expected.items():
            assert figures[name][row] == pytest.approx(value), name


def test_calibration_error_equals_a_loop_over_ten_bins() -> None:
    forecast = random_forecast(3, rows=400)
    probability_N = np.random.default_rng(0).random(400)
    forecast = replace(forecast, middle_NH=probability_N[:, None])
    expected = 0.0
    for low in np.arange(10) / 10:
        inside = (probability_N >= low) & (probability_N < low + 0.1)
        if inside.any():
            gap = abs(probability_N[inside].mean() - forecast.target_NH[inside, 0].mean())
            expected += inside.mean() * gap
    assert METRICS["calibration_error"](forecast, np.ones((1, 40)))[0] == pytest.approx(expected)


def test_a_probability_of_one_falls_into_the_last_bin() -> None:
    forecast = random_forecast(0)
    certain = replace(forecast, middle_NH=forecast.target_NH.copy())
    assert METRICS["calibration_error"](certain, np.ones((1, 40)))[0] == 0.0


def test_ranking_is_undefined_with_one_class_and_where_a_probability_is_not_finite() -> None:
    forecast = random_forecast(0)
    ones = np.ones((1, 40))
    one_class = replace(forecast, target_NH=np.ones_like(forecast.target_NH))
    broken = replace(forecast, middle_NH=np.full_like(forecast.middle_NH, np.nan))
    assert np.isnan(METRICS["auroc"](one_class, ones)).all()
    assert np.isnan(METRICS["auprc"](one_class, ones)).all()
    assert all(np.isnan(metric(broken, ones)).all() for metric in METRICS.values())


def test_weightings_in_pieces_give_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    forecast = random_forecast(1)
    weights_BP = np.random.default_rng(0).integers(0, 4, (50, 40)).astype(float)
    whole = METRICS["auroc"](forecast, weights_BP)
    monkeypatch.setattr(binary_module, "_CHUNK", 300)
    np.testing.assert_array_equal(METRICS["auroc"](forecast, weights_BP), whole)
