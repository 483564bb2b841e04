"""FedProx: FedAvg at the coordinator, and a pull towards the global model in every local step.

Li et al. 2020 (arXiv:1812.06127), Algorithm 2: a site minimises its loss plus
mu/2 * |w - w_global|^2. The pull is made of the global model and the site's own noisy parameters
alone, so it costs no privacy.
"""

from __future__ import annotations

from torch import Tensor

from strategies.fedavg import FedAvg


class FedProx(FedAvg):
    """The coordinator's half, which is FedAvg's."""

    __slots__ = ()


def proximal_gradient(parameter: Tensor, start: Tensor, proximal_mu: float) -> Tensor:
    """The gradient of mu/2 * |w - w_global|^2 by w, in the shape of both tensors."""
    return proximal_mu * (parameter - start)
