"""Diagnosis of heart disease from what is known at admission: static columns and a label.

The columns are those of the UCI heart disease data set (Detrano et al. 1989; Janosi et al. 1988,
doi 10.24432/C52P4X), thirteen attributes and `diagnosis` 0-4, of which 1-4 count as disease. There
is no time: a window is a patient, the history is empty, and persistence, personal models and days
of record mean nothing here.

Letters as in `twin.tasks.protocol`; N = P, H = O = 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from conf import schema
from twin.errors import DataError
from twin.site import Site
from twin.tasks.metrics import binary_metrics
from twin.tasks.protocol import Examples, Forecast, Metric

LABEL = "diagnosis"

# Centre and scale of numbers: round values of an adult cardiology clinic, fixed and public.
_NUMBERS = {
    "age": (55.0, 10.0),
    "sex": (0.5, 0.5),
    "trestbps": (130.0, 20.0),
    "chol": (240.0, 60.0),
    "fbs": (0.2, 0.4),
    "thalach": (140.0, 25.0),
    "exang": (0.4, 0.5),
    "oldpeak": (1.0, 1.0),
    "ca": (0.7, 1.0),
}
# Codes that are names and not amounts; one column each, but for the first, which is the reference.
_CODES = {"cp": (4, 1, 2, 3), "restecg": (0, 1, 2), "slope": (2, 1, 3), "thal": (3, 6, 7)}
# A cholesterol or blood pressure of 0 was never measured.
_ZERO_IS_MISSING = ("chol", "trestbps")
INPUTS = (*_NUMBERS, *_CODES)

COLUMNS = (
    *_NUMBERS,
    *(f"{name}_{code}" for name, codes in _CODES.items() for code in codes[1:]),
    "chol_missing",
    "one",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartTask:
    """Probability of heart disease of each patient who has a label."""

    name: str = "heart"
    outputs: int = 1
    latents: int = 1
    horizons_min: tuple[int, ...] = (0,)
    channels: int = 0
    columns: tuple[str, ...] = COLUMNS

    @staticmethod
    def build(config: schema.Task) -> HeartTask:
        """The task as configured; it has nothing to configure."""
        del config
        return HeartTask()

    def examples(self, site: Site) -> Examples:
        """One window per patient with a diagnosis.

        Raises:
            DataError: the site has no such column, or values in it that are no diagnosis.
        """
        label_P = _label(site)
        labelled = label_P.notna().to_numpy()
        table = site.patients[labelled]
        static = np.stack([_number(site.name, table, name) for name in INPUTS], axis=1)
        static_NS = torch.from_numpy(static.astype(np.float32))
        n = len(table)
        return Examples(
            series_NTC=torch.zeros(n, 0, 0),
            static_NS=static_NS,
            table_NF=_tabulate(static_NS),
            anchor_N=torch.zeros(n),
            target_NH=torch.from_numpy(
                (label_P[labelled].to_numpy(np.float32) > 0).astype(np.float32)[:, None]
            ),
            observed_NH=torch.ones(n, 1, dtype=torch.bool),
            patient_N=torch.from_numpy(np.flatnonzero(labelled).astype(np.int64)),
            time_us_N=torch.zeros(n, dtype=torch.int64),
            patients=tuple(str(p) for p in site.patients.index),
        )

    def sequence(self, examples: Examples) -> Tensor:
        """Nothing: N × 0 × 0."""
        return examples.series_NTC.transpose(1, 2)

    def loss(self, outputs_NO: Tensor, examples: Examples) -> Tensor:
        """Cross-entropy of each patient in nats."""
        return functional.binary_cross_entropy_with_logits(
            outputs_NO[:, 0], examples.target_NH[:, 0], reduction="none"
        )

    def loss_gradient(self, outputs_NO: Tensor, examples: Examples) -> Tensor:
        """Probability minus label."""
        return torch.sigmoid(outputs_NO) - examples.target_NH

    def forecast(self, outputs_NO: Tensor, examples: Examples) -> Forecast:
        """The probability of disease, in all three places of a quantile."""
        probability = torch.sigmoid(outputs_NO.detach().double()).cpu().numpy()
        return Forecast.of(examples, probability, probability, probability)

    def metrics(self) -> tuple[Metric, ...]:
        """Discrimination and calibration."""
        return binary_metrics()


def _tabulate(static_NS: Tensor) -> Tensor:
    """One row per patient, in the order of `COLUMNS`; what is missing stands at its centre."""
    columns: list[Tensor] = []
    values = dict(zip(INPUTS, static_NS.unbind(1), strict=True))
    for name, (centre, scale) in _NUMBERS.items():
        columns.append(((values[name] - centre) / scale).nan_to_num(0.0).clamp(-4.0, 4.0))
    for name, codes in _CODES.items():
        columns += [(values[name] == code).float() for code in codes[1:]]
    columns += [values["chol"].isnan().float(), torch.ones(len(static_NS))]
    return torch.stack(columns, dim=1)


def _label(site: Site) -> pd.Series:
    if LABEL not in site.patients.columns:
        raise DataError(
            f"site {site.name!r}: task=heart needs a column {LABEL!r} (0 healthy, 1-4 disease) in its "
            f"patients.csv; it has {', '.join(map(str, site.patients.columns)) or 'no columns'}. "
            f"`twinward data convert uci_heart SRC OUT` writes such sites."
        )
    label_P = pd.to_numeric(site.patients[LABEL], errors="coerce")
    wrong = int((~label_P.isin(range(5)) & site.patients[LABEL].notna()).sum())
    if wrong:
        raise DataError(
            f"site {site.name!r}: {LABEL} must be a whole number from 0 to 4 (0 is healthy), or empty; "
            f"{wrong} of {len(label_P)} rows of patients.csv hold something else."
        )
    if not label_P.notna().any():
        raise DataError(
            f"site {site.name!r}: no patient has a {LABEL}; task=heart has nothing to learn there."
        )
    return label_P


def _number(site: str, table: pd.DataFrame, name: str) -> np.ndarray:
    if name not in table.columns:
        return np.full(len(table), np.nan)
    values = pd.to_numeric(table[name], errors="coerce")
    wrong = int((values.isna() & table[name].notna()).sum())
    if wrong:
        raise DataError(
            f"site {site!r}: column {name!r} of patients.csv must be a number or empty; "
            f"{wrong} of {len(table)} rows hold something else."
        )
    if name in _ZERO_IS_MISSING:
        values = values.mask(values == 0)
    return values.to_numpy(np.float64)
