"""What releases cost: epsilon at a delta, always an upper bound.

What was released (`GaussianRelease`) stands apart from what it costs (the functions below). Each
release is a schedule of steps; a step samples patients independently with probability
`sampling_rate`, sums what is bounded by the clip norm per patient, and adds Gaussian noise of
`noise_multiplier` × clip norm. Neighbouring: one patient with all windows is added or removed; the
denominators are public and do not change with it.

- Without sampling (rate 1) a schedule is one Gaussian mechanism of sensitivity / noise
  mu = sqrt(steps) / noise_multiplier, exactly, also when schedules are chosen one after the other
  (Dong, Roth, Su 2022, "Gaussian differential privacy", corollary 3.3; Smith and Thakurta 2022,
  arXiv:2210.17520, for adaptive choice). Its delta is that of Balle and Wang 2018
  (arXiv:1805.06530, theorem 8) with sensitivity / sigma = mu:
      delta(epsilon) = Phi(mu/2 - epsilon/mu) - exp(epsilon) Phi(-mu/2 - epsilon/mu).
- With sampling: privacy-loss distributions of dp-accounting with pessimistic rounding.
- Several sampled schedules, where later ones may have been chosen knowing earlier results: Rényi
  accounting, which stays valid as a filter (Feldman and Zrnic 2021, arXiv:2008.11193).

Letters: q sampling rate, mu sensitivity over noise of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from dp_accounting import dp_event, privacy_accountant
from dp_accounting.pld import pld_privacy_accountant
from dp_accounting.rdp import rdp_privacy_accountant
from scipy.optimize import brentq
from scipy.special import log_ndtr

from privacy.errors import PrivacyError

ACCOUNTANT: Final = (
    "exact Gaussian (Balle and Wang 2018) without sampling; dp-accounting PLD, pessimistic, with it;"
    " RDP for several sampled plans"
)
NEIGHBOURING: Final = "add or remove one patient"
UNIT: Final = "patient"

LARGEST_SAMPLED_NOISE: Final = 1e5
"""With sampling, more noise than this is charged as this."""
_LEAST_RATE_PER_NOISE: Final = 1e-6
"""With sampling, a smaller rate over noise is charged as this."""
_LARGEST_MU: Final = 1e100
"""Beyond it epsilon, about mu² / 2, is no number any more."""
_RELATIVE_TOLERANCE: Final = 1e-4
"""`calibrate` returns at most this much more noise than needed (relative), never less."""
_LEAST_SAMPLED_NOISE: Final = 0.01
"""`calibrate` stops here with sampling: where steps × rate are below delta no noise would be needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianRelease:
    """One schedule of noisy clipped sums.

    Attributes:
        noise_multiplier: standard deviation of the noise over the clip norm, 0 or above.
        sampling_rate: probability that a patient takes part in a step (Poisson), in [0, 1].
        steps: number of noisy sums, rounds × local steps, 0 or above.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not (0 <= self.noise_multiplier < math.inf and 0 <= self.sampling_rate <= 1 and self.steps >= 0):
            raise PrivacyError(
                "A release needs a finite noise_multiplier of 0 or above, a sampling_rate in [0, 1] and steps"
                f" of 0 or above, not {self.noise_multiplier}, {self.sampling_rate}, {self.steps}."
            )

    @property
    def is_free(self) -> bool:
        """Whether nothing that depends on a patient is released."""
        return self.steps == 0 or self.sampling_rate == 0


def epsilon(releases: Iterable[GaussianRelease], delta: float) -> float:
    """Epsilon of all releases together, an upper bound, for schedules fixed beforehand.

    Args:
        releases: what is released; infinite if one of them carries no noise.
        delta: in (0, 1).
    """
    return _epsilon(_merged(releases), _checked(delta))


def lifetime_epsilon(releases: Iterable[GaussianRelease], delta: float) -> float:
    """`epsilon` where later releases may have been chosen in the light of earlier ones; not below it."""
    merged = _merged(releases)
    if len(merged) <= 1 or all(release.sampling_rate == 1 for release in merged):
        return epsilon(merged, delta)
    return epsilon_rdp(merged, delta)


def calibrate(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The least noise multiplier (to a relative 1e-4, rounded up) whose schedule costs at most `epsilon`.

    Args:
        epsilon: above 0. delta: in (0, 1). sampling_rate: in (0, 1]. steps: at least 1.
    """
    if not (epsilon > 0 and steps >= 1 and 0 < sampling_rate <= 1):
        raise PrivacyError(
            "Calibration needs epsilon above 0, a sampling_rate in (0, 1] and at least 1 step, not"
            f" {epsilon}, {sampling_rate}, {steps}."
        )
    return _calibrate(float(epsilon), _checked(delta), float(sampling_rate), int(steps))


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Delta at `epsilon` of a Gaussian mechanism whose sensitivity over noise is `mu` (above 0)."""
    first = float(log_ndtr(mu / 2 - epsilon / mu))
    second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return max(0.0, math.exp(first) * -math.expm1(min(0.0, second - first)))


def epsilon_gaussian(releases: Iterable[GaussianRelease], delta: float) -> float:
    """Epsilon of releases without sampling, exact (rounded up in the last digits)."""
    paid = [release for release in releases if not release.is_free]
    if any(release.sampling_rate != 1 for release in paid):
        raise PrivacyError("The closed form holds for sampling_rate 1 only.")
    if any(release.noise_multiplier == 0 for release in paid):
        return math.inf
    steps = ((release.steps / release.noise_multiplier) / release.noise_multiplier for release in paid)
    mu = math.sqrt(sum(steps))
    if mu > _LARGEST_MU:
        return math.inf
    return _gaussian_epsilon(mu, _checked(delta)) if mu > 0 else 0.0


def epsilon_pld(releases: Iterable[GaussianRelease], delta: float) -> float:
    """Epsilon by composing privacy-loss distributions, rounded so that it is an upper bound."""
    rough = epsilon_rdp(releases := tuple(releases), delta)
    if rough in (0.0, math.inf):
        return rough
    # A grid in proportion to the answer bounds memory; every grid gives an upper bound.
    interval = max(1e-4, 1e-5 * rough)
    accountant = pld_privacy_accountant.PLDAccountant(_ADD_OR_REMOVE, value_discretization_interval=interval)
    return min(rough, _spent(accountant, releases, delta))


def epsilon_rdp(releases: Iterable[GaussianRelease], delta: float) -> float:
    """Epsilon by Rényi divergences: looser, fast, and valid for schedules chosen as one goes."""
    paid = [release for release in releases if not release.is_free]
    if any(release.noise_multiplier == 0 for release in paid):
        return math.inf
    if not paid:
        return 0.0
    accountant = rdp_privacy_accountant.RdpAccountant(_ORDERS, neighboring_relation=_ADD_OR_REMOVE)
    return _spent(accountant, paid, delta)


# Whole orders only: the series of the fractional ones often does not converge and is then left out.
_ORDERS: Final = [*range(2, 65), *(2**power for power in range(7, 12))]
_ADD_OR_REMOVE: Final = privacy_accountant.NeighboringRelation.ADD_OR_REMOVE_ONE


def _spent(
    accountant: privacy_accountant.PrivacyAccountant, releases: Iterable[GaussianRelease], delta: float
) -> float:
    """What an accountant says of releases; infinite where its numbers overflow."""
    delta = _checked(delta)
    try:
        for release in releases:
            if not release.is_free:
                accountant.compose(_event(release), release.steps)
        return float(accountant.get_epsilon(delta))
    except (OverflowError, ZeroDivisionError):
        return math.inf


def _event(release: GaussianRelease) -> dp_event.DpEvent:
    """The release, or one that costs a little more where the library's series lose all their digits.

    With much noise and few patients a step the divergences come out as zero or below, and the library
    then says epsilon 0. Less noise and more patients cost more, so what is said is an upper bound.
    """
    if release.sampling_rate == 1:
        return dp_event.GaussianDpEvent(release.noise_multiplier)
    noise = min(release.noise_multiplier, LARGEST_SAMPLED_NOISE)
    rate = max(release.sampling_rate, _LEAST_RATE_PER_NOISE * noise)
    return dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))


def _merged(releases: Iterable[GaussianRelease]) -> tuple[GaussianRelease, ...]:
    """The same releases, steps of equal noise and sampling together, in a fixed order, free ones left out."""
    steps: dict[tuple[float, float], int] = {}
    for release in releases:
        if not release.is_free:
            key = (release.noise_multiplier, release.sampling_rate)
            steps[key] = steps.get(key, 0) + release.steps
    return tuple(
        GaussianRelease(noise_multiplier=noise, sampling_rate=rate, steps=steps[noise, rate])
        for noise, rate in sorted(steps)
    )


@lru_cache(maxsize=1024)
def _epsilon(merged: tuple[GaussianRelease, ...], delta: float) -> float:
    if all(release.sampling_rate == 1 for release in merged):
        return epsilon_gaussian(merged, delta)
    return epsilon_pld(merged, delta)


@lru_cache(maxsize=1024)
def _gaussian_epsilon(mu: float, delta: float) -> float:
    """The least epsilon with gaussian_delta at most `delta`, by bisection from above."""
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(high, mu) > delta:
        low, high = high, 2 * high
    while high - low > 1e-12 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(middle, mu) > delta else (low, middle)
    return high * (1 + 1e-12)


@lru_cache(maxsize=256)
def _calibrate(target: float, delta: float, sampling_rate: float, steps: int) -> float:
    def cost(noise_multiplier: float) -> float:
        return epsilon(
            [GaussianRelease(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=steps)],
            delta,
        )

    noise = _gaussian_noise(target, delta, steps)
    if sampling_rate < 1:
        noise = _root(lambda trial: math.log(max(cost(trial), 1e-300) / target), noise)
    return _rounded_up(noise, cost, target)


def _gaussian_noise(target: float, delta: float, steps: int) -> float:
    """Noise multiplier of a schedule without sampling, by bisection over mu."""
    low, high = 0.0, 1.0
    while gaussian_delta(target, high) <= delta:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(target, middle) <= delta else (low, middle)
    return math.sqrt(steps) / low


def _root(excess: Callable[[float], float], guess: float) -> float:
    """About where `excess`, which falls with the noise, is zero; few evaluations, for each is slow."""
    low = high = guess
    while excess(high) > 0:
        if high > LARGEST_SAMPLED_NOISE:
            raise PrivacyError(
                "No noise that can be accounted for keeps so many sampled steps below this epsilon: raise"
                " privacy.epsilon, take fewer steps, or set privacy.sampling_rate=1."
            )
        high *= 2
    while low == high or excess(low) <= 0:
        low /= 2
        if low < _LEAST_SAMPLED_NOISE:
            return _LEAST_SAMPLED_NOISE
    root = brentq(lambda x: excess(math.exp(x)), math.log(low), math.log(high), xtol=_RELATIVE_TOLERANCE / 4)
    return math.exp(root)


def _rounded_up(noise: float, cost: Callable[[float], float], target: float) -> float:
    """`noise` to six significant digits, upwards, so that plans carry short numbers; checked last of all."""
    while True:
        unit = 10.0 ** (math.floor(math.log10(noise)) - 5)
        candidate = float(f"{math.ceil(noise / unit) * unit:.6g}")
        if cost(candidate) <= target:
            return candidate
        noise = candidate * (1 + _RELATIVE_TOLERANCE / 4)


def _checked(delta: float) -> float:
    if not 0 < delta < 1:
        raise PrivacyError(f"delta must lie between 0 and 1, not {delta}; see privacy.delta.")
    return float(delta)
