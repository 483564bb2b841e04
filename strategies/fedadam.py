"""FedAdam: the mean update is a pseudo-gradient for Adam at the coordinator.

Reddi et al. 2021 (arXiv:2003.00295), Algorithm 2:
    m_t = beta1 m_{t-1} + (1 - beta1) Delta_t
    v_t = beta2 v_{t-1} + (1 - beta2) Delta_t^2,   v_{-1} = tau^2
    x_{t+1} = x_t + eta m_t / (sqrt(v_t) + tau)
The second moment is that of the mean update Delta_t itself, not of its running mean m_t. Unlike in
Kingma & Ba's Adam the moments are not corrected for their start at m = 0 and v = tau^2: the first steps
are short. Deviation: Delta_t is weighted as the plan says.

How it was checked: the paper's text could not be opened here. The equations are those that Flower 1.41
(`FedAdam`) and APPFL (`FedAdamServer`) state in code; Flower differs in two points, it starts v at 0
and corrects the moments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from strategies.rule import Applied, Arrays, moved, norm, weighted_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAdam:
    """Adam over mean updates; the state is both moments of each trainable array."""

    server_learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def init(self, model: Mapping[str, np.ndarray], trainable: Sequence[str]) -> Arrays:
        first = {f"m.{name}": np.zeros(model[name].shape) for name in trainable}
        second = {f"v.{name}": np.full(model[name].shape, self.tau**2) for name in trainable}
        return first | second

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
            m = self.beta1 * state[f"m.{name}"] + (1.0 - self.beta1) * delta
            v = self.beta2 * state[f"v.{name}"] + (1.0 - self.beta2) * np.square(delta)
            following[f"m.{name}"], following[f"v.{name}"] = m, v
            step[name] = self.server_learning_rate * m / (np.sqrt(v) + self.tau)
        return Applied(following, moved(model, step), {"step_norm": norm(step)})
