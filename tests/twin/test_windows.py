"""Windows are what a plain loop over one patient's rows makes of them, and see nothing of the future."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.records import START_US, Row, drawn_rows, glucose_task, site_of
from twin.site import Site
from twin.tasks.glucose_inputs import CARRY_MIN, OPTIONAL_SIGNALS, SLOTS
from twin.tasks.protocol import Examples

GLUCOSE, MASK, AGE, BOLUS, CARBS, BASAL, HEART, STEPS = range(8)
MINUTE_US = 60_000_000

records = st.builds(drawn_rows, st.integers(0, 10_000), st.sampled_from([5, 15]))
quick = settings(max_examples=15, deadline=None)


def signal_of(site: Site, patient: str, signal: str) -> tuple[list[int], list[float]]:
    frame = site.observations
    rows = frame[(frame["patient_id"] == patient) & (frame["signal"] == signal)]
    return [t.value // 1000 for t in rows["time"]], rows["value"].tolist()


def plain_level(
    times: list[int], values: list[float], now: int, at: int, carry_min: float, line: bool
) -> tuple[float, bool, float]:
    before = bisect_right(times, at)
    if before == 0 or at - times[before - 1] > carry_min * MINUTE_US:
        return 0.0, False, carry_min
    last, value = times[before - 1], values[before - 1]
    age_min = (at - last) / MINUTE_US
    if line and before < len(times) and times[before] <= now:
        gap = times[before] - last
        if gap <= carry_min * MINUTE_US:
            value += (values[before] - value) * (at - last) / gap
    return value, True, age_min


def plain_series(site: Site, patient: str, now: int) -> np.ndarray:
    """The history of one window, slot by slot."""
    out = np.zeros((SLOTS, 8))
    levels = ((GLUCOSE, "glucose", CARRY_MIN, True), (HEART, "heart_rate", CARRY_MIN, True))
    doses = {
        BOLUS: signal_of(site, patient, "insulin_bolus"),
        CARBS: signal_of(site, patient, "carbohydrates"),
        STEPS: signal_of(site, patient, "steps"),
    }
    if not doses[CARBS][0]:
        times, kcal = signal_of(site, patient, "energy_intake")
        doses[CARBS] = times, [value / 2 / 4 for value in kcal]
    for slot in range(SLOTS):
        at = now - (SLOTS - 1 - slot) * 5 * MINUTE_US
        for channel, signal, carry_min, line in (*levels, (BASAL, "insulin_basal", 1440.0, False)):
            found = plain_level(*signal_of(site, patient, signal), now, at, carry_min, line)
            out[slot, channel] = found[0]
            if channel == GLUCOSE:
                out[slot, MASK], out[slot, AGE] = found[1], found[2]
        for channel, (times, values) in doses.items():
            out[slot, channel] = sum(
                v for t, v in zip(times, values, strict=True) if at - 5 * MINUTE_US < t <= at
            )
    return out


def plain_targets(site: Site, patient: str, now: int) -> tuple[list[float], list[bool]]:
    times, values = signal_of(site, patient, "glucose")
    target, observed = [], []
    for horizon_min in (15, 30, 45, 60):
        away = [abs(t - now - horizon_min * MINUTE_US) for t in times]
        nearest = int(np.argmin(away))
        seen = away[nearest] <= 150_000_000
        target.append(values[nearest] if seen else 0.0)
        observed.append(seen)
    return target, observed


@given(records, st.integers(0, 10_000))
@quick
def test_windows_equal_a_plain_loop_over_one_patients_rows(rows: list[Row], seed: int) -> None:
    site = site_of(rows)
    examples = glucose_task().examples(site)
    chosen = np.random.default_rng(seed).permutation(len(examples))[:6]
    for n in chosen:
        patient, now = examples.patients[examples.patient_N[n]], int(examples.time_us_N[n])
        times, values = signal_of(site, patient, "glucose")
        np.testing.assert_allclose(
            examples.series_NTC[n], plain_series(site, patient, now), rtol=1e-5, atol=1e-4
        )
        target, observed = plain_targets(site, patient, now)
        np.testing.assert_allclose(examples.target_NH[n], target, rtol=1e-6)
        assert examples.observed_NH[n].tolist() == observed
        assert examples.anchor_N[n].item() == pytest.approx(values[times.index(now)])
        day = (now / MINUTE_US % 1440) / 1440 * 2 * np.pi
        seen = [any(t <= now for t in signal_of(site, patient, s)[0]) for s in OPTIONAL_SIGNALS]
        if patient == "p2":
            seen[1] = any(t <= now for t in signal_of(site, patient, "energy_intake")[0])
        np.testing.assert_allclose(
            examples.static_NS[n],
            [np.sin(day), np.cos(day), np.sin(2 * day), np.cos(2 * day), *seen],
            atol=1e-5,
        )


@given(records, st.sampled_from([5, 15, 30]))
@quick
def test_a_window_stands_at_the_first_value_of_each_stride_that_has_a_target(
    rows: list[Row], stride_min: int
) -> None:
    site = site_of(rows)
    expected = []
    for patient in site.patients.index:
        times, _ = signal_of(site, patient, "glucose")
        firsts = {t // (stride_min * MINUTE_US): t for t in reversed(times)}
        expected += [(patient, t) for t in sorted(firsts.values()) if any(plain_targets(site, patient, t)[1])]
    examples = glucose_task(stride_min).examples(site)
    found = zip(examples.patient_N.tolist(), examples.time_us_N.tolist(), strict=True)
    assert [(examples.patients[p], t) for p, t in found] == expected


def by_moment(examples: Examples) -> dict[tuple[str, int], int]:
    keys = zip(examples.patient_N.tolist(), examples.time_us_N.tolist(), strict=True)
    return {(examples.patients[p], t): n for n, (p, t) in enumerate(keys)}


def assert_same_inputs(one: Examples, other: Examples, moments: list[tuple[str, int]]) -> None:
    """Levels exactly; sums of doses are differences of running sums, equal but for rounding."""
    place, there = by_moment(one), by_moment(other)
    a, b = [place[m] for m in moments], [there[m] for m in moments]
    np.testing.assert_array_equal(one.anchor_N[a], other.anchor_N[b])
    np.testing.assert_array_equal(one.static_NS[a], other.static_NS[b])
    levels = [GLUCOSE, MASK, AGE, BASAL, HEART]
    np.testing.assert_array_equal(one.series_NTC[a][:, :, levels], other.series_NTC[b][:, :, levels])
    np.testing.assert_allclose(one.series_NTC[a], other.series_NTC[b], atol=1e-6)
    np.testing.assert_allclose(one.table_NF[a], other.table_NF[b], atol=1e-6)


def changed_after(rows: list[Row], minute: float, seed: int) -> list[Row]:
    """Rows after a minute are deleted, changed or kept, and others are added; rows up to it stay."""
    draws = np.random.default_rng(seed)
    out = [row for row in rows if row[2] <= minute]
    for patient, signal, at, value in rows:
        fate = draws.integers(0, 3)
        if at > minute and fate:
            out.append((patient, signal, at, value * 3 + 40 if fate == 1 else value))
    for patient in ("p1", "p2", "p3"):
        for signal in ("glucose", "energy_intake", *OPTIONAL_SIGNALS):
            added = minute + 1 / 60 + draws.uniform(0, 90, draws.integers(0, 4))
            out += [(patient, signal, float(m), float(draws.uniform(1, 300))) for m in added]
    return out


@given(records, st.floats(0.2, 0.95), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_whatever_happens_after_the_moment_of_prediction_changes_no_input(
    rows: list[Row], share: float, seed: int
) -> None:
    before = glucose_task().examples(site_of(rows))
    now_us = int(np.quantile(before.time_us_N.numpy(), share, method="lower"))
    minute = (now_us - START_US) / MINUTE_US
    whole_seconds = [(p, s, round(m * 60) / 60, v) for p, s, m, v in rows]
    after = glucose_task().examples(site_of(changed_after(whole_seconds, minute + 1e-9, seed)))
    shared = [m for m in by_moment(before) if m[1] <= now_us and m in by_moment(after)]
    assert shared
    assert_same_inputs(before, after, shared)


def test_carbohydrates_that_come_later_do_not_undo_the_energy_of_earlier_meals() -> None:
    rows: list[Row] = [("p", "glucose", 5.0 * n, 120.0 + n) for n in range(60)]
    rows.append(("p", "energy_intake", 100.0, 400.0))
    later = [*rows, ("p", "carbohydrates", 200.0, 60.0)]
    one, other = glucose_task().examples(site_of(rows)), glucose_task().examples(site_of(later))
    shared = [m for m in by_moment(one) if m[1] < START_US + 200 * MINUTE_US]
    assert_same_inputs(one, other, shared)
    at = by_moment(one)["p", START_US + 105 * MINUTE_US]
    assert one.series_NTC[at, :, CARBS].sum() == 50.0


@given(records)
@quick
def test_changing_what_came_changes_targets_alone(rows: list[Row]) -> None:
    examples = glucose_task().examples(site_of(rows))
    now_us = int(examples.time_us_N.median())
    minute = (now_us - START_US) / MINUTE_US
    moved = [(p, s, m, v + 7 * (s == "glucose" and m > minute + 0.01)) for p, s, m, v in rows]
    other = glucose_task().examples(site_of(moved))
    here = [m for m in by_moment(examples) if m[1] <= now_us]
    assert_same_inputs(examples, other, here)
    ahead = examples.time_us_N[:, None] + torch.tensor([15, 30, 45, 60]) * MINUTE_US - now_us
    sure = examples.observed_NH & (ahead > 150_000_000) & (examples.time_us_N <= now_us)[:, None]
    difference = other.target_NH - examples.target_NH
    np.testing.assert_allclose(difference[sure], 7.0, rtol=1e-4)
    np.testing.assert_array_equal(other.observed_NH, examples.observed_NH)


@given(records, st.sampled_from(["p1", "p2", "p3"]), st.integers(0, 10_000))
@quick
def test_nothing_of_one_patient_reaches_another(rows: list[Row], patient: str, seed: int) -> None:
    whole = glucose_task().examples(site_of(rows))
    alone = glucose_task().examples(site_of([row for row in rows if row[0] == patient]))
    mixed = glucose_task().examples(
        site_of([(p, s, m, v if p == patient else v * (2 + seed % 7)) for p, s, m, v in rows])
    )
    for other in (alone, mixed):
        mine = [m for m in by_moment(whole) if m[0] == patient]
        assert mine == [m for m in by_moment(other) if m[0] == patient]
        assert_same_inputs(whole, other, mine)
        rows_a = [by_moment(whole)[m] for m in mine]
        rows_b = [by_moment(other)[m] for m in mine]
        np.testing.assert_array_equal(whole.target_NH[rows_a], other.target_NH[rows_b])


@given(records)
@quick
def test_a_target_is_an_observed_value_within_two_and_a_half_minutes(rows: list[Row]) -> None:
    site = site_of(rows)
    examples = glucose_task().examples(site)
    for n in range(len(examples)):
        times, values = signal_of(site, examples.patients[examples.patient_N[n]], "glucose")
        for place, horizon_min in enumerate((15, 30, 45, 60)):
            due = int(examples.time_us_N[n]) + horizon_min * MINUTE_US
            near = [np.float32(v) for t, v in zip(times, values, strict=True) if abs(t - due) <= 150_000_000]
            assert bool(examples.observed_NH[n, place]) == bool(near)
            if near:
                assert examples.target_NH[n, place].item() in near


def test_a_dose_is_counted_once_wherever_it_falls() -> None:
    glucose: list[Row] = [("p", "glucose", 15.0 * n, 120.0) for n in range(16)]
    for minute in (119.99, 120.0, 121.0, 122.5, 125.0, 130.0, 134.99, 135.0):
        examples = glucose_task().examples(site_of([*glucose, ("p", "insulin_bolus", minute, 2.5)]))
        since_min = (examples.time_us_N.numpy() - START_US) / MINUTE_US - round(minute * 60) / 60
        total = examples.series_NTC[:, :, BOLUS].sum(1).numpy()
        inside = (since_min >= 0) & (since_min < 120)
        np.testing.assert_allclose(total, np.where(inside, 2.5, 0.0))
        columns = glucose_task().columns
        bins = [place for place, name in enumerate(columns) if name.startswith("bolus_")]
        np.testing.assert_allclose(examples.table_NF[:, bins].sum(1), total / 2.0)


def test_energy_counts_as_half_carbohydrates_only_for_patients_without_carbohydrates() -> None:
    rows: list[Row] = [(p, "glucose", 15.0 * n, 120.0) for n in range(16) for p in ("both", "energy")]
    rows += [("both", "carbohydrates", 60.0, 30.0), ("both", "energy_intake", 60.0, 800.0)]
    rows += [("energy", "energy_intake", 60.0, 800.0)]
    examples = glucose_task().examples(site_of(rows))
    found = examples.series_NTC[:, :, CARBS].sum(1)
    at = examples.time_us_N == START_US + 90 * MINUTE_US
    assert found[at].tolist() == [30.0, 100.0]


def test_values_are_joined_by_a_line_up_to_half_an_hour_and_carried_no_longer_than_that() -> None:
    rows: list[Row] = [
        ("p", "glucose", m, v) for m, v in ((0, 100), (30, 160), (61, 100), (76, 110), (91, 120))
    ]
    examples = glucose_task().examples(site_of(rows))
    at = examples.time_us_N.tolist().index(START_US + 76 * MINUTE_US)
    slots = 76 - 5 * np.arange(SLOTS - 1, -1, -1)
    value, known, age = (examples.series_NTC[at, :, c].numpy() for c in (GLUCOSE, MASK, AGE))
    by_slot = {
        int(m): (float(v), bool(k), float(a)) for m, v, k, a in zip(slots, value, known, age, strict=True)
    }
    assert by_slot[1] == pytest.approx((102.0, True, 1.0))
    assert by_slot[16] == pytest.approx((132.0, True, 16.0))
    assert by_slot[31] == pytest.approx((160.0, True, 1.0))
    assert by_slot[56] == pytest.approx((160.0, True, 26.0))
    assert by_slot[61] == pytest.approx((100.0, True, 0.0))
    assert by_slot[66] == pytest.approx((100 + 10 / 3, True, 5.0), rel=1e-5)
    assert by_slot[-4] == pytest.approx((0.0, False, CARRY_MIN))


def test_rows_within_one_millisecond_count_as_one_moment() -> None:
    site = site_of([("p", "glucose", 15.0 * n, 100.0 + n) for n in range(12)])
    frame = site.observations.copy()
    frame["time"] = frame["time"] + np.timedelta64(600, "us")
    frame.loc[len(frame)] = ["p", "glucose", frame["time"].iloc[8] + np.timedelta64(300, "us"), 99.0, "", ""]
    frame = frame.sort_values(["patient_id", "signal", "time"], ignore_index=True)
    examples = glucose_task().examples(Site(name="x", observations=frame, patients=site.patients))
    assert examples.series_NTC[:, -1, MASK].all()
    assert (examples.series_NTC[:, -1, AGE] == 0).all()


def test_a_site_without_glucose_has_no_windows() -> None:
    examples = glucose_task().examples(site_of([("p", "heart_rate", 5.0, 70.0)]))
    assert len(examples) == 0
    assert examples.table_NF.shape == (0, len(glucose_task().columns))
    assert examples.patients == ("p",)
