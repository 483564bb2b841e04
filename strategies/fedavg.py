"""FedAvg: the global model moves by the weighted mean of the sites' updates.

McMahan et al. 2017 (arXiv:1602.05629), written with updates instead of models: the mean of the
sites' models is the old model plus the mean of their updates. Deviations: weights are those of the
plan (declared, rounded numbers of patients, or equal) and not numbers of samples from a round's
message; server_learning_rate scales the step (1 is FedAvg itself).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from strategies.rule import Applied, Arrays, moved, norm, weighted_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAvg:
    """Weighted mean of updates, times `server_learning_rate`. It has no state."""

    server_learning_rate: float = 1.0

    def init(self, model: Mapping[str, np.ndarray], trainable: Sequence[str]) -> Arrays:  # noqa: ARG002  protocol
        return {}

    def apply(
        self,
        state: Mapping[str, np.ndarray],  # noqa: ARG002  protocol; FedAvg remembers nothing
        model: Mapping[str, np.ndarray],
        updates: Sequence[Mapping[str, np.ndarray]],
        weights: Sequence[float],
    ) -> Applied:
        mean = weighted_mean(updates, weights)
        step = {name: self.server_learning_rate * array for name, array in mean.items()}
        return Applied({}, moved(model, step), {"step_norm": norm(step)})
