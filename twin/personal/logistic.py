"""From the global model to a site's for a yes-or-no task: logistic regression with a prior at it.

The last layer moves to the posterior mode under N(global, 1/precision), by Newton's method; the
precision is the one with which patients that the fit has not seen are best forecast. All groups of
left-out patients are solved at once.

Letters: N windows, G groups, D features of the last layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from twin.models.network import Network
from twin.tasks.protocol import Examples

PRECISIONS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, float("inf"))
_GROUPS = 10
_NEWTON_STEPS = 30
# Newton's step is halved as often as helps: alone it overshoots where the global model is very sure.
_STEP_SIZES = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteClassifier:
    """The global model as one site has adapted it.

    Attributes:
        shift_D: added to the last layer.
        precision: of the prior at the global model.
    """

    shift_D: Tensor
    precision: float

    def outputs(self, network: Network, examples: Examples) -> Tensor:
        """Log odds of the site's model, N × 1."""
        features_ND, logit_N = _view(network, examples)
        return (logit_N + features_ND @ self.shift_D)[:, None]


def adapt_site_classifier(network: Network, examples: Examples) -> SiteClassifier:
    """The site's model, from the patients that may train; unmoved with fewer than four of them."""
    features_ND, logit_N = _view(network, examples)
    label_N = examples.target_NH[:, 0].double()
    if len(examples) < 4:
        return SiteClassifier(shift_D=features_ND.new_zeros(features_ND.shape[1]), precision=float("inf"))
    group_N = torch.arange(len(examples)) % min(_GROUPS, len(examples))
    keep_GN = (group_N[None, :] != torch.arange(int(group_N.max()) + 1)[:, None]).double()
    losses = []
    for precision in PRECISIONS:
        shift_GD = _fit(features_ND, logit_N, label_N, keep_GN, precision)
        unseen_N = logit_N + (features_ND * shift_GD[group_N]).sum(1)
        losses.append(float(functional.binary_cross_entropy_with_logits(unseen_N, label_N)))
    precision = PRECISIONS[min(range(len(losses)), key=losses.__getitem__)]
    everyone = keep_GN.new_ones(1, len(examples))
    return SiteClassifier(
        shift_D=_fit(features_ND, logit_N, label_N, everyone, precision)[0], precision=precision
    )


def _view(network: Network, examples: Examples) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        features_ND = network.features(examples)
        return features_ND.double(), network.expand(network.head(features_ND))[:, 0].double()


def _fit(features_ND: Tensor, logit_N: Tensor, label_N: Tensor, keep_GN: Tensor, precision: float) -> Tensor:
    """Posterior modes of the shift for each weighting of the windows, G × D."""
    shift_GD = features_ND.new_zeros(len(keep_GN), features_ND.shape[1])
    if precision == float("inf"):
        return shift_GD
    eye = torch.eye(features_ND.shape[1], dtype=features_ND.dtype)
    for _ in range(_NEWTON_STEPS):
        chance_GN = torch.sigmoid(logit_N + shift_GD @ features_ND.T)
        slope_GD = (keep_GN * (chance_GN - label_N)) @ features_ND + precision * shift_GD
        weight_GN = keep_GN * chance_GN * (1 - chance_GN)
        curve_GDD = torch.einsum("gn,nd,ne->gde", weight_GN, features_ND, features_ND) + precision * eye
        step_GD = torch.linalg.solve(curve_GDD, slope_GD.unsqueeze(-1)).squeeze(-1)
        tried = [shift_GD - size * step_GD for size in _STEP_SIZES]
        loss_SG = torch.stack([_loss(features_ND, logit_N, label_N, keep_GN, precision, t) for t in tried])
        size_G = loss_SG.new_tensor(_STEP_SIZES)[loss_SG.argmin(0)]
        shift_GD = shift_GD - size_G[:, None] * step_GD
        if float((size_G[:, None] * step_GD).abs().max()) < 1e-9:
            break
    return shift_GD


def _loss(
    features_ND: Tensor, logit_N: Tensor, label_N: Tensor, keep_GN: Tensor, precision: float, shift_GD: Tensor
) -> Tensor:
    """What the posterior mode makes least, for each weighting, G."""
    logit_GN = logit_N + shift_GD @ features_ND.T
    each_GN = functional.softplus(logit_GN) - label_N * logit_GN
    return (keep_GN * each_GN).sum(1) + 0.5 * precision * shift_GD.square().sum(1)
