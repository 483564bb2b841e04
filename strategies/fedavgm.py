"""FedAvgM: FedAvg with momentum at the coordinator.

Hsu, Qi & Brown 2019 (arXiv:1909.06335), section 4.3:
    v_t = beta v_{t-1} + Delta_t
    x_{t+1} = x_t + eta v_t,   v_0 = 0
Delta_t is the mean update, so the signs are those of a step and not of a gradient. A direction that
lasts is amplified up to 1/(1 - beta) times: eta is set smaller than FedAvg's by about that factor.
beta is `strategy.beta1`. Deviations: Delta_t is weighted as the plan says; eta, which is 1 in the paper,
is `strategy.server_learning_rate`. The paper's text could not be opened here; the equations are those
that other projects state in code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from strategies.rule import Applied, Arrays, moved, norm, weighted_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAvgM:
    """Momentum over mean updates; the state is the velocity of each trainable array."""

    server_learning_rate: float = 0.1
    beta1: float = 0.9

    def init(self, model: Mapping[str, np.ndarray], trainable: Sequence[str]) -> Arrays:
        return {f"v.{name}": np.zeros(model[name].shape) for name in trainable}

    def apply(
        self,
        state: Mapping[str, np.ndarray],
        model: Mapping[str, np.ndarray],
        updates: Sequence[Mapping[str, np.ndarray]],
        weights: Sequence[float],
    ) -> Applied:
        following: Arrays = {}
        step: Arrays = {}
        for name, delta in weighted_mean(updates, weights).items():
            following[f"v.{name}"] = self.beta1 * state[f"v.{name}"] + delta
            step[name] = self.server_learning_rate * following[f"v.{name}"]
        return Applied(following, moved(model, step), {"step_norm": norm(step)})
