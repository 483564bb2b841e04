"""Bands of forecasts that hold what they promise, for each patient: adaptive conformal prediction.

A forecast comes with a spread below and above its path. What is learnt is the factor of each spread beyond
which the wanted share of outcomes lies, in the manner of Gibbs and Candès 2021 (arXiv:2106.00170): after each
outcome the factor grows a step if the outcome lay beyond it and shrinks a fraction of a step if not, such
that in the long run the share beyond is the wanted one, whatever the patient does. Deviations: the logarithm
of the quantile itself is tracked and not its level, as Angelopoulos, Candès and Tibshirani 2023
(arXiv:2307.16895) do; the step is long at first and shortens (Angelopoulos, Barber and Bates 2024,
proceedings v235), down to a floor, so that a patient who changes is followed. Below and above are apart.
The long-run promise is of the share over a patient's time, not of each moment.

Letters: P patients' rows, H horizons, N outcomes, L levels of coverage; 2 is below, above.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

LEVELS: Final = (0.8, 0.9)
_FIRST_STEP, _LEAST_STEP = 0.3, 0.06
# Ratio of the 95 % to the 90 % quantile of a normal distribution: where the wider band starts.
_START = (0.0, math.log(1.645 / 1.2816))
_WIDEST = math.log(50.0)


class Bands:
    """Factors of each patient's spreads.

    Args:
        horizons: H.
    """

    def __init__(self, horizons: int) -> None:
        self.log_factor = np.zeros((0, 2, horizons, len(LEVELS)))
        self.count = np.zeros((0, horizons), np.int64)
        self._beyond_L = np.array([(1.0 - level) / 2.0 for level in LEVELS])

    def reserve(self, rows: int) -> None:
        """Makes room for so many patients."""
        more = rows - len(self.count)
        if more > 0:
            blank = np.zeros((more, *self.log_factor.shape[1:])) + np.array(_START)
            self.log_factor = np.concatenate([self.log_factor, blank])
            self.count = np.concatenate([self.count, np.zeros((more, self.count.shape[1]), np.int64)])

    def clear(self, row: int) -> None:
        """Forgets a patient."""
        self.log_factor[row] = np.array(_START)
        self.count[row] = 0

    def factors(self, row_N: np.ndarray) -> np.ndarray:
        """By how much the spreads are wider, N × 2 × H × L; a wider level is never the narrower band."""
        return np.asarray(np.exp(np.maximum.accumulate(self.log_factor[row_N], axis=-1)))

    def learn(self, row_N: np.ndarray, horizon: int, ratio_N: np.ndarray, given_N2L: np.ndarray) -> None:
        """Takes one outcome of some patients, at most one of each.

        Args:
            ratio_N: how far the outcome lay above the path, in the model's own spread of that side: negative
                below.
            given_N2L: the factors that the forecast was given when it was made. An hour later they are
                others, and only what was promised can be kept or broken.
        """
        count_N = self.count[row_N, horizon]
        step_N = np.maximum(_FIRST_STEP / np.sqrt(1.0 + count_N), _LEAST_STEP)
        for side, distance_N in enumerate((-ratio_N, ratio_N)):
            log_NL = self.log_factor[row_N, side, horizon]
            beyond_NL = distance_N[:, None] > given_N2L[:, side]
            moved_NL = log_NL + step_N[:, None] * (beyond_NL - self._beyond_L)
            self.log_factor[row_N, side, horizon] = np.clip(moved_NL, -_WIDEST, _WIDEST)
        self.count[row_N, horizon] = count_N + 1
