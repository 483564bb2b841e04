"""What every model must beat: the last value, and linear regression on the same inputs.

The linear models see the table of the task and nothing else: no network, no federation, no prior.
Their ridge penalty is the one with which patients that the fit has not seen are forecast best; for
`linear_patient`, the later halves of other patients' records. Bands are quantiles of what the fit
leaves over on the windows that it was made from.

Letters: N windows, P patients, H horizons, F columns of the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from twin.personal.bayes import PRECISIONS, PathTask
from twin.personal.moments import Moments, joined, moments
from twin.tasks.protocol import Examples, Task

_GROUPS = 10
_RIDGES = tuple(p for p in PRECISIONS if p != float("inf"))


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearData:
    """A site's windows as a linear model sees them, and their sums per patient.

    Attributes:
        table_NF: of the task, float64.
        rest_NH: target minus last value, in the loss's units.
        observed_NH: where that is known.
        patient_N: index of the patient.
        whole, early, late: sums over all windows, and over the halves of the records.
    """

    table_NF: Tensor
    rest_NH: Tensor
    observed_NH: Tensor
    patient_N: Tensor
    whole: Moments
    early: Moments
    late: Moments


def linear_data(task: PathTask, examples: Examples, early_N: Tensor, late_N: Tensor) -> LinearData:
    """Once per site; every fold's fits are sums of it."""
    table_NF = examples.table_NF.double()
    rest_NH = task.rest(persistence_outputs(task, examples).double(), examples)

    def sums(chosen_N: Tensor) -> Moments:
        return moments(
            table_NF[chosen_N],
            rest_NH[chosen_N],
            examples.observed_NH[chosen_N],
            examples.patient_N[chosen_N],
            len(examples.patients),
        )

    return LinearData(
        table_NF=table_NF,
        rest_NH=rest_NH,
        observed_NH=examples.observed_NH,
        patient_N=examples.patient_N,
        whole=sums(torch.ones(len(examples), dtype=torch.bool)),
        early=sums(early_N),
        late=sums(late_N),
    )


def persistence_outputs(task: Task, examples: Examples) -> Tensor:
    """Outputs of "it stays as it is", with spreads of one unit, N × O."""
    return torch.zeros(len(examples), task.outputs)


def fit_linear(sites: Mapping[str, LinearData], trained: Mapping[str, Tensor]) -> Tensor:
    """Weights H × F of ridge regression over some patients (indices) of some sites."""
    parts = [sites[name].whole.at(chosen) for name, chosen in trained.items() if len(chosen)]
    together = joined(parts)
    if len(together.count_PH) < 2:
        return together.total().fit(_RIDGES[len(_RIDGES) // 2])[0]
    group_P = torch.arange(len(together.count_PH)) % min(_GROUPS, len(together.count_PH))
    total = together.total()
    errors = [0.0] * len(_RIDGES)
    for group in range(int(group_P.max()) + 1):
        held = together.at(group_P == group)
        rest = total.minus(held.total())
        for place, ridge in enumerate(_RIDGES):
            errors[place] += float(held.error(rest.fit(ridge)).sum())
    return total.fit(_RIDGES[errors.index(min(errors))])[0]


def fit_linear_patients(data: LinearData, trained: Tensor) -> Tensor:
    """Weights P × H × F of every patient's own ridge regression on the earlier half of the record."""
    errors = [float(data.late.at(trained).error(data.early.at(trained).fit(r)).sum()) for r in _RIDGES]
    return data.early.fit(_RIDGES[errors.index(min(errors))])


def linear_outputs(
    task: PathTask, examples: Examples, path_NH: Tensor, leftover_MH: Tensor, observed_MH: Tensor
) -> Tensor:
    """Outputs of a path with bands from what the fit left over on its own windows, N × O."""
    plain = persistence_outputs(task, examples).double()
    log_spread = torch.zeros(1, 2, leftover_MH.shape[1], dtype=torch.float64)
    for h in range(leftover_MH.shape[1]):
        seen = leftover_MH[observed_MH[:, h], h]
        if len(seen):
            edges = torch.quantile(
                seen[:: max(1, len(seen) // 100_000)], torch.tensor([0.1, 0.9], dtype=seen.dtype)
            )
            log_spread[0, :, h] = (edges * torch.tensor([-1.0, 1.0])).clamp(min=1e-3).log()
    return task.moved(plain, path_NH, log_spread)


def logistic_outputs(parts: Sequence[Examples], examples: Examples) -> Tensor | None:
    """Log odds of ridge logistic regression (scikit-learn, C=1) on the table; None with one class only."""
    parts = [part.at(part.observed_NH[:, 0]) for part in parts]
    table = torch.cat([part.table_NF for part in parts])[:, :-1].double().numpy()
    label = torch.cat([part.target_NH[:, 0] for part in parts]).numpy() > 0.5
    if len(set(label.tolist())) < 2:
        return None
    if len(examples) == 0:
        return torch.zeros(0, 1, dtype=torch.float64)
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit(table, label)
    odds = fitted.decision_function(examples.table_NF[:, :-1].double().numpy())
    return torch.from_numpy(odds)[:, None]
