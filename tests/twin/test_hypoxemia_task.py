"""Labels by hand, windows that know nothing later than their moment, and one path checked by another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from conf import schema
from tests.records import START_US, Row, site_of
from twin import tasks
from twin.tasks.hypoxemia import HypoxemiaTask
from twin.tasks.protocol import Examples, LastValueTask, LiveTask

seeds = st.integers(0, 100_000)
quick = settings(max_examples=15, deadline=None)


def task_of(**values: float) -> HypoxemiaTask:
    built = tasks.build(schema.Task(**({"name": "hypoxemia", "stride_min": 1} | values)))  # type: ignore[arg-type]  # names and types as in the schema
    assert isinstance(built, HypoxemiaTask)
    return built


def monitor(values: Sequence[float], step_min: float = 1.0, patient: str = "p1") -> list[Row]:
    """SpO2 once in each step."""
    return [(patient, "spo2", number * step_min, value) for number, value in enumerate(values)]


def minutes(examples: Examples) -> list[float]:
    return ((examples.time_us_N - START_US).double() / 60e6).tolist()


def labels(examples: Examples) -> dict[float, float]:
    return dict(zip(minutes(examples), examples.target_NH[:, 0].tolist(), strict=True))


def wandering(seed: int) -> list[Row]:
    """Two patients with monitors that have gaps, other signals here and there."""
    draws = np.random.default_rng(seed)
    rows: list[Row] = []
    for patient, step in (("a", 0.5), ("b", 1.0)):
        minute = np.arange(0.0, 50.0, step)
        value = np.clip(np.round(92 + np.cumsum(draws.normal(0, 0.8, len(minute)))), 60, 100)
        there = (draws.random(len(minute)) > 0.2) & ((minute < 20) | (minute > 20 + draws.uniform(0, 8)))
        rows += [(patient, "spo2", m, v) for m, v in zip(minute[there], value[there], strict=True)]
        for signal, usual in (("pulse_rate", 80.0), ("respiratory_rate", 18.0), ("fio2", 30.0)):
            at = np.sort(draws.uniform(0, 50, 12))
            rows += [(patient, signal, m, usual + draws.normal(0, 3)) for m in at]
    return rows


def test_the_mean_of_the_next_five_minutes_decides_and_not_the_lowest_of_them() -> None:
    #                 minute 0   1   2   3   4   5   6   7   8   9  10
    site = site_of(monitor([95, 95, 95, 86, 86, 94, 94, 86, 86, 86, 94]))
    # Means after minutes 0 … 5: 91.2, 91, 89.2, 89.2, 89.2, 89.2. Afterwards fewer than three values follow.
    found = labels(task_of().examples(site))
    assert {m: found[m] for m in (0, 1, 2, 3, 4, 5)} == {0: 0, 1: 0, 2: 1, 3: 1, 4: 1, 5: 1}


def test_a_mean_at_the_threshold_is_not_below_it_and_the_threshold_is_an_option() -> None:
    site = site_of(monitor([95] + [90] * 5))
    assert labels(task_of().examples(site))[0] == 0
    assert labels(task_of(spo2_low_pct=90.5).examples(site))[0] == 1


def test_the_horizon_is_an_option() -> None:
    site = site_of(monitor([95, 80, 80, 99, 99, 99, 99, 99, 99, 99, 99]))
    assert labels(task_of(horizon_min=2).examples(site))[0] == 1
    assert labels(task_of(horizon_min=10).examples(site))[0] == 0


@pytest.mark.parametrize(("seen", "known"), [(3, True), (2, False)])
def test_a_label_needs_most_of_what_the_monitor_usually_writes(seen: int, known: bool) -> None:
    # Every minute, then `seen` values in the five minutes after minute 10, then every minute again.
    rows = monitor([95.0] * 11) + [("p1", "spo2", 11.0 + k, 85.0) for k in range(seen)]
    rows += [("p1", "spo2", m, 95.0) for m in range(16, 30)]
    assert (10.0 in labels(task_of().examples(site_of(rows)))) is known


def test_hourly_charts_have_labels_for_the_next_hour_and_none_for_five_minutes() -> None:
    site = site_of(monitor([95, 94, 88, 95], step_min=60))
    assert labels(task_of(horizon_min=60, stride_min=60).examples(site)) == {0: 0, 60: 1, 120: 0}
    assert len(task_of().examples(site)) == 0


def test_five_minute_values_that_come_a_little_late_have_labels() -> None:
    rows: list[Row] = [("p1", "spo2", 5.0 * k + (0.2 if k % 2 else 0.0), 95.0) for k in range(8)]
    assert len(task_of().examples(site_of(rows))) == 7


@given(seeds)
@quick
def test_labels_and_their_absence_equal_a_plain_loop(seed: int) -> None:
    site, task = site_of(wandering(seed)), task_of(stride_min=2)
    examples = task.examples(site)
    found = {
        (int(p), int(t)): float(y)
        for p, t, y in zip(examples.patient_N, examples.time_us_N, examples.target_NH[:, 0], strict=True)
    }
    expected = {}
    for number, patient in enumerate(site.patients.index):
        rows = site.observations
        own = rows[(rows["patient_id"] == patient) & (rows["signal"] == "spo2")]
        at = [t.value // 1000 for t in own["time"]]
        values = own["value"].tolist()
        step = float(np.median(np.diff(at))) / 60e6
        slot = None
        for now in at:
            if now // 120_000_000 == slot:
                continue
            slot = now // 120_000_000
            until = now + (5 + 0.1 * step) * 60e6
            later = [v for t, v in zip(at, values, strict=True) if now < t <= until]
            if len(later) >= 0.6 * np.floor((5 + 0.1 * step) / step) and later:
                expected[(number, now)] = float(np.mean(later) < 90)
    assert found == expected


@given(seeds)
@quick
def test_nothing_later_than_its_moment_changes_a_window(seed: int) -> None:
    site, task = site_of(wandering(seed)), task_of()
    whole = task.examples(site)
    draws = np.random.default_rng(seed)
    now_us = int(whole.time_us_N[draws.integers(len(whole))])
    later = site.observations["time"].map(lambda t: t.value // 1000) > now_us
    changed = site.observations.copy()
    changed.loc[later, "value"] = np.round(draws.uniform(60, 100, int(later.sum())))
    keep = ~later | (draws.random(len(later)) < 0.8)
    other = task.examples(replace(site, observations=changed[keep].reset_index(drop=True)))
    _same_inputs(whole, other, now_us)


@given(seeds)
@quick
def test_the_window_of_this_moment_is_the_one_that_training_would_see(seed: int) -> None:
    site, task = site_of(wandering(seed)), task_of()
    assert isinstance(task, LiveTask)
    whole = task.examples(site)
    row = int(np.random.default_rng(seed).integers(len(whole)))
    now_us, patient = int(whole.time_us_N[row]), int(whole.patient_N[row])
    live = task.latest(site, now_us)
    assert not live.observed_NH.any() and (live.time_us_N <= now_us).all()
    mine = live.at(live.patient_N == patient)
    for name in ("series_NTC", "table_NF", "anchor_N", "time_us_N"):
        torch.testing.assert_close(getattr(mine, name)[0], getattr(whole, name)[row])


def test_a_patient_without_a_fresh_value_has_no_window_of_this_moment() -> None:
    site = site_of([("old", "spo2", 0.0, 95.0), ("new", "spo2", 30.0, 95.0)])
    live = task_of().latest(site, START_US + 35 * 60_000_000)
    assert [live.patients[p] for p in live.patient_N] == ["new"]


def test_the_pulse_stands_in_for_a_heart_rate_that_is_not_there() -> None:
    rows = monitor([95.0] * 10)
    column = task_of().columns.index("heart_rate")
    known = task_of().columns.index("heart_rate_known")
    heart = task_of().examples(site_of([*rows, ("p1", "heart_rate", 0.0, 105.0)])).table_NF
    pulse = task_of().examples(site_of([*rows, ("p1", "pulse_rate", 0.0, 105.0)])).table_NF
    torch.testing.assert_close(heart, pulse)
    assert heart[0, column] == 1.0 and heart[0, known] == 1.0
    neither = task_of().examples(site_of(rows)).table_NF
    assert neither[0, column] == 0.0 and neither[0, known] == 0.0


def test_the_table_has_its_columns_is_finite_of_order_one_and_ends_with_one() -> None:
    examples = task_of().examples(site_of(wandering(7)))
    assert examples.table_NF.shape == (len(examples), len(task_of().columns))
    assert examples.table_NF.isfinite().all() and examples.table_NF.abs().max() <= 6.0
    assert (examples.table_NF[:, -1] == 1.0).all()
    assert task_of().sequence(examples).shape[1] == task_of().channels


def test_the_table_of_a_window_with_known_history_is_what_its_names_say() -> None:
    values = [96.0] * 10 + [92.0, 91.0]
    examples = task_of().examples(site_of(monitor(values + [91.0] * 5)))
    row = dict(zip(task_of().columns, examples.table_NF[minutes(examples).index(11.0)].tolist(), strict=True))
    assert row["level"] == pytest.approx((91 - 96) / 3)
    assert row["near"] == pytest.approx(0.75)
    assert row["change_0.2h"] == pytest.approx((91 - 92) / 2)
    assert row["change_1h"] == pytest.approx((91 - 96) / 2)
    recent = np.array([96, 96, 96, 92, 91.0])
    assert row["mean_1h"] == pytest.approx((recent.mean() - 91) / 2)
    assert row["spread_1h"] == pytest.approx(recent.std() / 2)
    assert (row["below_1h"], row["near_1h"]) == pytest.approx((0.0, 0.4))
    assert row["fio2_known"] == row["rox"] == 0.0


def test_the_loss_is_the_cross_entropy_of_labels_that_are_known() -> None:
    examples = task_of().examples(site_of(wandering(3)))
    logits = torch.linspace(-3, 3, len(examples))[:, None]
    expected = functional.binary_cross_entropy(torch.sigmoid(logits), examples.target_NH, reduction="none")
    torch.testing.assert_close(task_of().loss(logits, examples), expected[:, 0])
    unknown = replace(examples, observed_NH=torch.zeros_like(examples.observed_NH))
    assert not task_of().loss(logits, unknown).any()


def test_the_last_value_forecasts_more_risk_the_lower_it_is_and_even_odds_at_the_threshold() -> None:
    task = task_of()
    assert isinstance(task, LastValueTask)
    examples = task.examples(site_of(monitor([97, 90, 85, 93, 90, 90, 90, 90, 90])))
    said = task.forecast(task.persistence_outputs(examples), examples)
    order = np.argsort(examples.anchor_N.numpy(), kind="stable")
    assert (np.diff(said.middle_NH[order, 0]) <= 0).all()
    assert said.middle_NH[examples.anchor_N.numpy() == 90, 0] == pytest.approx(0.5)


def test_an_empty_hospital_gives_no_window() -> None:
    site = site_of([("p1", "heart_rate", 0.0, 80.0)])
    assert len(task_of().examples(site)) == 0
    assert len(task_of().latest(site, START_US)) == 0


def _same_inputs(whole: Examples, other: Examples, now_us: int) -> None:
    """Windows up to a moment are the same wherever both exist; labels may differ, they look ahead."""
    place = {
        (int(p), int(t)): n for n, (p, t) in enumerate(zip(other.patient_N, other.time_us_N, strict=True))
    }
    compared = 0
    for n, (patient, time_us) in enumerate(zip(whole.patient_N, whole.time_us_N, strict=True)):
        twin = place.get((int(patient), int(time_us)))
        if int(time_us) > now_us or twin is None:
            continue
        compared += 1
        assert torch.equal(whole.table_NF[n], other.table_NF[twin])
        assert torch.equal(whole.series_NTC[n], other.series_NTC[twin])
        assert whole.anchor_N[n] == other.anchor_N[twin]
    assume(compared)  # the first window of all has gone where what it foretells was left out
