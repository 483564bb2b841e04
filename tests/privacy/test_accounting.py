"""Accounting: one contract for every accountant, the closed form, and figures known from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import mpmath  # type: ignore[import-untyped]  # it ships no types
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import (
    GaussianRelease,
    calibrate,
    epsilon,
    epsilon_gaussian,
    epsilon_pld,
    epsilon_rdp,
    gaussian_delta,
    lifetime_epsilon,
)
from privacy.errors import PrivacyError

DELTA = 1e-4
Accountant = Callable[[Iterable[GaussianRelease], float], float]


def release(noise: float = 2.0, rate: float = 1.0, steps: int = 10) -> GaussianRelease:
    return GaussianRelease(noise_multiplier=noise, sampling_rate=rate, steps=steps)


def exact_delta(eps: float, mu: float) -> float:
    """Balle and Wang 2018, theorem 8, in 60 digits."""
    with mpmath.workdps(60):
        first = mpmath.ncdf(mpmath.mpf(mu) / 2 - mpmath.mpf(eps) / mu)
        second = mpmath.exp(eps) * mpmath.ncdf(-mpmath.mpf(mu) / 2 - mpmath.mpf(eps) / mu)
        return float(first - second)


@pytest.mark.parametrize(
    "accountant", [epsilon_gaussian, epsilon_pld, epsilon_rdp, epsilon, lifetime_epsilon]
)
class TestEveryAccountant:
    """What any accountant must hold, on schedules without sampling, where the truth is known."""

    def test_it_is_an_upper_bound_of_the_truth_and_not_a_loose_one(self, accountant: Accountant) -> None:
        for noise, steps, delta in ((0.7, 1, 1e-5), (2.4287, 20, 1e-4), (30.0, 200, 1e-6)):
            bound = accountant([release(noise, 1.0, steps)], delta)
            mu = math.sqrt(steps) / noise
            assert exact_delta(bound, mu) <= delta
            assert exact_delta(bound / 1.2, mu) > delta

    def test_nothing_released_costs_nothing(self, accountant: Accountant) -> None:
        assert accountant([], DELTA) == 0.0
        assert accountant([release(steps=0), release(noise=0.0, rate=0.0)], DELTA) == 0.0

    def test_no_noise_costs_without_bound(self, accountant: Accountant) -> None:
        assert accountant([release(), release(noise=0.0, steps=1)], DELTA) == math.inf

    def test_steps_in_one_or_in_many_schedules_and_in_any_order_cost_the_same(
        self, accountant: Accountant
    ) -> None:
        parts = [release(steps=3), release(3.0), release(steps=7)]
        whole = accountant([release(steps=10), release(3.0)], DELTA)
        assert accountant(parts, DELTA) == pytest.approx(whole, rel=1e-6)
        assert accountant(parts[::-1], DELTA) == pytest.approx(whole, rel=1e-6)

    def test_more_steps_less_noise_or_smaller_delta_never_cost_less(self, accountant: Accountant) -> None:
        base = accountant([release()], DELTA)
        assert accountant([release(steps=11)], DELTA) > base
        assert accountant([release(noise=1.9)], DELTA) > base
        assert accountant([release()], DELTA / 10) > base

    def test_a_delta_outside_zero_and_one_is_refused(self, accountant: Accountant) -> None:
        for delta in (0.0, 1.0, -1.0, math.nan):
            with pytest.raises(PrivacyError, match="delta"):
                accountant([release()], delta)


@pytest.mark.parametrize("accountant", [epsilon_pld, epsilon_rdp, epsilon])
class TestEveryAccountantOfSampledSchedules:
    """Poisson sampling of patients."""

    def test_sampling_lowers_the_cost_and_more_of_it_lowers_it_less(self, accountant: Accountant) -> None:
        costs = [accountant([release(rate=rate)], DELTA) for rate in (0.01, 0.1, 0.5, 1.0)]
        assert costs == sorted(costs)
        assert costs[0] < 0.2 * costs[-1]

    def test_one_step_costs_at_least_what_its_closed_form_says(self, accountant: Accountant) -> None:
        # Removing a patient from a sampled Gaussian of one step: delta = q delta_Gauss(eps'), with
        # exp(eps') = 1 + (exp(eps) - 1) / q; the greater of both directions for these values.
        rate, noise = 0.2, 1.0
        bound = accountant([release(noise, rate, 1)], 1e-3)
        inner = math.log1p(math.expm1(bound) / rate)
        assert rate * exact_delta(inner, 1 / noise) <= 1e-3 * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.0, 60.0), st.floats(0.01, 12.0))
def test_the_closed_form_keeps_its_digits(eps: float, mu: float) -> None:
    assert gaussian_delta(eps, mu) == pytest.approx(exact_delta(eps, mu), rel=1e-8, abs=1e-300)


def test_pld_agrees_with_the_closed_form() -> None:
    for noise, steps in ((1.0, 1), (2.4287, 20), (14.0, 20)):
        exact = epsilon_gaussian([release(noise, 1.0, steps)], DELTA)
        assert epsilon_pld([release(noise, 1.0, steps)], DELTA) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize(("target", "plans", "published"), [(8.0, 2, 12.5), (8.0, 12, 44.0), (2.0, 12, 8.9)])
def test_plans_add_up_as_measured_elsewhere(target: float, plans: int, published: float) -> None:
    # The published figures are upper bounds too, some from a looser accountant.
    noise = calibrate(target, DELTA, 1.0, 30)
    total = epsilon([release(noise, 1.0, 30)] * plans, DELTA)
    assert 0.97 * published < total <= published + 0.05


@pytest.mark.parametrize(
    ("target", "rate", "steps"),
    [(8.0, 1.0, 20), (2.0, 1.0, 600), (0.05, 1.0, 1), (300.0, 1.0, 5), (8.0, 0.5, 20), (1.0, 0.02, 200)],
)
def test_calibration_meets_its_target_closely_and_never_passes_it(
    target: float, rate: float, steps: int
) -> None:
    noise = calibrate(target, DELTA, rate, steps)
    assert epsilon([release(noise, rate, steps)], DELTA) <= target
    assert epsilon([release(noise * 0.999, rate, steps)], DELTA) > target
    assert noise == float(f"{noise:.6g}")


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-12, 0.09), st.integers(1, 10_000))
def test_calibration_without_sampling_never_passes_any_target(
    target: float, delta: float, steps: int
) -> None:
    noise = calibrate(target, delta, 1.0, steps)
    assert exact_delta(target, math.sqrt(steps) / noise) <= delta * (1 + 1e-9)


def test_a_tiny_delta_share_of_sampled_patients_needs_hardly_any_noise() -> None:
    assert calibrate(1.0, 1e-2, 1e-4, 10) == 0.01


def tens(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers of every size from one power of ten to another."""
    return st.floats(low, high).map(lambda power: 10.0**power)


@given(tens(-2, 6), tens(-6, 0), tens(0, 6).map(int), tens(-12, -1), tens(0, 6).map(int))
@settings(max_examples=60, deadline=None)
def test_whatever_a_plan_may_name_has_a_cost_that_is_a_number_and_no_less_than_that_of_one_step(
    noise: float, rate: float, steps: int, delta: float, others: int
) -> None:
    schedule = GaussianRelease(noise_multiplier=noise, sampling_rate=rate, steps=steps)
    other = GaussianRelease(noise_multiplier=2 * noise, sampling_rate=1.0, steps=others)
    cost = epsilon([schedule], delta)
    assert cost >= 0.0  # which no NaN is
    assert lifetime_epsilon([schedule, other], delta) >= 0.0
    # One sampled step, for the removal of a patient, exactly: delta(eps) is rate times the Gaussian's
    # delta at log(1 + (e^eps - 1) / rate) (Balle, Barthe, Gaboardi 2018, theorem 8).
    if cost < 600:
        inner = math.log1p(math.expm1(cost) / rate)
        assert rate * gaussian_delta(inner, 1 / noise) <= delta * (1 + 1e-6)


def test_noise_beyond_all_reason_costs_no_error() -> None:
    for noise in (5e-324, 1e-200, 1e-3, 1e200):
        for rate in (1e-6, 0.5, 1.0):
            release = GaussianRelease(noise_multiplier=noise, sampling_rate=rate, steps=1_000_000)
            other = GaussianRelease(noise_multiplier=1.0, sampling_rate=0.5, steps=1)
            for cost in (epsilon([release], 1e-4), lifetime_epsilon([release, other], 1e-4)):
                assert cost == math.inf if noise < 1e-100 else cost >= 0.0


def test_an_epsilon_that_no_countable_noise_reaches_is_refused() -> None:
    with pytest.raises(PrivacyError, match="sampling_rate=1"):
        calibrate(1e-3, 1e-12, 0.5, 100_000)


def test_a_lifetime_costs_no_less_than_a_schedule_fixed_beforehand() -> None:
    mixed = [release(2.0, 0.3, 10), release(2.0, 1.0, 5)]
    assert lifetime_epsilon(mixed, DELTA) > epsilon(mixed, DELTA)
    assert lifetime_epsilon(mixed[:1], DELTA) == epsilon(mixed[:1], DELTA)
    assert lifetime_epsilon(mixed[1:], DELTA) == epsilon(mixed[1:], DELTA)


@pytest.mark.parametrize(
    ("noise", "rate", "steps"),
    [(-1.0, 1.0, 1), (math.nan, 1.0, 1), (math.inf, 1.0, 1), (1.0, 1.1, 1), (1.0, 1.0, -1)],
)
def test_a_release_that_makes_no_sense_is_refused(noise: float, rate: float, steps: int) -> None:
    with pytest.raises(PrivacyError, match="noise_multiplier"):
        release(noise, rate, steps)


@pytest.mark.parametrize(
    ("target", "rate", "steps"), [(0.0, 1.0, 1), (1.0, 0.0, 1), (1.0, 1.5, 1), (1.0, 1.0, 0)]
)
def test_calibration_of_nonsense_is_refused(target: float, rate: float, steps: int) -> None:
    with pytest.raises(PrivacyError, match="Calibration"):
        calibrate(target, DELTA, rate, steps)
