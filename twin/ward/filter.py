"""The best estimate of a signal and how sure it is, after each reading: a Kalman filter in closed form.

A signal is a level that moves at a rate, plus a walk of its own. The rate is an Ornstein-Uhlenbeck
process (Uhlenbeck and Ornstein 1930): it is forgotten with a time constant, so that a rise is carried on
for minutes and not for hours. Steps are exact for any distance between readings; two short ones are one
long one. All patients are one batch.

A reading that lies more than `GATE` standard deviations from what was expected counts for less, as if its
noise were as many times wider (an M-estimator in the manner of Huber 1964): one spike moves an estimate
little, and a level that stays where it jumped to is believed after some readings.

Letters: N filters, any number and any signals; 2 is level, rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GATE = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dynamics:
    """How a signal moves and how well it is measured; floats, or arrays over N filters.

    Attributes:
        noise: standard deviation of a reading about the level, unit of the signal.
        walk: of the level's own walk after one minute, unit / sqrt(min).
        rate: of the rate of change, unit / min; 0 is a plain random walk.
        memory_min: time constant of the rate, minutes.
    """

    noise: np.ndarray
    walk: np.ndarray
    rate: np.ndarray
    memory_min: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Beliefs:
    """What is believed of N signals.

    Attributes:
        level_N, rate_N: the estimates; rate in unit / min.
        level_var_N, cross_N, rate_var_N: their covariance.
    """

    level_N: np.ndarray
    rate_N: np.ndarray
    level_var_N: np.ndarray
    cross_N: np.ndarray
    rate_var_N: np.ndarray


def begin(value_N: np.ndarray, dynamics: Dynamics) -> Beliefs:
    """What the first reading says: its value, its noise, and nothing of the rate but how large one is."""
    zero = np.zeros(len(value_N))
    return Beliefs(
        level_N=value_N.astype(np.float64),
        rate_N=zero,
        level_var_N=zero + np.square(dynamics.noise),
        cross_N=zero,
        rate_var_N=zero + np.square(dynamics.rate),
    )


def ahead(beliefs: Beliefs, dynamics: Dynamics, minutes_N: np.ndarray) -> Beliefs:
    """The same some minutes later (not negative), if nothing is read in between."""
    kept = np.exp(-minutes_N / dynamics.memory_min)
    reach = dynamics.memory_min * (1.0 - kept)
    rate_var, memory = np.square(dynamics.rate), dynamics.memory_min
    # The integral of an Ornstein-Uhlenbeck process, e.g. Gillespie 1996, Phys Rev E 54:2084, eq. 2.11.
    grown = np.maximum(rate_var * memory * (2.0 * minutes_N - 3.0 * memory + memory * kept * (4.0 - kept)), 0)
    return Beliefs(
        level_N=beliefs.level_N + reach * beliefs.rate_N,
        rate_N=kept * beliefs.rate_N,
        level_var_N=beliefs.level_var_N
        + 2.0 * reach * beliefs.cross_N
        + np.square(reach) * beliefs.rate_var_N
        + grown
        + np.square(dynamics.walk) * minutes_N,
        cross_N=kept * (beliefs.cross_N + reach * beliefs.rate_var_N) + rate_var * np.square(reach) / memory,
        rate_var_N=np.square(kept) * beliefs.rate_var_N + rate_var * (1.0 - np.square(kept)),
    )


def seen(
    beliefs: Beliefs, dynamics: Dynamics, value_N: np.ndarray, gate: float = GATE
) -> tuple[Beliefs, np.ndarray]:
    """(the beliefs after a reading, how many standard deviations it lay from what was expected).

    Args:
        gate: beyond so many standard deviations a reading counts for less; infinity is the plain filter.
    """
    off_N = value_N - beliefs.level_N
    spread_N = beliefs.level_var_N + np.square(dynamics.noise)
    surprise_N = off_N / np.sqrt(spread_N)
    # A wider noise such that the reading lies at the gate, as the innovation's whole spread grows.
    spread_N = spread_N * np.maximum(np.square(surprise_N / gate), 1.0)
    gain_N, rate_gain_N = beliefs.level_var_N / spread_N, beliefs.cross_N / spread_N
    after = Beliefs(
        level_N=beliefs.level_N + gain_N * off_N,
        rate_N=beliefs.rate_N + rate_gain_N * off_N,
        level_var_N=beliefs.level_var_N * (1.0 - gain_N),
        cross_N=beliefs.cross_N * (1.0 - gain_N),
        rate_var_N=beliefs.rate_var_N - rate_gain_N * beliefs.cross_N,
    )
    return after, surprise_N
