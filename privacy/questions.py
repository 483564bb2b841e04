"""Noisy counts of patients in public cells, and what may be made of them: the answers to questions.

Each patient lies in at most one cell, so adding or removing one patient changes one count by one: the L2
sensitivity is 1 however many cells there are, and noise of standard deviation sigma makes a histogram one
`GaussianRelease` with noise multiplier sigma, sampling rate 1 and one step. All else here works on the noisy
counts and on public edges alone (post-processing), so it costs nothing more.

Noise is continuous and the counts are rounded to whole patients afterwards. So no digit of the noise
leaves, and the attack on floating-point noise (privacy/noise.py) has nothing to read. A discrete Gaussian
(Canonne, Kamath, Steinke 2020, arXiv:2004.00010) would need no such argument, but its cost is not exactly
that of the Gaussian with which everything else in the ledger composes.

Suppression is no protection beside the noise: it keeps those counts from being told that say little and
that somebody might take for a handful of people.

Letters: P patients, C cells, S sites.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from privacy.accounting import GaussianRelease
from privacy.errors import PrivacyError
from privacy.noise import NoiseStream, add_noise

NOWHERE: Final = -1
"""The cell of a patient who counts in none."""
SUPPRESSED: Final = -1
"""In place of a count that is not told."""
MOST_COUNT: Final = 10**9
"""Greater noisy counts are clamped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """A number of patients over sites.

    Attributes:
        patients: sum of the counts that were told.
        standard_error: standard deviation of the noise and the rounding in it; 0 if nothing was told.
        told, suppressed: how many sites told a count, and how many kept theirs.
    """

    patients: int
    standard_error: float
    told: int
    suppressed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantile:
    """A quantile over sites.

    Attributes:
        level: in (0, 1).
        value: within the public edges.
        low, high: the values two standard errors of the noise below and above it.
    """

    level: float
    value: float
    low: float
    high: float


def release(noise_multiplier: float) -> GaussianRelease:
    """What an answer reveals of a patient, whatever was asked.

    Args:
        noise_multiplier: standard deviation of the noise in each count, in patients.
    """
    return GaussianRelease(noise_multiplier=noise_multiplier, sampling_rate=1.0, steps=1)


def count(cell_P: np.ndarray, cells: int) -> np.ndarray:
    """How many patients lie in each cell, int64 (C,); without noise, so it must not leave.

    Raises:
        PrivacyError: a patient lies in a cell that there is not.
    """
    inside_P = cell_P[cell_P != NOWHERE]
    if len(inside_P) and (inside_P.min() < 0 or inside_P.max() >= cells):
        raise PrivacyError(f"Expected cells from 0 to {cells - 1}, or {NOWHERE} for none.")
    return np.bincount(inside_P, minlength=cells).astype(np.int64)


def noisy(count_C: np.ndarray, noise_multiplier: float, stream: NoiseStream) -> np.ndarray:
    """The counts with Gaussian noise, as whole numbers within ±MOST_COUNT; int64 (C,), some below 0.

    Args:
        noise_multiplier: above 0.
        stream: of this question over these data, and of nothing else.
    """
    if not 0 < noise_multiplier < math.inf:
        raise PrivacyError(f"An answer needs noise above 0, not {noise_multiplier}.")
    sums = {"counts": torch.from_numpy(count_C.astype(np.float64))}
    noised_C = add_noise(sums, noise_multiplier, stream)["counts"].numpy()
    whole_C: np.ndarray = np.clip(np.rint(noised_C), -MOST_COUNT, MOST_COUNT).astype(np.int64)
    return whole_C


def suppress(noisy_C: np.ndarray, smallest: int) -> tuple[int, ...]:
    """The noisy counts; SUPPRESSED where one is below `smallest` (at least 1)."""
    return tuple(int(value) if value >= smallest else SUPPRESSED for value in noisy_C)


def gather(noisy_C: np.ndarray, smallest: int) -> tuple[int, ...]:
    """The noisy counts of ordered cells, gathered from the left into groups of at least `smallest`.

    A group's count stands at its last cell, SUPPRESSED at its others. What is left over at the right end
    belongs to the last group. All are SUPPRESSED if all cells together hold less than `smallest`.
    """
    told, held, last = [SUPPRESSED] * len(noisy_C), 0, -1
    for place, value in enumerate(noisy_C.tolist()):
        held += value
        if held >= smallest:
            told[place], held, last = held, 0, place
    if last >= 0:  # the rest, which may be below zero, moves the last group to the end
        rest, count_ = held, told[last]
        told[last] = SUPPRESSED
        told[-1] = max(smallest, count_ + rest)
    return tuple(told)


def total(counts: Sequence[int], noise_multiplier: float) -> Total:
    """One cell over the sites that answered.

    Args:
        counts: one of each site, SUPPRESSED where it kept it.
    """
    told = [value for value in counts if value != SUPPRESSED]
    return Total(
        patients=sum(told),
        standard_error=_error(noise_multiplier, len(told)),
        told=len(told),
        suppressed=len(counts) - len(told),
    )


def quantiles(
    counts: Mapping[str, Sequence[int]],
    edges: Sequence[float],
    levels: Sequence[float],
    noise_multiplier: float,
) -> tuple[Quantile, ...]:
    """Quantiles over sites, from what `gather` let them tell; none if no site told anything.

    Within a group patients count as spread evenly between its edges, so a value is no finer than the
    cells, nor than the groups of the sites that the patients are at.

    Args:
        counts: by site, one number per cell.
        edges: of the cells, ascending, one more than cells.
        levels: in (0, 1).
    """
    edge_E = np.asarray(edges, dtype=np.float64)
    below_SE = np.array([_below(told, edge_E) for told in counts.values() if any(n > 0 for n in told)])
    if not len(below_SE):
        return ()
    below_E = below_SE.sum(axis=0)
    everyone = float(below_E[-1])

    def value(rank: float) -> float:
        return _shown(float(np.interp(min(max(rank, 0.0), everyone), below_E, edge_E)))

    found = []
    for level in levels:
        rank = level * everyone
        place = min(int(np.searchsorted(below_E, rank)), len(edge_E) - 1)
        error = 2 * _error(noise_multiplier, len(below_SE) * max(1, place))
        found.append(
            Quantile(level=level, value=value(rank), low=value(rank - error), high=value(rank + error))
        )
    return tuple(found)


def _below(told: Sequence[int], edge_E: np.ndarray) -> np.ndarray:
    """How many patients of a site lie below each edge, evenly within groups; (E,)."""
    ends = [0] + [place + 1 for place, value in enumerate(told) if value != SUPPRESSED]
    sums = np.cumsum([0, *(value for value in told if value != SUPPRESSED)])
    below_E: np.ndarray = np.interp(edge_E, edge_E[ends], sums)
    return below_E


def _error(noise_multiplier: float, terms: int) -> float:
    """Standard deviation of a sum of noisy, rounded counts; rounding alone has a variance of 1/12."""
    return math.sqrt(terms * (noise_multiplier**2 + 1 / 12))


def _shown(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")
