"""FedAdagrad: every number moves by less, the more it has moved already.

Reddi et al. 2021 (arXiv:2003.00295), Algorithm 2:
    m_t = beta1 m_{t-1} + (1 - beta1) Delta_t
    v_t = v_{t-1} + Delta_t^2,   v_{-1} = tau^2
    x_{t+1} = x_t + eta m_t / (sqrt(v_t) + tau)
The option sets beta1 to 0, which is Adagrad as it is known; v never shrinks, so steps fall like
1/sqrt(t) by themselves. Deviation: Delta_t is weighted as the plan says. How the equations were
checked stands in fedadam.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from strategies import adaptive
from strategies.rule import Applied, Arrays, weighted_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAdagrad:
    """Adagrad over mean updates; the state is both moments of each trainable array."""

    server_learning_rate: float = 0.1
    beta1: float = 0.0
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
            second=lambda before, square: before + square,
            rate=self.server_learning_rate,
            beta1=self.beta1,
            tau=self.tau,
        )
