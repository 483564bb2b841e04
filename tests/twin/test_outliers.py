"""Verdicts on values: what is marked, and what must not be."""

from __future__ import annotations

import numpy as np
import pytest

from twin.drift import Clocks, offset_between
from twin.outliers import MARKS, Streams, judge

MINUTE = 60_000_000


def _marks(values: np.ndarray, step_min: float = 5, signal: str = "glucose") -> list[str]:
    count = len(values)
    rows = Streams(
        stream_N=np.zeros(count, dtype=np.int64),
        signal_N=np.zeros(count, dtype=np.int64),
        time_us_N=(np.arange(count) * step_min * MINUTE).astype(np.int64),
        value_N=np.asarray(values, dtype=np.float64),
        since_us_N=np.full(count, np.iinfo(np.int64).max),
        mark_N=np.zeros(count, dtype=np.int8),
    )
    return [MARKS[number] for number in judge(rows, [signal]).mark_N]


def _day(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.round(130 + 40 * np.sin(np.arange(288) / 30) + rng.normal(0, 1.5, 288))


def test_a_clean_day_is_marked_nowhere() -> None:
    for seed in range(20):
        assert set(_marks(_day(seed))) == {""}


def test_one_value_off_is_a_spike_and_its_neighbours_are_not() -> None:
    values = _day()
    values[100] += 60
    assert [i for i, mark in enumerate(_marks(values)) if mark] == [100]


def test_a_real_low_that_falls_and_recovers_within_an_hour_stays() -> None:
    values = _day()
    values[60:72] -= np.round(125 * np.sin(np.arange(12) * np.pi / 12))
    assert values.min() < 54
    assert set(_marks(values)) == {""}


def test_a_block_that_leaves_and_comes_back_in_one_step_is_a_jump() -> None:
    values = _day()
    values[100:112] += 90
    assert [i for i, mark in enumerate(_marks(values)) if mark == "jump"] == list(range(100, 112))


def test_a_leap_is_suspect_until_it_has_stayed() -> None:
    values = np.append(_day()[:100], [250.0])
    assert _marks(values)[-1] == "jump"
    stayed = np.append(values, [252.0, 251.0, 249.0])
    assert set(_marks(stayed)) == {""}


@pytest.mark.parametrize("following", [40.0, 130.0, 400.0])
def test_a_verdict_does_not_hang_on_another_patients_stream_behind_it(following: float) -> None:
    leap, other = np.append(_day()[:100], [250.0]), np.full(30, following)
    values = np.concatenate([leap, other])
    rows = Streams(
        stream_N=np.repeat([0, 1], [len(leap), len(other)]),
        signal_N=np.zeros(len(values), dtype=np.int64),
        time_us_N=np.concatenate([np.arange(len(leap)), np.arange(len(other))]) * 5 * MINUTE,
        value_N=values,
        since_us_N=np.full(len(values), np.iinfo(np.int64).max),
        mark_N=np.zeros(len(values), dtype=np.int8),
    )
    together = [MARKS[number] for number in judge(rows, ["glucose"]).mark_N]
    assert together == _marks(leap) + _marks(other)
    assert _marks(leap)[-1] == "jump"


def test_a_stuck_sensor_is_marked_from_its_first_repeated_value_on() -> None:
    values = _day()
    values[100:160] = values[100]
    marks = _marks(values)
    assert set(marks[105:155]) == {"flatline"}
    assert set(marks[:99]) == {""} and set(marks[161:]) == {""}


@pytest.mark.parametrize("clipped", [40.0, 400.0])
def test_a_patient_who_is_very_low_or_high_for_hours_is_not_a_stuck_sensor(clipped: float) -> None:
    values = _day()
    values[100:160] = clipped
    assert "flatline" not in _marks(values)


def test_a_block_in_another_unit_is_marked_to_its_end() -> None:
    values = _day()
    values[100:200] /= 18.016
    marks = _marks(values)
    assert set(marks[100:200]) == {"unit"}
    assert "unit" not in marks[:100] + marks[200:]


def test_an_athletes_low_heart_rate_and_a_signal_without_dynamics_are_left_alone() -> None:
    rng = np.random.default_rng(1)
    assert set(_marks(np.round(38 + rng.normal(0, 2, 300)), signal="heart_rate")) == {""}
    assert set(_marks(rng.normal(0, 100, 300), signal="steps")) == {""}


def test_a_delivery_that_was_held_up_is_no_clock_that_is_off() -> None:
    clocks = Clocks()
    for minute in range(0, 60, 5):
        assert clocks.hear("d", np.array([minute * MINUTE]), minute * MINUTE + 1000) == (0, False)
    held_up = np.arange(60, 180, 5) * MINUTE
    assert clocks.hear("d", held_up, 176 * MINUTE) == (0, False)


def test_a_clock_that_was_set_back_is_put_right_after_three_arrivals() -> None:
    clocks = Clocks()
    for minute in range(0, 60, 5):
        clocks.hear("d", np.array([minute * MINUTE]), minute * MINUTE)
    moves = [clocks.hear("d", np.array([(m - 60) * MINUTE]), m * MINUTE)[0] for m in range(60, 90, 5)]
    assert moves == [0, 0, *[60 * MINUTE] * 4]


@pytest.mark.parametrize("ahead", [-40, 0, 25])
def test_the_offset_between_two_devices_is_found(ahead: int) -> None:
    rng = np.random.default_rng(3)
    truth = 70 + np.cumsum(rng.normal(0, 1, 600))
    time = np.arange(600) * MINUTE
    device = time[::2] + ahead * MINUTE
    found = offset_between(time, truth, device, truth[::2] + rng.normal(0, 0.5, 300), most_min=60)
    assert found.ahead_min == ahead
    assert found.likeness > 0.8
