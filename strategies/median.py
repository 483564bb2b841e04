"""Coordinate-wise median: no minority of sites moves a number beyond what honest sites sent.

Yin et al. 2018 (arXiv:1803.01498), Algorithm 1, option I, over updates instead of gradients:
    x_{t+1}[k] = x_t[k] + eta median_i Delta_i[k]
With an even number of sites it is the mean of the two in the middle. Every site has one voice: weights
of the plan count for nothing, since a weight is a claim that nobody can check.

Privacy: each site has clipped and noised its update before it leaves, so the median is made of releases
and costs nothing. It gains nothing either: the noise of a median of many normal numbers has pi/2 times
the variance of their mean's, and sites with few patients, whose noise is greatest, have a full voice.
Sensitivity: a coordinator that would add noise itself, trusted with bare updates, must not take this
rule for a mean; one site can move a median by as much as the gap between its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from strategies.columns import reduced
from strategies.rule import Applied, Arrays, moved, norm


@dataclass(frozen=True, slots=True, kw_only=True)
class Median:
    """The median of updates, number by number, times `server_learning_rate`. It has no state."""

    server_learning_rate: float = 1.0

    def init(self, model: Mapping[str, np.ndarray], trainable: Sequence[str]) -> Arrays:  # noqa: ARG002  protocol
        return {}

    def apply(
        self,
        state: Mapping[str, np.ndarray],  # noqa: ARG002  protocol; it remembers nothing
        model: Mapping[str, np.ndarray],
        updates: Sequence[Mapping[str, np.ndarray]],
        weights: Sequence[float],
    ) -> Applied:
        middle = reduced(updates, weights, lambda values_SB: np.median(values_SB, axis=0))
        step = {name: self.server_learning_rate * array for name, array in middle.items()}
        return Applied({}, moved(model, step), {"step_norm": norm(step)})
