"""What a report is made of. It computes nothing anew: every figure in it comes from here.

Shapes: K points of one curve or cloud.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from simulate.intervals import Difference
from simulate.summary import CurveRow, RoundRow
from twin.site import Quality


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A stretch of one patient's record with the forecasts made for it.

    Attributes:
        site: of the patient.
        number: running number at the site; a report names nobody.
        model: that forecast.
        horizon_min: how long before each moment its forecast was made.
        hours_K: moments that were forecast, hours since the stretch begins, rising.
        low_K, middle_K, high_K: 10, 50, 90 % quantiles, mg/dL.
        observed_K: mg/dL, NaN where nothing was measured.
    """

    site: str
    number: int
    model: str
    horizon_min: int
    hours_K: np.ndarray
    low_K: np.ndarray
    middle_K: np.ndarray
    high_K: np.ndarray
    observed_K: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """What was observed beside what was said: glucose (mg/dL), or label and probability (`is_label`)."""

    site: str
    model: str
    horizon_min: int
    observed_K: np.ndarray
    forecast_K: np.ndarray
    is_label: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """What a level of privacy cost: a model's figure at an epsilon; epsilon None is without privacy."""

    label: str
    epsilon: float | None
    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything on the page.

    Attributes:
        summary: content of summary.json (`simulate.summary.build_summary`).
        unit: "mg/dL" or "mmol/L"; what the page shows first.
        level: coverage of the intervals, a fraction.
        low_mg_dl: hypoglycaemia is glucose below this.
        rounds: of rounds.csv.
        differences: paired, `simulate.report.differences_of`.
        examples: forecast ribbons; empty for a task without a time axis.
        pairs: for the Clarke grid, or ROC and calibration curves.
        curves, privacy_cost: empty where they were not made.
        quality: what cleaning did, by site.
        config_yaml: the whole configuration as text.
        notes: sentences of the caller that belong at the top (for instance of a refused site).
    """

    summary: Mapping[str, Any]
    unit: str = "mg/dL"
    level: float = 0.95
    low_mg_dl: float = 70.0
    rounds: tuple[RoundRow, ...] = ()
    differences: tuple[Difference, ...] = ()
    examples: tuple[Example, ...] = ()
    pairs: tuple[Pairs, ...] = ()
    curves: tuple[CurveRow, ...] = ()
    privacy_cost: tuple[CostRow, ...] = ()
    quality: Mapping[str, Quality] = field(default_factory=dict)
    config_yaml: str = ""
    notes: tuple[str, ...] = ()
