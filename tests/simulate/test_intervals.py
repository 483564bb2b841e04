"""Laws of the bootstrap over patients: pairing, coverage, and no figure where there is none."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from conf.errors import TwinwardError
from simulate.intervals import judge
from twin.tasks.metrics import glucose_metrics
from twin.tasks.protocol import Forecast

METRICS = glucose_metrics(horizons_min=(30, 60), low_mg_dl=70.0, alarm_mg_dl=80.0, stride_min=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanError:
    """Mean signed error: a figure whose true value and spread a test can choose."""

    name: str = "bias_mg_dl"

    def __call__(self, forecast: Forecast, weights_BP: np.ndarray) -> np.ndarray:
        error_N = forecast.middle_NH[:, 0] - forecast.target_NH[:, 0]
        sum_P = np.bincount(forecast.patient_N, weights=error_N, minlength=len(forecast.patients))
        count_P = np.bincount(forecast.patient_N, minlength=len(forecast.patients))
        with np.errstate(invalid="ignore"):
            return np.asarray((weights_BP @ sum_P) / (weights_BP @ count_P))


def make(seed: int, patients: int = 12, windows: int = 20, spread: float = 10.0) -> Forecast:
    """A forecast whose error has one part per patient and one per window."""
    generator = np.random.default_rng(seed)
    patient_N = np.repeat(np.arange(patients), windows)
    error_N = generator.normal(0.0, spread, patients)[patient_N] + generator.normal(0.0, 5.0, len(patient_N))
    target_NH = generator.uniform(80.0, 200.0, (len(patient_N), 2))
    middle_NH = target_NH + error_N[:, None]
    return Forecast(
        low_NH=middle_NH - 12.0,
        middle_NH=middle_NH,
        high_NH=middle_NH + 12.0,
        target_NH=target_NH,
        observed_NH=np.ones_like(target_NH, dtype=bool),
        anchor_N=target_NH[:, 0],
        patient_N=patient_N,
        time_us_N=np.tile(np.arange(windows) * 15 * 60_000_000, patients),
        patients=tuple(f"p{i}" for i in range(patients)),
    )


def shifted(forecast: Forecast, mg_dl: float) -> Forecast:
    return replace(forecast, middle_NH=forecast.middle_NH + mg_dl)


def test_the_difference_of_equal_models_is_exactly_zero() -> None:
    forecast = make(0)
    judged = judge({"a": {"x": forecast}, "b": {"x": forecast}}, METRICS, samples=200, level=0.95, seed=0)
    for metric in ("rmse_30_mg_dl", "coverage_80_60_pct"):
        difference = judged.difference("a", "b", metric)
        assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0)
        assert not difference.excludes_zero


def test_a_constant_shift_is_known_exactly_because_draws_are_paired() -> None:
    forecast = make(1)
    models = {"a": {"x": shifted(forecast, 3.0)}, "b": {"x": forecast}}
    judged = judge(models, [MeanError()], samples=200, level=0.95, seed=0)
    difference = judged.difference("a", "b", "bias_mg_dl", site="x")
    assert difference.low == pytest.approx(3.0)
    assert difference.high == pytest.approx(3.0)
    assert difference.excludes_zero
    alone = judged.metrics_by_site["x"]["a"]["bias_mg_dl"]
    assert alone.high is not None
    assert alone.low is not None
    assert alone.high - alone.low > 1.0


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    covered = 0
    for seed in range(200):
        judged = judge(
            {"a": {"x": make(seed, patients=40, windows=3)}}, [MeanError()], samples=200, level=0.9, seed=seed
        )
        interval = judged.metrics["a"]["bias_mg_dl"]
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 0.0 <= interval.high
    # 0.9 of 200 is 180, standard deviation 4.2; percentiles of 40 patients fall a little short.
    assert 160 <= covered <= 195


def test_windows_of_one_patient_do_not_narrow_the_interval() -> None:
    few, many = make(3, windows=2, spread=20.0), make(3, windows=200, spread=20.0)
    judged = judge({"few": {"x": few}, "many": {"y": many}}, [MeanError()], samples=500, level=0.95, seed=0)

    def width(site: str, model: str) -> float:
        interval = judged.metrics_by_site[site][model]["bias_mg_dl"]
        assert interval.low is not None
        assert interval.high is not None
        return interval.high - interval.low

    assert width("y", "many") > 0.7 * width("x", "few")


def test_over_all_is_the_mean_over_sites_however_large_they_are() -> None:
    models = {"a": {"small": make(1, patients=5), "large": make(2, patients=50)}}
    judged = judge(models, METRICS, samples=100, level=0.95, seed=0)
    values = [judged.metrics_by_site[site]["a"]["rmse_30_mg_dl"].value for site in ("small", "large")]
    assert judged.metrics["a"]["rmse_30_mg_dl"].value == pytest.approx(np.mean([v for v in values if v]))


def test_per_patient_figures_are_those_of_the_patient_alone() -> None:
    forecast = make(4)
    judged = judge({"a": {"x": forecast}}, METRICS, samples=100, level=0.95, seed=0)
    (row,) = [r for r in judged.per_patient if r.patient == "p3" and r.metric == "mae_60_mg_dl"]
    inside = forecast.patient_N == 3
    error = np.abs(forecast.middle_NH - forecast.target_NH)[inside, 1].mean()
    assert row.value == pytest.approx(error)


def test_a_model_that_is_missing_at_a_site_is_null_there_and_over_all() -> None:
    models: dict[str, dict[str, Forecast | None]] = {
        "a": {"x": make(0), "y": make(1)},
        "b": {"x": make(0), "y": None},
    }
    judged = judge(models, METRICS, samples=100, level=0.95, seed=0)
    assert judged.metrics_by_site["y"]["b"]["rmse_30_mg_dl"].value is None
    assert judged.metrics["b"]["rmse_30_mg_dl"].value is None
    assert judged.metrics_by_site["x"]["b"]["rmse_30_mg_dl"].value is not None
    assert judged.metrics["a"]["rmse_30_mg_dl"].value is not None
    assert judged.difference("a", "b", "rmse_30_mg_dl").value is None


def test_a_figure_that_no_model_has_at_a_site_leaves_that_site_out() -> None:
    # No glucose below 70 anywhere at y: no event, so no sensitivity there.
    low = make(0)
    target_NH = low.target_NH.copy()
    target_NH[5::20] = 60.0
    target_NH[6::20] = 60.0
    models = {"a": {"x": replace(low, target_NH=target_NH), "y": make(1)}}
    judged = judge(models, METRICS, samples=100, level=0.95, seed=0)
    assert judged.metrics_by_site["y"]["a"]["hypo_sensitivity_pct"].value is None
    at_x = judged.metrics_by_site["x"]["a"]["hypo_sensitivity_pct"]
    assert at_x.value is not None
    assert judged.metrics["a"]["hypo_sensitivity_pct"] == at_x


def test_patients_without_windows_do_not_widen_the_interval() -> None:
    forecast = make(5)
    crowded = replace(forecast, patients=(*forecast.patients, *(f"untested {i}" for i in range(100))))
    plain, diluted = (
        judge({"a": {"x": f}}, METRICS, samples=300, level=0.95, seed=0).metrics["a"]["rmse_30_mg_dl"]
        for f in (forecast, crowded)
    )
    assert plain == diluted


def test_the_same_seed_gives_the_same_intervals_and_another_site_changes_nothing() -> None:
    first = judge({"a": {"x": make(0)}}, METRICS, samples=100, level=0.95, seed=7)
    again = judge({"a": {"x": make(0), "y": make(9)}}, METRICS, samples=100, level=0.95, seed=7)
    assert first.metrics_by_site["x"] == again.metrics_by_site["x"]


def test_models_judged_on_different_patients_are_refused() -> None:
    other = replace(make(0), patients=tuple(f"q{i}" for i in range(12)))
    with pytest.raises(TwinwardError, match="different lists of patients"):
        judge({"a": {"x": make(0)}, "b": {"x": other}}, METRICS, samples=100, level=0.95, seed=0)
