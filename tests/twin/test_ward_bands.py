"""Bands hold what they promise: in the long run for any sequence, and closely for outcomes that are alike."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from twin.ward.bands import LEVELS, Bands


def covered(bands: Bands, ratio_TP: np.ndarray) -> np.ndarray:
    """The share of each patient's outcomes within each band, as it stood before them, P × L."""
    rows = np.arange(ratio_TP.shape[1])
    bands.reserve(len(rows))
    inside = np.zeros((len(rows), len(LEVELS)))
    for ratio_P in ratio_TP:
        factor_P2L = bands.factors(rows)[:, :, 0]
        inside += (ratio_P[:, None] <= factor_P2L[:, 1]) & (-ratio_P[:, None] <= factor_P2L[:, 0])
        bands.learn(rows, 0, ratio_P, factor_P2L)
    return inside / len(ratio_TP)


def test_exchangeable_outcomes_are_covered_as_promised_however_wrong_the_model_s_spread() -> None:
    draws = np.random.default_rng(3)
    scale_P = np.array([0.3, 1.0, 4.0])
    shares = covered(Bands(1), draws.standard_t(3, (4000, 3)) * scale_P + 0.5 * scale_P)
    np.testing.assert_allclose(shares, np.broadcast_to(LEVELS, (3, 2)), atol=0.015)


@given(st.integers(0, 10_000), st.floats(0.5, 3.0))
@settings(max_examples=10, deadline=None)
def test_a_patient_who_changes_is_followed(seed: int, size: float) -> None:
    draws = np.random.default_rng(seed)
    bands = Bands(1)
    covered(bands, draws.normal(0, 1, (800, 1)))
    shares = covered(bands, draws.normal(size, 2.0, (1500, 1)))
    np.testing.assert_allclose(shares[0], LEVELS, atol=0.035)


def test_outcomes_that_come_late_are_held_against_the_band_that_was_given() -> None:
    """In spells that last longer than an outcome takes, the band of now says nothing of the one then."""
    draws = np.random.default_rng(5)
    delay, steps = 12, 12_000
    spell = np.repeat(draws.normal(0, 1.5, steps // 20), 20)
    bands, given, inside = Bands(1), [], np.zeros(len(LEVELS))
    bands.reserve(1)
    for turn in range(steps):
        given.append(bands.factors(np.array([0]))[:, :, 0])
        ratio = spell[turn]
        inside += (ratio <= given[turn][0, 1]) & (-ratio <= given[turn][0, 0])
        if turn >= delay:
            bands.learn(np.array([0]), 0, spell[turn - delay : turn - delay + 1], given[turn - delay])
    np.testing.assert_allclose(inside / steps, LEVELS, atol=0.01)


def test_patients_and_horizons_do_not_teach_each_other() -> None:
    bands = Bands(2)
    bands.reserve(2)
    before = bands.factors(np.array([0, 1])).copy()
    for _ in range(20):
        bands.learn(np.array([1]), 1, np.array([9.0]), bands.factors(np.array([1]))[:, :, 1])
    after = bands.factors(np.array([0, 1]))
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1, :, 0], before[1, :, 0])
    assert (after[1, 1, 1] > before[1, 1, 1]).all()
    bands.clear(1)
    np.testing.assert_array_equal(bands.factors(np.array([1])), before[1:])
