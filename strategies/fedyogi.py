"""FedYogi: FedAdam whose second moment moves by the size of the new square and not of its distance.

Reddi et al. 2021 (arXiv:2003.00295), Algorithm 2:
    m_t = beta1 m_{t-1} + (1 - beta1) Delta_t
    v_t = v_{t-1} - (1 - beta2) Delta_t^2 sign(v_{t-1} - Delta_t^2),   v_{-1} = tau^2
    x_{t+1} = x_t + eta m_t / (sqrt(v_t) + tau)
After a few great updates Adam's v comes down fast; Yogi's comes down by no more than the small squares
that follow, so steps stay cautious. Deviation: Delta_t is weighted as the plan says. How the equations
were checked stands in fedadam.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from strategies import adaptive
from strategies.rule import Applied, Arrays, weighted_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class FedYogi:
    """Yogi over mean updates; the state is both moments of each trainable array."""

    server_learning_rate: float = 0.1
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
            second=lambda before, square: before - (1.0 - self.beta2) * square * np.sign(before - square),
            rate=self.server_learning_rate,
            beta1=self.beta1,
            tau=self.tau,
        )
