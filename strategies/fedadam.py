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

from strategies import adaptive
from strategies.rule import Applied, Arrays, weighted_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAdam:
    """Adam over mean updates; the state is both moments of each trainable array."""

    server_learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def init(self, model: Mapping[str, np.ndarray], trainable: Sequence[str]) -> Arrays:
        return adaptive.start(model, trainable, self.tau)

    def apply(
        self,
        state: Mapping[str, np.ndarray],
        model: Mapping[str, np.ndarray],
        updates: Sequence[Mapping[str, np.ndarray]],
        weights: Sequence[float],
    ) -> Applied:
        return adaptive.apply(
            state,
            model,
            weighted_mean(updates, weights),
            second=lambda before, square: self.beta2 * before + (1.0 - self.beta2) * square,
            rate=self.server_learning_rate,
            beta1=self.beta1,
            tau=self.tau,
        )
