"""Draws of virtual people, their therapy, their sensors, and life without a look ahead."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from twin.errors import DataError
from twin.physiology.cohort import Group, simulate, stream
from twin.physiology.equilibrium import equilibrium
from twin.physiology.habits import PER_DAY, Profile, Schedule, draw_schedule
from twin.physiology.hovorka import Subjects
from twin.physiology.life import Choices, live
from twin.physiology.parameters import HEALTHY, PREDIABETES, TYPE_1, TYPE_2, Spread, draw_subjects
from twin.physiology.sensor import G5, G6, NAVIGATOR, Sensor, SensorError, draw_error, draw_gaps, draw_noise
from twin.physiology.therapy import titrate


@pytest.mark.parametrize("kind", [TYPE_1, TYPE_2, PREDIABETES, HEALTHY])
def test_people_lie_within_their_published_spread(kind: dict[str, Spread]) -> None:
    subjects = draw_subjects(kind, 300, np.random.default_rng(1))
    for name, spread in kind.items():
        values = getattr(subjects, name)
        if spread.kind == "uniform":
            low, high = spread.centre, spread.spread
        elif spread.kind == "log":
            low, high = (spread.centre * np.exp(s * 1.5 * spread.spread) for s in (-1, 1))
        else:
            low, high = (spread.centre + s * 1.5 * spread.spread for s in (-1, 1))
        assert values.min() >= max(low, spread.low) - 1e-12, name
        assert values.max() <= max(high, spread.low) + 1e-12, name
    assert equilibrium(subjects).exists_P.all()


def test_basal_insulin_of_type_1_lies_in_the_published_range() -> None:
    subjects = draw_subjects(TYPE_1, 300, np.random.default_rng(2))
    u_kg_day = equilibrium(subjects).supply_P * 1440.0 / 1000.0
    assert u_kg_day.min() >= 0.15
    assert u_kg_day.max() <= 0.63
    assert 0.25 < u_kg_day.mean() < 0.45


def test_people_without_diabetes_need_less_insulin_and_secrete_it() -> None:
    rng = np.random.default_rng(3)
    healthy, type_2 = draw_subjects(HEALTHY, 100, rng), draw_subjects(TYPE_2, 100, rng)
    assert np.all(healthy.secretion_basal > 0.0)
    low, high = (np.median(equilibrium(s).insulin_mu_l_P) for s in (healthy, type_2))
    assert low < high


def test_a_table_that_nobody_can_live_by_is_refused() -> None:
    impossible = {**TYPE_1, "egp0": Spread(kind="uniform", centre=1e-4, spread=1e-4, source="none")}
    with pytest.raises(DataError, match="plausible"):
        draw_subjects(impossible, 2, np.random.default_rng(0))


def test_the_titrated_ratio_covers_the_test_meal() -> None:
    from twin.physiology.therapy import AFTER_MEAL_MIN, LADDER_G_PER_U, TEST_MEAL_G, _outcome

    subjects = draw_subjects(TYPE_1, 60, np.random.default_rng(4))
    therapy = titrate(subjects)
    rise = _outcome(subjects, TEST_MEAL_G, (TEST_MEAL_G / therapy.ratio_g_u)[None, :], AFTER_MEAL_MIN)[0]
    inside = (therapy.ratio_g_u > LADDER_G_PER_U[0] + 0.01) & (therapy.ratio_g_u < LADDER_G_PER_U[-1] - 0.01)
    assert inside.mean() > 0.8
    assert np.abs(rise[inside]).max() < 15.0
    assert np.all(therapy.correction_mg_dl_u > 0.0)


@pytest.mark.parametrize("sensor", [G6, G5])
def test_noise_has_the_variance_of_its_autoregression(sensor: Sensor) -> None:
    expected = 0.0
    for part in sensor.noise:
        first, second = part.coefficients
        expected += (1 - second) * part.variance / ((1 + second) * ((1 - second) ** 2 - first**2))
    noise = draw_noise(sensor, (3000, 60), np.random.default_rng(5))
    assert noise.var() == pytest.approx(expected, rel=0.05)


def test_noise_between_quarter_hours_is_interpolated() -> None:
    noise = draw_noise(NAVIGATOR, (300, 4), np.random.default_rng(6))
    np.testing.assert_allclose(
        noise[1:298:3], (2 * noise[0:297:3] + noise[3:300:3]) / 3, rtol=1e-9, atol=1e-9
    )


def test_gaps_take_the_expected_share_of_time() -> None:
    per_day, mean_min = 2.0, 60.0
    gaps = draw_gaps((288 * 60, 40), per_day, mean_min, np.random.default_rng(7))
    # Losses begin as a Poisson stream; time is free of them with probability exp(-rate x mean length).
    slots = per_day / 288.0 / (1.0 - np.exp(-1.0 / (mean_min / 5.0)))
    assert gaps.mean() == pytest.approx(1.0 - np.exp(-slots), rel=0.08)


def test_a_sensor_is_silent_while_it_warms_up() -> None:
    error = draw_error(G6, (PER_DAY * 30, 20), 1.0, 0.0, 60.0, np.random.default_rng(8))
    assert error.missing_TP.mean() == pytest.approx(2.0 / 240.0, rel=0.2)


def lives_of(schedule: Schedule, subjects: Subjects) -> dict[str, np.ndarray]:
    count = len(subjects)
    shape = schedule.eaten_g_TP.shape
    error = SensorError(
        gain_TP=np.ones(shape), offset_TP=np.zeros(shape), missing_TP=np.zeros(shape, dtype=bool)
    )
    choices = Choices(
        treated_P=np.ones(count, dtype=bool),
        target_P=np.full(count, 110.0),
        correct_above_P=np.full(count, 180.0),
        correct_chance_P=np.full(count, 0.2),
        rescue_below_P=np.full(count, 70.0),
        bolus_step_P=np.full(count, 0.1),
    )
    record = live(subjects, schedule, error, choices)
    return {f.name: getattr(record, f.name) for f in fields(record)}


def test_nothing_that_comes_later_changes_what_was_recorded_before() -> None:
    rng = np.random.default_rng(9)
    subjects = draw_subjects(TYPE_1, 5, rng)
    schedule = draw_schedule(Profile(), titrate(subjects), 2, rng)
    cut = PER_DAY + 100
    eaten = schedule.eaten_g_TP.copy()
    eaten[cut:] = 0.0
    eaten[cut + 3] = 90.0
    counted = schedule.counted_g_TP.copy()
    counted[cut:] = 0.0
    whole = lives_of(schedule, subjects)
    other = lives_of(replace(schedule, eaten_g_TP=eaten, counted_g_TP=counted), subjects)
    for name, values in whole.items():
        np.testing.assert_array_equal(values[:cut], other[name][:cut])
    assert not np.array_equal(whole["plasma_TP"][cut:], other["plasma_TP"][cut:])


def test_insulin_is_dosed_in_steps_and_only_by_those_who_are_treated() -> None:
    group = Group(diabetes="type 1", profile=Profile(bolus_step_u=0.5), sensor=G6, signals=("glucose",))
    other = replace(group, diabetes="none")
    seeds = np.random.SeedSequence(1).spawn(2)
    treated, untreated = simulate([(group, 4, seeds[0]), (other, 4, seeds[1])], 2)
    doses = treated.record.bolus_u_TP[treated.record.bolus_u_TP > 0.0]
    assert len(doses) > 10
    np.testing.assert_allclose(doses / 0.5, np.round(doses / 0.5))
    assert untreated.record.bolus_u_TP.sum() == 0.0


def test_a_group_lives_alike_whoever_lives_beside_it() -> None:
    group = Group(diabetes="type 1", profile=Profile(), sensor=G6, signals=("glucose",))
    seeds = np.random.SeedSequence(3).spawn(2)
    (alone,) = simulate([(group, 3, seeds[1])], 2)
    _, beside = simulate([(group, 5, seeds[0]), (group, 3, seeds[1])], 2)
    np.testing.assert_array_equal(alone.record.sensor_TP, beside.record.sensor_TP)


def test_streams_of_different_purpose_differ_and_leave_their_seed_alone() -> None:
    seed = np.random.SeedSequence(5)
    first, second, again = (stream(seed, name).random(4) for name in ("people", "habits", "people"))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, again)
    assert seed.n_children_spawned == 0
