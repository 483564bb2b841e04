"""How a figure is shown: its label, its unit, and whether less of it is better.

Figures are computed and stored in mg/dL under names that end in `_mg_dl`. A reader who thinks in
mmol/L gets labels and values from here; stored names and values do not change.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from twin.signals import MG_DL_PER_MMOL_L

Better: TypeAlias = Literal["lower", "higher", "neither"]

_WORDS: dict[str, tuple[str, Better]] = {
    "rmse": ("RMSE", "lower"),
    "mae": ("Mean absolute error", "lower"),
    "mard": ("MARD", "lower"),
    "coverage_80": ("Coverage of the 80 % band", "neither"),
    "clarke_ab": ("Clarke zones A and B", "higher"),
    "hypo_sensitivity": ("Hypoglycaemia warned of", "higher"),
    "hypo_lead_time": ("Warning time", "higher"),
    "hypo_false_alarms": ("False alarms", "lower"),
    "time_in_range": ("Time in range, forecast", "neither"),
    "time_in_range_observed": ("Time in range, observed", "neither"),
    "auroc": ("AUROC", "higher"),
    "auprc": ("AUPRC", "higher"),
    "brier": ("Brier score", "lower"),
    "calibration_error": ("Calibration error", "lower"),
    "accuracy": ("Accuracy", "higher"),
    "auroc_onset": ("AUROC, onset", "higher"),
    "auprc_onset": ("AUPRC, onset", "higher"),
    "onset_sensitivity": ("Onsets warned of", "higher"),
    "onset_false_alarms": ("False alarms", "lower"),
    "onset_lead_time": ("Warning time", "higher"),
    "onset_events": ("Onsets", "neither"),
}
_UNITS = {"mg_dl": "mg/dL", "pct": "%", "min": "min", "per_day": "per day"}
_NAME = re.compile(r"(?P<word>.+?)(?:_(?P<minutes>30|60))?(?:_(?P<unit>mg_dl|pct|min|per_day))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Display:
    """How one metric is shown.

    Attributes:
        label: without the unit, for instance "RMSE +30 min".
        unit: "mg/dL", "mmol/L", "%", "min", "per day" or "" for a plain number.
        factor: what a stored value is multiplied with.
        decimals: digits behind the point.
        better: which direction is good.
    """

    label: str
    unit: str
    factor: float
    decimals: int
    better: Better

    def text(self, value: float | None) -> str:
        """The value in the unit shown, or an en dash where there is none."""
        return "–" if value is None else f"{value * self.factor:.{self.decimals}f}".replace("-", "−")


def display(metric: str, unit: str = "mg/dL") -> Display:
    """How `metric` is shown to someone who reads glucose in `unit` ("mg/dL" or "mmol/L").

    A name that is not known is shown as it is, with its unit where the ending tells it.
    """
    parts = _NAME.fullmatch(metric)
    word, minutes, ending = (
        (parts["word"], parts["minutes"], parts["unit"]) if parts else (metric, None, None)
    )
    label, better = _WORDS.get(word, (word.replace("_", " "), "neither"))
    label += f" +{minutes} min" if minutes else ""
    if ending == "mg_dl" and unit == "mmol/L":
        return Display(label=label, unit=unit, factor=1.0 / MG_DL_PER_MMOL_L, decimals=2, better=better)
    shown = _UNITS.get(ending or "", "")
    decimals = {"mg/dL": 2, "%": 1, "min": 1, "per day": 2}.get(shown, 3)
    return Display(label=label, unit=shown, factor=1.0, decimals=decimals, better=better)
