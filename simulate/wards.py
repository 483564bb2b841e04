"""A site as a simulation looks at it, who may see all of it: windows, halves of records, linear sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from client.site import site_examples, site_names
from conf.schema import Config
from simulate.baselines import LinearData, linear_data
from twin.errors import DataError
from twin.halves import halves
from twin.personal.bayes import PathTask
from twin.splits import Split
from twin.tasks.protocol import Examples, Forecast, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Ward:
    """One site.

    Attributes:
        name: of the site.
        examples: all its windows.
        early_N, late_N: which of them adapt, and which of them judge (bool).
        linear: what linear baselines are fitted from; None for a task without a path.
    """

    name: str
    examples: Examples
    early_N: Tensor
    late_N: Tensor
    linear: LinearData | None

    def of(self, patients: Sequence[str]) -> Tensor:
        """Which windows are of these patients (N, bool)."""
        return torch.isin(self.examples.patient_N, self.index(patients))

    def index(self, patients: Sequence[str]) -> Tensor:
        """Place of each of these patients, sorted."""
        place = {patient: number for number, patient in enumerate(self.examples.patients)}
        return torch.tensor(sorted(place[patient] for patient in patients), dtype=torch.long)

    def judged(self, split: Split) -> Tensor:
        """Windows that judge in a split: later halves of patients that do not train (N, bool).

        Without a split ("all") they are the later halves of everybody.
        """
        if split.kind == "all":
            return self.late_N
        return self.late_N & self.of(split.test_patients(self.name, self.examples.patients))


def open_wards(config: Config, task: Task) -> dict[str, Ward]:
    """All sites of a configuration by name.

    Raises:
        DataError: no site has anything to learn from or to judge with.
    """
    wards = {name: _ward(name, site_examples(config, name), task) for name in site_names(config)}
    if not any(len(ward.examples) for ward in wards.values()):
        raise DataError(
            f"Expected at one site at least something for task={config.task.name} to learn from; found "
            f"nothing at {', '.join(wards)}. `twinward data check` says what the sites hold; task= chooses "
            "another task."
        )
    return wards


def _ward(name: str, examples: Examples, task: Task) -> Ward:
    early_N, late_N = halves(examples, float(task.horizons_min[-1]))
    linear = linear_data(task, examples, early_N, late_N) if isinstance(task, PathTask) else None
    return Ward(name=name, examples=examples, early_N=early_N, late_N=late_N, linear=linear)


def joined(parts: Sequence[Forecast | None], repeated: bool) -> Forecast | None:
    """Forecasts of several splits of one site as one, ordered by patient; None if there are none.

    Args:
        repeated: the splits judge the same patients again and again, and figures are means over them.
    """
    there = [(number, part) for number, part in enumerate(parts) if part is not None]
    if not there:
        return None
    first = there[0][1]
    names = [f.name for f in fields(Forecast) if f.name not in ("patients", "part_N")]
    columns: dict[str, Any] = {n: np.concatenate([getattr(part, n) for _, part in there]) for n in names}
    whole = replace(first, **columns)
    if repeated:
        whole = replace(whole, part_N=np.concatenate([np.full(len(p.patient_N), n) for n, p in there]))
    return whole.at(np.argsort(whole.patient_N, kind="stable"))


def join_models(
    task: Task, parts: Sequence[Mapping[str, Mapping[str, Forecast | None]]], splits: Sequence[Split]
) -> dict[str, dict[str, Forecast | None]]:
    """Forecasts by model and site, each joined over splits.

    Windows of all folds are pooled, but not those of a task without time: its figures rank patients,
    and scores of different folds' models have no common rank.
    """
    models = list(dict.fromkeys(model for part in parts for model in part))
    sites = sorted({site for part in parts for by_site in part.values() for site in by_site})
    repeated = task.horizons_min == (0,) or any(split.kind == "splits" for split in splits)
    return {
        model: {site: joined([part.get(model, {}).get(site) for part in parts], repeated) for site in sites}
        for model in models
    }
