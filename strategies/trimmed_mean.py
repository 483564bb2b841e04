"""Coordinate-wise trimmed mean: the mean of each number without its greatest and its least.

Yin et al. 2018 (arXiv:1803.01498), Algorithm 1, option II, over updates instead of gradients: of the S
values of a coordinate the floor(beta S) greatest and as many least are left out, beta in [0, 1/2), and
    x_{t+1}[k] = x_t[k] + eta mean of the rest.
It withstands fewer than beta S sites that send anything; beta is `strategy.trim`. With beta = 0 it is
FedAvg with equal weights. Every site has one voice: weights of the plan count for nothing.

Privacy: made of noised releases, so it costs nothing. Leaving out the extremes leaves out noise as well
as lies: of normal numbers a quarter trimmed on each side has 1.19 times the variance of the mean's.
Sensitivity: for a coordinator that would add the noise itself the bound is that of a mean over
S - 2 floor(beta S) sites and not over S. Here sites add the noise, and it does not enter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from strategies.columns import reduced
from strategies.rule import Applied, Arrays, moved, norm


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimmedMean:
    """The trimmed mean of updates, number by number, times `server_learning_rate`. It has no state."""

    server_learning_rate: float = 1.0
    trim: float = 0.25

    def init(self, model: Mapping[str, np.ndarray], trainable: Sequence[str]) -> Arrays:  # noqa: ARG002  protocol
        return {}

    def apply(
        self,
        state: Mapping[str, np.ndarray],  # noqa: ARG002  protocol; it remembers nothing
        model: Mapping[str, np.ndarray],
        updates: Sequence[Mapping[str, np.ndarray]],
        weights: Sequence[float],
    ) -> Applied:
        out = math.floor(self.trim * len(updates) + 1e-9)  # 0.3 times 10 is 3

        def inner(values_SB: np.ndarray) -> np.ndarray:
            mean: np.ndarray = np.sort(values_SB, axis=0)[out : len(values_SB) - out].mean(axis=0)
            return mean

        step = {
            name: self.server_learning_rate * array
            for name, array in reduced(updates, weights, inner).items()
        }
        return Applied({}, moved(model, step), {"step_norm": norm(step), "left_out": 2.0 * out})
