"""From the global model to a site's and a patient's for a yes-or-no task: logistic regression with a prior.

The site's last layer moves to the posterior mode under N(global, 1/precision), by Newton's method; the
precision is the one with which patients that the fit has not seen are best forecast. A patient's log odds
move by one number, an offset with the prior N(0, 1/precision); labels of one kind are too rare in one
record to tell more. Its precision is the one with which other patients' earlier halves best forecast their
later halves.

Letters: N windows, G groups of left-out patients, P patients, D features of the last layer.
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
_FEW_GROUPS = 4
_MANY = 10_000
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
    known = examples.observed_NH[:, 0]
    features_ND, logit_N = _view(network, examples.at(known))
    label_N = examples.target_NH[known, 0].double()
    patients, patient_N = torch.unique(examples.patient_N[known], return_inverse=True)
    unmoved = features_ND.new_zeros(features_ND.shape[1])
    if len(patients) < 4:
        return SiteClassifier(shift_D=unmoved, precision=float("inf"))
    # Many windows tell the precision with fewer fits.
    groups = min(_GROUPS if len(label_N) <= _MANY else _FEW_GROUPS, len(patients))
    group_N = patient_N % groups
    keep_GN = (group_N[None, :] != torch.arange(groups)[:, None]).double()
    shift_GD = unmoved.expand(groups, -1)
    losses = []
    for precision in reversed(PRECISIONS):  # each fit starts where the last, which was held tighter, ended
        shift_GD = _fit(features_ND, logit_N, label_N, keep_GN, precision, shift_GD)
        unseen_N = logit_N + (features_ND * shift_GD[group_N]).sum(1)
        losses.append(float(functional.binary_cross_entropy_with_logits(unseen_N, label_N)))
    precision = PRECISIONS[::-1][min(range(len(losses)), key=losses.__getitem__)]
    everyone = keep_GN.new_ones(1, len(label_N))
    shift_D = _fit(features_ND, logit_N, label_N, everyone, precision, unmoved[None])[0]
    return SiteClassifier(shift_D=shift_D, precision=precision)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientClassifiers:
    """The site's model as it is adapted to each patient.

    Attributes:
        site: what they start from.
        offset_P: added to the log odds of each patient.
        precision: of the prior at no offset; infinite moves nobody.
    """

    site: SiteClassifier
    offset_P: Tensor
    precision: float

    def outputs(self, network: Network, examples: Examples) -> Tensor:
        """Log odds of each window's patient's model, N × 1."""
        return self.site.outputs(network, examples) + self.offset_P[examples.patient_N][:, None]


def offset_precision(
    network: Network, site: SiteClassifier, training: Examples, early_N: Tensor, late_N: Tensor
) -> float:
    """The precision with which the training patients' earlier halves best forecast their later ones.

    Args:
        training: the windows that the site's model was made from; it knows them, so that what is left
            for a patient looks smaller than it is and patients move too little rather than too much.
        early_N, late_N: which of them adapt and which judge.
    """
    early_N, late_N = early_N & training.observed_NH[:, 0], late_N & training.observed_NH[:, 0]
    if not bool(early_N.any()) or not bool(late_N.any()):
        return float("inf")
    logit_N = site.outputs(network, training)[:, 0]
    label_N = training.target_NH[:, 0].double()
    late = training.patient_N[late_N]
    losses = []
    for precision in PRECISIONS:
        offset_P = _offsets(logit_N, label_N, training, early_N, precision)
        said = logit_N[late_N] + offset_P[late]
        losses.append(float(functional.binary_cross_entropy_with_logits(said, label_N[late_N])))
    return PRECISIONS[min(range(len(losses)), key=losses.__getitem__)]


def adapt_patient_classifiers(
    network: Network, site: SiteClassifier, examples: Examples, early_N: Tensor, precision: float
) -> PatientClassifiers:
    """Every patient's model from the windows `early_N` (bool) of the patient's own record."""
    logit_N = site.outputs(network, examples)[:, 0]
    early_N = early_N & examples.observed_NH[:, 0]
    offset_P = _offsets(logit_N, examples.target_NH[:, 0].double(), examples, early_N, precision)
    return PatientClassifiers(site=site, offset_P=offset_P, precision=precision)


def _offsets(
    logit_N: Tensor, label_N: Tensor, examples: Examples, early_N: Tensor, precision: float
) -> Tensor:
    """Posterior modes of the offsets, P; steps are cut to one, for Newton's overshoot where odds are long."""
    offset_P = logit_N.new_zeros(len(examples.patients))
    if precision == float("inf"):
        return offset_P
    logit, label, patient = logit_N[early_N], label_N[early_N], examples.patient_N[early_N]
    for _ in range(_NEWTON_STEPS):
        chance = torch.sigmoid(logit + offset_P[patient])
        slope_P = (precision * offset_P).index_add(0, patient, chance - label)
        curve_P = torch.full_like(offset_P, precision).index_add(0, patient, chance * (1 - chance))
        step_P = (slope_P / curve_P).clamp(-1.0, 1.0)
        offset_P = offset_P - step_P
        if float(step_P.abs().max()) < 1e-9:
            break
    return offset_P


def _view(network: Network, examples: Examples) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        features_ND = network.features(examples)
        return features_ND.double(), network.expand(network.head(features_ND))[:, 0].double()


def _fit(
    features_ND: Tensor,
    logit_N: Tensor,
    label_N: Tensor,
    keep_GN: Tensor,
    precision: float,
    shift_GD: Tensor | None = None,
) -> Tensor:
    """Posterior modes of the shift for each weighting of the windows, G × D, searched from `shift_GD`."""
    if shift_GD is None or precision == float("inf"):
        shift_GD = features_ND.new_zeros(len(keep_GN), features_ND.shape[1])
    if precision == float("inf"):
        return shift_GD
    eye = torch.eye(features_ND.shape[1], dtype=features_ND.dtype)
    for _ in range(_NEWTON_STEPS):
        chance_GN = torch.sigmoid(logit_N + shift_GD @ features_ND.T)
        slope_GD = (keep_GN * (chance_GN - label_N)) @ features_ND + precision * shift_GD
        weight_GN = keep_GN * chance_GN * (1 - chance_GN)
        curve_GDD = torch.stack([(features_ND * w[:, None]).T @ features_ND for w in weight_GN])
        curve_GDD += precision * eye
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
