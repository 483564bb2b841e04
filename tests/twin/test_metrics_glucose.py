"""Glucose figures against plain loops, and alarms against small stories that can be read."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twin.errors import DataError
from twin.tasks.metrics import clarke_zone, glucose_metrics
from twin.tasks.metrics.alarms import event_onsets
from twin.tasks.protocol import Forecast

HORIZONS = (15, 30, 45, 60)
METRICS = {
    metric.name: metric
    for metric in glucose_metrics(horizons_min=HORIZONS, low_mg_dl=70.0, alarm_mg_dl=80.0, stride_min=15)
}


def random_forecast(seed: int, patients: int = 4, windows: int = 300) -> Forecast:
    generator = np.random.default_rng(seed)
    target_NH = generator.uniform(40.0, 300.0, (windows, 4))
    middle_NH = target_NH + generator.normal(0.0, 30.0, target_NH.shape)
    observed_NH = generator.random(target_NH.shape) < 0.8
    return Forecast(
        low_NH=middle_NH - 35.0,
        middle_NH=middle_NH,
        high_NH=middle_NH + 35.0,
        target_NH=np.where(observed_NH, target_NH, 0.0),
        observed_NH=observed_NH,
        anchor_N=generator.uniform(40.0, 300.0, windows),
        patient_N=np.sort(generator.integers(0, patients, windows)),
        time_us_N=np.arange(windows) * 15 * 60_000_000,
        patients=tuple(f"p{i}" for i in range(patients)),
    )


def story(trace_mg_dl: list[float], said: dict[int, float]) -> Forecast:
    """One person's readings every 15 minutes; at step k a forecast path of `said[k]`, else of 150."""
    count = len(trace_mg_dl) - 4
    target_NH = np.array([trace_mg_dl[k + 1 : k + 5] for k in range(count)])
    middle_NH = np.array([[said.get(k, 150.0)] * 4 for k in range(count)])
    return Forecast(
        low_NH=middle_NH,
        middle_NH=middle_NH,
        high_NH=middle_NH,
        target_NH=target_NH,
        observed_NH=np.ones_like(target_NH, dtype=bool),
        anchor_N=np.array(trace_mg_dl[:count]),
        patient_N=np.zeros(count, dtype=np.int64),
        time_us_N=np.arange(count) * 15 * 60_000_000,
        patients=("p0",),
    )


def figure(name: str, forecast: Forecast) -> float:
    return float(METRICS[name](forecast, np.ones((1, len(forecast.patients))))[0])


@pytest.mark.parametrize("seed", range(5))
def test_errors_equal_a_loop_over_windows(seed: int) -> None:
    forecast = random_forecast(seed)
    for column, minutes in ((1, 30), (3, 60)):
        pairs = [
            (y[column], f[column], low[column], high[column])
            for y, f, low, high, seen in zip(
                forecast.target_NH,
                forecast.middle_NH,
                forecast.low_NH,
                forecast.high_NH,
                forecast.observed_NH,
                strict=True,
            )
            if seen[column]
        ]
        count = len(pairs)
        expected = {
            f"rmse_{minutes}_mg_dl": (sum((f - y) ** 2 for y, f, _, _ in pairs) / count) ** 0.5,
            f"mae_{minutes}_mg_dl": sum(abs(f - y) for y, f, _, _ in pairs) / count,
            f"mard_{minutes}_pct": 100 * sum(abs(f - y) / y for y, f, _, _ in pairs) / count,
            f"coverage_80_{minutes}_pct": 100 * sum(low <= y <= high for y, _, low, high in pairs) / count,
            f"clarke_ab_{minutes}_pct": 100
            * sum(clarke_zone(np.array([y]), np.array([f]))[0] <= 1 for y, f, _, _ in pairs)
            / count,
        }
        for name, value in expected.items():
            assert figure(name, forecast) == pytest.approx(value)


@given(seed=st.integers(0, 1000), counts=st.lists(st.integers(0, 3), min_size=4, max_size=4))
@settings(max_examples=25, deadline=None)
def test_a_weight_of_k_equals_a_patient_who_is_there_k_times(seed: int, counts: list[int]) -> None:
    forecast = random_forecast(seed, windows=120)
    copies = [patient for patient, count in enumerate(counts) for _ in range(count)]
    rows = [np.flatnonzero(forecast.patient_N == patient) for patient in copies]
    index_N = np.concatenate([*rows, np.empty(0, dtype=np.int64)]).astype(np.int64)
    repeated = replace(
        forecast,
        **{
            name: getattr(forecast, name)[index_N]
            for name in (
                "low_NH",
                "middle_NH",
                "high_NH",
                "target_NH",
                "observed_NH",
                "anchor_N",
                "time_us_N",
            )
        },
        patient_N=np.repeat(np.arange(len(copies)), [len(row) for row in rows]),
        patients=tuple(map(str, range(len(copies)))),
    )
    for metric in METRICS.values():
        weighted = metric(forecast, np.array([counts], dtype=float))
        plain = metric(repeated, np.ones((1, len(copies))))
        np.testing.assert_allclose(weighted, plain, rtol=1e-9, err_msg=metric.name)


def test_a_patient_without_windows_has_no_figures() -> None:
    forecast = replace(random_forecast(0), patients=("p0", "p1", "p2", "p3", "absent"))
    absent = np.array([[0.0, 0.0, 0.0, 0.0, 1.0]])
    assert all(np.isnan(metric(forecast, absent)).all() for metric in METRICS.values())


def test_a_forecast_that_is_not_finite_spoils_the_figures_of_its_patient_only() -> None:
    forecast = random_forecast(0)
    middle_NH = forecast.middle_NH.copy()
    middle_NH[0] = np.nan
    broken = replace(forecast, middle_NH=middle_NH)
    figures = METRICS["rmse_30_mg_dl"](broken, np.vstack([np.ones(4), np.eye(4)]))
    assert np.isnan(figures[:2]).all()
    assert np.isfinite(figures[2:]).all()


def test_horizons_without_30_minutes_are_refused() -> None:
    with pytest.raises(DataError, match=r"\+30 and \+60"):
        glucose_metrics(horizons_min=(15, 60), low_mg_dl=70.0, alarm_mg_dl=80.0, stride_min=15)


# Readings 0..7 are fine, 8..10 low, then fine: one event, which begins 120 minutes after the first reading.
FALL = [120.0] * 8 + [60.0] * 3 + [110.0] * 12


def test_a_warning_within_the_hour_before_detects_and_gives_its_lead_time() -> None:
    forecast = story(FALL, said={5: 75.0, 7: 75.0})
    assert figure("hypo_sensitivity_pct", forecast) == 100.0
    assert figure("hypo_lead_time_min", forecast) == 45.0
    assert figure("hypo_false_alarms_per_day", forecast) == 0.0


def test_a_warning_that_comes_with_the_low_or_long_before_it_detects_nothing() -> None:
    forecast = story(FALL, said={2: 75.0, 8: 50.0, 9: 50.0})
    assert figure("hypo_sensitivity_pct", forecast) == 0.0
    assert np.isnan(figure("hypo_lead_time_min", forecast))
    watched_days = len(forecast.patient_N) * 15 / 1440
    assert figure("hypo_false_alarms_per_day", forecast) == pytest.approx(1 / watched_days)


def test_an_alarm_that_is_always_on_pays_with_an_alarm_every_hour() -> None:
    forecast = story([120.0] * 100, said=dict.fromkeys(range(100), 75.0))
    assert figure("hypo_false_alarms_per_day", forecast) == pytest.approx(24.0)
    assert np.isnan(figure("hypo_sensitivity_pct", forecast))


@pytest.mark.parametrize(
    ("minutes", "values", "onsets"),
    [
        ([0, 5, 10, 15, 20, 25], [90, 60, 60, 60, 90, 90], [5]),
        ([0, 5, 10, 15, 20, 25], [90, 60, 60, 90, 90, 90], []),  # ten minutes low are too short
        ([0, 15, 30, 45], [90, 60, 90, 90], [15]),
        ([0, 5, 10, 15, 20], [60, 60, 60, 60, 90], []),  # nobody saw it begin
        ([0, 60, 65, 70, 75], [90, 60, 60, 60, 90], []),  # nor here, after a gap
        ([0, 15, 30, 35, 50, 65], [90, 60, 90, 60, 60, 90], [15]),  # five minutes above do not end it
        ([0, 15, 30, 45, 60, 75], [90, 60, 90, 60, 60, 90], [15, 45]),
    ],
)
def test_events_begin_where_the_consensus_says(
    minutes: list[float], values: list[float], onsets: list[float]
) -> None:
    assert event_onsets(np.array(minutes, float), np.array(values, float), 70.0).tolist() == onsets
