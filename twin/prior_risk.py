"""The public start of a rare yes-or-no forecast: from virtual people who become short of oxygen.

Logistic regression on virtual people gives the first weights. Their Fisher information, the curvature
of the loss there, gives whitening and scale: where one window in a hundred is positive, the curvature is
a hundredth of that of a coin, and steps that are set for curvature one would stand still.

Letters: N windows, F columns, D features of the last layer.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from twin.models.network import Network
from twin.physiology.oxygen import virtual_respiratory_site
from twin.tasks.hypoxemia import HypoxemiaTask
from twin.tasks.protocol import Examples, merge

PEOPLE = 600
_SPAN = 48.0
# Added to the eigenvalues of the weighted covariance, as for glucose; and to the curvature of the fit, for
# virtual people behave too regularly to be believed to the last digit.
RIDGE = 0.3
_FIT_RIDGE = 0.02
_NEWTON_STEPS = 50


def public_risks(task: HypoxemiaTask) -> Examples:
    """Windows of virtual people, half of them observed once in a horizon, half five times."""
    generator = np.random.default_rng(19790301)
    horizon = float(task.horizon_min)
    sites = [
        virtual_respiratory_site(
            generator,
            people=PEOPLE,
            moments=round(_SPAN * often),
            step_min=horizon / often,
            horizon_min=horizon,
        )
        for often in (1, 5)
    ]
    return merge([task.examples(site) for site in sites])


def fit_risk(network: Network, examples: Examples) -> None:
    """Whitening, scale and first weights of a network.

    What hidden layers add starts at nothing. Trained on virtual people it would learn how regular they
    are: tried, it ranked real patients worse than the linear part alone.
    """
    table_NF = examples.table_NF.double()
    label_N = examples.target_NH[:, 0].double()
    weights_F = _logistic(table_NF, label_N)
    chance_N = torch.sigmoid(table_NF @ weights_F)
    centre_F, whitening_FF, curvature = _fisher(table_NF, chance_N * (1.0 - chance_N))
    # In the table's coordinates x weights = centred x inverse(whitening) weights + a constant.
    white_F = torch.linalg.solve(whitening_FF, weights_F)
    white_F[-1] += centre_F @ weights_F
    columns = len(weights_F)
    with torch.no_grad():
        network.centre_F.copy_(centre_F)
        network.whitening_FF.copy_(whitening_FF)
        network.basis_OQ.fill_(curvature**-0.5)
        network.head.weight.zero_()
        network.head.weight[0, :columns] = (white_F * curvature**0.5).float()


def _logistic(table_NF: Tensor, label_N: Tensor) -> Tensor:
    """Weights of ridge logistic regression; the last column, one, is not held back."""
    penalty_F = torch.full((table_NF.shape[1],), _FIT_RIDGE, dtype=table_NF.dtype)
    penalty_F[-1] = 0.0
    weights_F = torch.zeros_like(penalty_F)
    weights_F[-1] = torch.logit(label_N.mean().clamp(1e-4, 1.0 - 1e-4))
    for _ in range(_NEWTON_STEPS):
        chance_N = torch.sigmoid(table_NF @ weights_F)
        slope_F = table_NF.T @ (chance_N - label_N) / len(label_N) + penalty_F * weights_F
        weighted_NF = table_NF * (chance_N * (1.0 - chance_N))[:, None]
        curve_FF = table_NF.T @ weighted_NF / len(label_N) + torch.diag(penalty_F + 1e-9)
        step_F = torch.linalg.solve(curve_FF, slope_F)
        weights_F = weights_F - step_F / max(1.0, float(step_F.abs().max()))
        if float(step_F.abs().max()) < 1e-8:
            break
    return weights_F


def _fisher(table_NF: Tensor, weight_N: Tensor) -> tuple[Tensor, Tensor, float]:
    """Centre, symmetric whitening of the covariance in which windows count by `weight`, mean weight.

    The last column, one, is left alone; what no virtual person has keeps the task's own scale.
    """
    total = weight_N.sum()
    centre_F = (table_NF * weight_N[:, None]).sum(0) / total
    spread = table_NF[:, :-1] - centre_F[:-1]
    covariance = (spread * weight_N[:, None]).T @ spread / total
    idle = spread.square().mean(0) < 1e-9
    covariance[idle, idle] = 1.0
    centre_F[:-1][idle] = 0.0
    centre_F[-1] = 0.0
    values, vectors = torch.linalg.eigh(covariance)
    whitening_FF = torch.eye(len(centre_F), dtype=table_NF.dtype)
    whitening_FF[:-1, :-1] = vectors @ torch.diag((values + RIDGE).rsqrt()) @ vectors.T
    return centre_F, whitening_FF, float(weight_N.mean())
