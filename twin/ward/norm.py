"""What is usual for a patient: centre and spread of a signal by time of day, from the patient's own days.

A value says something of a patient against that patient's norm: a pulse of 42 is an athlete's rest. The
centre and the spread are running means in which a value counts by the time that it stands for, and at most
as `_CLIP` spreads: one bad hour moves a norm little (Huber 1964; the mean of absolute deviations times
1.2533 is the standard deviation of a normal distribution). The day has four blocks of six hours, by UTC:
a hospital lies in one zone, in which each block is the same part of every day but for daylight saving.
A week is remembered.

Letters: N patients and signals, B blocks of the day.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLOCKS = 4
_HOUR_US = 3_600_000_000
_MEMORY_H = 7 * 24 / BLOCKS
_CLIP = 2.5
_SPREAD_OF_DEVIATION = 1.2533
# The public spread counts for so many hours of a patient's own.
_PRIOR_H = 2.0
# Below so many hours in a block of the day, the norm is that of all blocks.
_ENOUGH_H = 6.0
# One value stands for at most so long, also where the next one comes later.
_LONGEST_H = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Norms:
    """Centre, spread and hours behind them, each NB."""

    centre: np.ndarray
    spread: np.ndarray
    hours: np.ndarray


def block_of(time_us_N: np.ndarray) -> np.ndarray:
    """The block of the day, 0 … 3."""
    return (time_us_N // (24 // BLOCKS * _HOUR_US)) % BLOCKS


def learn(norms: Norms, block_N: np.ndarray, value_N: np.ndarray, hours_N: np.ndarray) -> Norms:
    """The norms after a value that stands for some hours, in the block of its time.

    A patient's first value of all is where every centre starts; `spread` must be there from the start.
    """
    hours_N = np.clip(hours_N, 1e-4, _LONGEST_H)
    each = np.arange(len(value_N))
    centre, spread, hours = norms.centre.copy(), norms.spread.copy(), norms.hours.copy()
    centre[hours.sum(1) == 0] = value_N[hours.sum(1) == 0, None]
    known_N = hours[each, block_N]
    mid_N, wide_N = centre[each, block_N], spread[each, block_N]
    fresh_N = known_N == 0
    total_N = np.minimum(known_N + hours_N, _MEMORY_H)
    off_N = np.where(fresh_N, 0.0, np.clip(value_N - mid_N, -_CLIP * wide_N, _CLIP * wide_N))
    mid_N = np.where(fresh_N, value_N, mid_N + off_N * hours_N / total_N)
    deviation_N = _SPREAD_OF_DEVIATION * np.abs(off_N)
    wide_N = wide_N + (deviation_N - wide_N) * np.where(fresh_N, 0.0, hours_N / (total_N + _PRIOR_H))
    centre[each, block_N], spread[each, block_N], hours[each, block_N] = mid_N, wide_N, total_N
    return Norms(centre=centre, spread=spread, hours=hours)


def usual(norms: Norms, block_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(centre, spread, hours behind the norm of all blocks), each N, for a block of the day."""
    each = np.arange(len(block_N))
    hours_N = norms.hours.sum(1)
    share_NB = norms.hours / np.maximum(hours_N, 1e-9)[:, None]
    all_N = (share_NB * norms.centre).sum(1)
    away_NB = np.square(norms.spread) + np.square(norms.centre - all_N[:, None])
    wide_N = np.sqrt((share_NB * away_NB).sum(1))
    own_N = norms.hours[each, block_N] >= _ENOUGH_H
    return (
        np.where(own_N, norms.centre[each, block_N], all_N),
        np.where(own_N, norms.spread[each, block_N], wide_N),
        hours_N,
    )
