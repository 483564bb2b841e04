"""Warnings of what has not begun: against a plain loop, and by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from twin.tasks.metrics import onset_metrics
from twin.tasks.metrics.onset import OnsetJudge
from twin.tasks.protocol import Forecast

HOUR_US = 3_600_000_000


def forecast_of(rows: Sequence[tuple[int, float, float, float, float]], patients: int = 2) -> Forecast:
    """From rows of patient, hour, last SpO2, label, probability."""
    patient, hour, anchor, label, said = (np.array(column, float) for column in zip(*rows, strict=True))
    return Forecast(
        low_NH=said[:, None],
        middle_NH=said[:, None],
        high_NH=said[:, None],
        target_NH=label[:, None],
        observed_NH=np.ones((len(rows), 1), bool),
        anchor_N=anchor,
        patient_N=patient.astype(np.int64),
        time_us_N=(hour * HOUR_US).astype(np.int64),
        patients=tuple(f"p{n}" for n in range(patients)),
    )


def judge(per_day: float = 2.0) -> OnsetJudge:
    return OnsetJudge(threshold=90.0, horizon_min=60, stride_min=60, false_alarms_per_day=per_day)


def figures(forecast: Forecast, per_day: float = 2.0) -> dict[str, float]:
    metrics = onset_metrics(threshold=90.0, horizon_min=60, stride_min=60, false_alarms_per_day=per_day)
    everybody = np.ones((1, len(forecast.patients)))
    return {metric.name: float(metric(forecast, everybody)[0]) for metric in metrics}


def drawn(seed: int) -> Forecast:
    draws = np.random.default_rng(seed)
    rows = []
    for patient in range(6):
        hour = 0.0
        for _ in range(60):
            hour += 1.0 if draws.random() > 0.1 else draws.integers(2, 6)
            label = float(draws.random() < 0.1)
            said = float(np.round(np.clip(draws.normal(0.2 + 0.3 * label, 0.2), 0, 1), 2))
            rows.append((patient, hour, draws.choice([85.0, 92.0, 97.0], p=[0.1, 0.4, 0.5]), label, said))
    return forecast_of(rows, patients=7)


def test_who_is_low_already_is_no_event_and_no_false_alarm() -> None:
    found = judge()(forecast_of([(0, 0, 85, 1, 0.9), (0, 1, 85, 0, 0.9), (0, 2, 95, 0, 0.1)]))
    assert found.events_P.sum() == found.false_alarms_P.sum() == 0
    assert found.watched_days_P.tolist() == pytest.approx([1 / 24, 0])


def test_an_event_is_a_run_of_labels_and_the_first_alarm_in_it_gives_the_warning_time() -> None:
    rows = [
        (0, 0, 95, 0, 0.1),
        (0, 1, 95, 1, 0.2),
        (0, 2, 94, 1, 0.8),
        (0, 3, 93, 1, 0.7),
        (0, 4, 88, 1, 0.9),
    ]
    rows += [(0, 20, 95, 1, 0.9), (1, 21, 95, 1, 0.9), (1, 22, 95, 0, 0.5)]
    found = judge(per_day=0.01)(forecast_of(rows))  # no false alarm is allowed: the level is 0.5
    assert found.events_P.tolist() == [2, 1]
    assert found.detected_P.tolist() == [2, 1]
    # Alarm at hour 2, hypoxemia from hour 4; then an hour each.
    assert found.lead_min_P.tolist() == [120 + 60, 60]


def test_the_level_is_the_lowest_that_the_allowed_false_alarms_leave() -> None:
    rows = [(0, float(h), 95.0, 0.0, h / 100) for h in range(24)] + [
        (0, 30, 95, 1, 0.215),
        (0, 40, 95, 1, 0.205),
    ]
    # 26 watched hours: two alarms a day allow two, 0.23 and 0.22; the level is 0.21.
    found = judge()(forecast_of(rows))
    assert (found.false_alarms_P.sum(), found.detected_P.sum(), found.events_P.sum()) == (2, 1, 2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("per_day", [0.5, 2.0, 1000.0])
def test_counts_equal_a_plain_loop(seed: int, per_day: float) -> None:
    forecast = drawn(seed)
    watched = [n for n in range(len(forecast.patient_N)) if forecast.anchor_N[n] >= 90]
    blocks: dict[tuple[int, int], list[int]] = {}
    for n in watched:
        key = (int(forecast.patient_N[n]), int(forecast.time_us_N[n] // HOUR_US))
        blocks.setdefault(key, []).append(n)
    label, said = forecast.target_NH[:, 0], forecast.middle_NH[:, 0]
    quiet = [max(said[n] for n in block) for block in blocks.values() if not any(label[n] for n in block)]
    allowed = math.floor(per_day * len(watched) / 24)
    levels = sorted([*quiet, -math.inf])
    level = next(v for v in levels if sum(q > v for q in quiet) <= allowed)
    events: list[list[int]] = []
    for before, n in zip([None, *watched], watched, strict=False):
        if label[n] < 0.5:
            continue
        joined = (
            before is not None
            and forecast.patient_N[before] == forecast.patient_N[n]
            and forecast.time_us_N[n] - forecast.time_us_N[before] <= 2 * HOUR_US
            and label[before] > 0.5
        )
        if joined:
            events[-1].append(n)
        else:
            events.append([n])
    warned = [next((n for n in event if said[n] > level), None) for event in events]
    found = judge(per_day)(forecast)
    assert found.events_P.sum() == len(events)
    assert found.detected_P.sum() == sum(n is not None for n in warned)
    assert found.false_alarms_P.sum() == sum(q > level for q in quiet)
    lead = [
        (forecast.time_us_N[event[-1]] - forecast.time_us_N[n]) / 60e6 + 60
        for event, n in zip(events, warned, strict=True)
        if n is not None
    ]
    assert found.lead_min_P.sum() == pytest.approx(sum(lead))


def test_rankings_of_onset_equal_scikit_learn_on_who_is_not_low_and_differ_from_those_on_all() -> None:
    forecast = drawn(9)
    seen = forecast.anchor_N >= 90
    label, said = forecast.target_NH[seen, 0], forecast.middle_NH[seen, 0]
    found = figures(forecast)
    assert found["auroc_onset"] == pytest.approx(roc_auc_score(label, said))
    assert found["auprc_onset"] == pytest.approx(average_precision_score(label, said))
    assert found["auroc_onset"] != pytest.approx(roc_auc_score(forecast.target_NH, forecast.middle_NH))


def test_more_allowed_false_alarms_never_warn_of_fewer_onsets() -> None:
    forecast = drawn(5)
    found = [figures(forecast, per_day)["onset_sensitivity_pct"] for per_day in (0.2, 1.0, 3.0, 10.0, 1000.0)]
    assert found == sorted(found) and found[-1] == 100.0


def test_a_model_that_says_nothing_warns_of_nothing() -> None:
    rows = [(0, float(h), 95.0, float(h == 5), math.nan) for h in range(10)]
    assert figures(forecast_of(rows))["onset_sensitivity_pct"] == 0.0


def test_one_patient_is_judged_at_the_level_of_all() -> None:
    forecast = drawn(2)
    metric = next(
        m
        for m in onset_metrics(threshold=90.0, horizon_min=60, stride_min=60, false_alarms_per_day=2.0)
        if m.name == "onset_false_alarms_per_day"
    )
    each = metric(forecast, np.eye(7))
    sums = judge()(forecast)
    there = sums.watched_days_P > 0
    np.testing.assert_allclose(
        each[there], (sums.false_alarms_P / np.where(there, sums.watched_days_P, 1))[there]
    )
    assert np.isnan(each[~there]).all()
