"""Figures that are a ratio of two sums over patients, such as a mean over windows or a rate per day.

Every window, event or day belongs to one patient. A patient's share of both sums is computed once;
then a weighting of patients costs one dot product, and a thousand bootstraps one matrix product.

Shapes: N windows, P patients, B weightings of patients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from twin.tasks.protocol import Forecast

Sums: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Numerator and denominator of each patient, both of shape P."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """The metric `scale * (sum of numerators / sum of denominators) ** power`.

    Attributes:
        name: of the figure, with its unit.
        sums: gives each patient's share of both sums.
        scale: 100 for percent.
        power: 0.5 for a root of a mean square.
    """

    name: str
    sums: Callable[[Forecast], Sums]
    scale: float = 1.0
    power: float = 1.0

    def __call__(self, forecast: Forecast, weights_BP: np.ndarray) -> np.ndarray:
        """The figure for each weighting (B,); NaN where nothing is counted or a forecast is not finite."""
        numerator_P, denominator_P = self.sums(forecast)
        broken_P = ~np.isfinite(numerator_P)
        above_B = weights_BP @ np.where(broken_P, 0.0, numerator_P)
        below_B = weights_BP @ denominator_P
        defined_B = (below_B > 0) & ~(weights_BP @ broken_P > 0)
        ratio_B = np.divide(above_B, below_B, out=np.full(len(below_B), np.nan), where=defined_B)
        return np.asarray(self.scale * ratio_B**self.power)


def per_patient(values_N: np.ndarray, forecast: Forecast) -> np.ndarray:
    """The sum of `values_N` over the windows of each patient (P,)."""
    return np.bincount(forecast.patient_N, weights=values_N, minlength=len(forecast.patients))
