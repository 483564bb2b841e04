"""The filter is Gaussian conditioning, step for step, whatever the distances between readings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from twin.ward.filter import Beliefs, Dynamics, ahead, begin, seen

quick = settings(max_examples=40, deadline=None)


def dynamics(noise: float = 1.5, walk: float = 0.4, rate: float = 0.8, memory_min: float = 20.0) -> Dynamics:
    return Dynamics(
        noise=np.array([noise]),
        walk=np.array([walk]),
        rate=np.array([rate]),
        memory_min=np.array([memory_min]),
    )


def level_covariance(d: Dynamics, s: float, t: float) -> float:
    """Covariance of what the level has gained by s and by t, by numerical integration of the process.

    The rate is stationary with covariance rate² exp(-|u - v| / memory); the walk adds walk² min(s, t).
    """
    rate, memory, walk = float(d.rate[0]), float(d.memory_min[0]), float(d.walk[0])

    def inner(u: float) -> float:
        # The integral over v from 0 to t of exp(-|u - v| / memory).
        if u <= t:
            return memory * (2.0 - np.exp(-u / memory) - np.exp(-(t - u) / memory))
        return memory * (np.exp(-(u - t) / memory) - np.exp(-u / memory))

    gained = quad(inner, 0.0, s, points=[min(s, t)] if s > t else None, limit=200)[0] if s > 0 else 0.0
    return rate**2 * float(gained) + walk**2 * min(s, t)


def conditioned(d: Dynamics, times: np.ndarray, values: np.ndarray, at: float) -> tuple[float, float]:
    """Mean and variance of the level at a time given all readings, as one dense Gaussian.

    The level's start has a flat prior: the first reading alone says where it is.
    """
    moments = np.append(times, at)
    cov = np.array([[level_covariance(d, s, t) for t in moments] for s in moments])
    noise = float(d.noise[0]) ** 2
    design = np.ones((len(times), 1))
    kernel = cov[:-1, :-1] + noise * np.eye(len(times))
    cross = cov[-1, :-1]
    weight = np.linalg.solve(kernel, np.column_stack([values, design[:, 0], cross]))
    start = (design[:, 0] @ weight[:, 0]) / (design[:, 0] @ weight[:, 1])
    mean = start + cross @ np.linalg.solve(kernel, values - start)
    lack = 1.0 - cross @ weight[:, 1]
    var = cov[-1, -1] - cross @ weight[:, 2] + lack**2 / (design[:, 0] @ weight[:, 1])
    return float(mean), float(var)


@pytest.mark.parametrize("rate", [0.8, 0.0])
def test_estimates_are_those_of_conditioning_one_dense_gaussian(rate: float) -> None:
    d = dynamics(rate=rate)
    times = np.array([0.0, 5.0, 9.0, 10.0, 40.0, 41.5])
    values = np.array([100.0, 104.0, 109.0, 103.0, 120.0, 118.0])
    beliefs = begin(values[:1], d)
    for index in range(1, len(times)):
        beliefs = ahead(beliefs, d, times[index : index + 1] - times[index - 1])
        beliefs, _ = seen(beliefs, d, values[index : index + 1], gate=np.inf)
    later = ahead(beliefs, d, np.array([12.0]))
    for found, at in ((beliefs, 41.5), (later, 53.5)):
        mean, var = conditioned(d, times, values, at)
        assert found.level_N[0] == pytest.approx(mean, abs=1e-6)
        assert found.level_var_N[0] == pytest.approx(var, rel=1e-6)


@given(st.floats(0.01, 300), st.floats(0.01, 300), st.floats(-3, 3))
@quick
def test_two_short_steps_are_one_long_step(first: float, second: float, rate: float) -> None:
    d = dynamics()
    start = Beliefs(
        level_N=np.array([100.0]),
        rate_N=np.array([rate]),
        level_var_N=np.array([2.0]),
        cross_N=np.array([0.3]),
        rate_var_N=np.array([0.5]),
    )
    twice = ahead(ahead(start, d, np.array([first])), d, np.array([second]))
    once = ahead(start, d, np.array([first + second]))
    for name in Beliefs.__slots__:
        np.testing.assert_allclose(getattr(twice, name), getattr(once, name), rtol=1e-9, atol=1e-9)


@given(st.floats(1, 1000))
@quick
def test_the_farther_a_spike_lies_the_less_it_moves_an_estimate_per_unit(size: float) -> None:
    d = dynamics()
    start = ahead(begin(np.array([100.0]), d), d, np.array([5.0]))
    near, surprise = seen(start, d, np.array([100.0 + size]))
    far, _ = seen(start, d, np.array([100.0 + 2 * size]))
    move, double = near.level_N[0] - 100.0, far.level_N[0] - 100.0
    assert move > 0
    assert double <= 2 * move * (1 + 1e-12)
    if surprise[0] > 4:
        assert double < move  # beyond the gate a spike counts for less the farther it lies
    assert near.level_var_N[0] <= start.level_var_N[0]
