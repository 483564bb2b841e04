"""How much wider or narrower the band of a site or a patient must be, from what forecasts left over.

The 10 % and 90 % quantiles stand at a distance below and above the path. Each distance is scaled
such that one in ten observed rests lies beyond it (conformal scaling; Romano et al. 2019,
arXiv:1905.03222, scale additively, this multiplies).

Letters: N windows, P patients, H horizons; 2 is below, above.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twin.tasks.protocol import Examples

# Windows of a patient at which patient and site count the same; infinity leaves the site's.
_STRENGTHS = (30.0, 100.0, 300.0, 1e3, 3e3, float("inf"))
_BEYOND = 0.1
_LEAST, _MOST = 0.2, 5.0


def no_change(horizons: int, like: Tensor) -> Tensor:
    """The log scale of a band that stays as it is, 2 × H."""
    return like.new_zeros(2, horizons)


def site_spreads(rest_NH: Tensor, spread_N2H: Tensor, observed_NH: Tensor) -> Tensor:
    """Log of the factor of each spread over all windows, 2 × H."""
    ratio = _ratio(rest_NH, spread_N2H)
    out = no_change(rest_NH.shape[1], rest_NH)
    for h in range(rest_NH.shape[1]):
        seen = observed_NH[:, h]
        if seen.any():
            out[:, h] = _log_factor(ratio[seen, :, h].T)
    return out


def patient_spreads(
    rest_NH: Tensor, spread_N2H: Tensor, examples: Examples, chosen_N: Tensor, strength: float
) -> Tensor:
    """Log of the factor of each patient's spreads, shrunk to no change, P × 2 × H."""
    own_P2H, count_PH = _own(rest_NH, spread_N2H, examples, chosen_N)
    return own_P2H * _weight(count_PH, strength)[:, None, :]


def shrinkage(
    rest_NH: Tensor, spread_N2H: Tensor, examples: Examples, early_N: Tensor, late_N: Tensor
) -> float:
    """The strength at which patients' earlier halves give the best bands in their later halves."""
    own_P2H, count_PH = _own(rest_NH, spread_N2H, examples, early_N)
    losses = []
    for strength in _STRENGTHS:
        log_P2H = own_P2H * _weight(count_PH, strength)[:, None, :]
        scaled = (spread_N2H * log_P2H[examples.patient_N].exp())[late_N]
        losses.append(_pinball(rest_NH[late_N], scaled, examples.observed_NH[late_N]))
    return _STRENGTHS[min(range(len(losses)), key=losses.__getitem__)]


def _own(rest_NH: Tensor, spread_N2H: Tensor, examples: Examples, chosen_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log factor of each patient's spreads, P × 2 × H, and how many windows stand behind it, P × H."""
    patients, horizons = len(examples.patients), rest_NH.shape[1]
    own_P2H = rest_NH.new_zeros(patients, 2, horizons)
    count_PH = rest_NH.new_zeros(patients, horizons)
    ratio = _ratio(rest_NH, spread_N2H)
    for h in range(horizons):
        rows = chosen_N & examples.observed_NH[:, h]
        patient_M = examples.patient_N[rows]
        count_PH[:, h] = torch.bincount(patient_M, minlength=patients)
        for side in range(2):
            factor_P = _quantile_by_patient(ratio[rows, side, h], patient_M, patients)
            own_P2H[:, side, h] = factor_P.clamp(_LEAST, _MOST).log()
    return own_P2H.where(count_PH[:, None] > 0, 0.0), count_PH


def _quantile_by_patient(value_M: Tensor, patient_M: Tensor, patients: int) -> Tensor:
    """The 90 % quantile of each patient's values, linearly interpolated; 0 for a patient without any."""
    if len(value_M) == 0:
        return value_M.new_zeros(patients)
    order = torch.argsort(value_M, stable=True)
    order = order[torch.argsort(patient_M[order], stable=True)]
    count_P = torch.bincount(patient_M, minlength=patients)
    first_P = torch.cumsum(count_P, 0) - count_P
    place_P = (1.0 - _BEYOND) * (count_P - 1).clamp(min=0).double()
    lower = (first_P + place_P.floor().long()).clamp(max=len(value_M) - 1)
    upper = (first_P + place_P.ceil().long()).clamp(max=len(value_M) - 1)
    share = place_P - place_P.floor()
    sorted_M = value_M[order]
    return sorted_M[lower] * (1 - share) + sorted_M[upper] * share


def _ratio(rest_NH: Tensor, spread_N2H: Tensor) -> Tensor:
    """How far a rest lies below and above the path, in spreads, N × 2 × H."""
    return torch.stack([-rest_NH, rest_NH], dim=1) / spread_N2H


def _log_factor(ratio_2M: Tensor) -> Tensor:
    return torch.quantile(ratio_2M, 1.0 - _BEYOND, dim=1).clamp(_LEAST, _MOST).log()


def _weight(count_PH: Tensor, strength: float) -> Tensor:
    return torch.zeros_like(count_PH) if strength == float("inf") else count_PH / (count_PH + strength)


def _pinball(rest_NH: Tensor, spread_N2H: Tensor, observed_NH: Tensor) -> float:
    below, above = rest_NH + spread_N2H[:, 0], rest_NH - spread_N2H[:, 1]
    loss = torch.maximum(_BEYOND * below, (_BEYOND - 1) * below)
    loss = loss + torch.maximum((1 - _BEYOND) * above, -_BEYOND * above)
    return float((loss * observed_NH).sum())
