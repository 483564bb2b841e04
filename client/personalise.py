"""From the federation's model to the site's and to each patient's, at the site, on its own data.

What is kept is fitted on everything. The figures say how well that works on what it was not fitted
on: a patient's later half is judged by a site model that never saw the patient, and by a personal
model from the patient's earlier half. The federation's model may have been trained on the same
patients, later halves included, though with their privacy.

Nothing here is private, and nothing of it leaves: no message carries these models or figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from client import plugins
from client.data import windows
from client.errors import ClientError
from client.home import SiteHome
from client.records import recorded_policy
from client.shelf import Shelf, plan_of
from client.trainer import load_state
from trust.card import Card
from twin.halves import halves
from twin.models.network import Network
from twin.personal.bayes import PathTask, SiteModel, adapt_patients, adapt_site
from twin.personal.logistic import adapt_site_classifier
from twin.splits import Split
from twin.tasks.protocol import Examples, Forecast, LastValueTask, Task

FOLDS = 5
LEAST_IS_BEST = ("rmse_30_mg_dl", "brier")

Outputs = Callable[[Examples], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Personalised:
    """What came of it.

    Attributes:
        card: of the federation's model.
        patients: with windows. moved: patients whose own model proved better than the site's.
        figures: by model (persistence, global, site, personal) and metric; only those that there are.
    """

    card: Card
    patients: int
    moved: int
    figures: dict[str, dict[str, float]]

    @property
    def best(self) -> str:
        """The model with the least error here; empty if too few patients tell."""
        for metric in LEAST_IS_BEST:
            errors = {name: values[metric] for name, values in self.figures.items() if metric in values}
            if errors:
                return min(errors, key=errors.__getitem__)
        return ""


def personalise(home: SiteHome, task_name: str) -> Personalised:
    """Fits and keeps the site's and every patient's model of a task.

    Raises:
        ClientError: no model of the task is held, or there is no data to fit.
    """
    shelf = Shelf(home)
    held = shelf.held(task_name)
    if held is None:
        raise ClientError(
            "home_unreadable",
            f"No model of task {task_name!r} is held; the coordinator promotes one, `twinward site run`"
            " fetches it.",
        )
    card, state = held
    pins = recorded_policy(home).plugins
    task, examples = windows(home, plan_of(card).task, pins)
    if not len(examples):
        raise ClientError("too_few_patients", f"No patient here has data for task {task_name!r}.")
    network = plugins.build_model(plan_of(card).model, task, pins)
    network.requires_grad_(False)
    load_state(network, state)
    examples = examples if network.reads_series else examples.without_series()
    moved = _keep(shelf, card, network, task, examples)
    return Personalised(
        card=card, patients=len(examples.patients), moved=moved, figures=_figures(network, task, examples)
    )


def _keep(shelf: Shelf, card: Card, network: Network, task: Task, examples: Examples) -> int:
    """Fits on everything and keeps it; how many patients have a model of their own."""
    facts = {"model_sha256": card.sha256, "serial": card.serial, "patients": list(examples.patients)}
    if not isinstance(task, PathTask):
        classifier = adapt_site_classifier(network, examples)
        shelf.put(
            card.task, "site", _arrays({"shift_D": classifier.shift_D, "precision": classifier.precision})
        )
        shelf.put_facts(card.task, "personal", facts | {"patients": []})
        return 0
    site = adapt_site(network, task, examples)
    everything = torch.ones(len(examples), dtype=torch.bool)
    personal = adapt_patients(network, task, site, examples, everything)
    shelf.put(card.task, "site", _arrays({f.name: getattr(site, f.name) for f in fields(site)}))
    shelf.put(card.task, "personal", _arrays({f.name: getattr(personal, f.name) for f in fields(personal)}))
    shelf.put_facts(card.task, "personal", facts)
    return int((personal.kept_P > 0).reshape(len(examples.patients), -1).any(1).sum())


def _arrays(values: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        name: value.numpy() if isinstance(value, Tensor) else np.asarray(value, np.float64)
        for name, value in values.items()
    }


def _figures(network: Network, task: Task, examples: Examples) -> dict[str, dict[str, float]]:
    """Every figure of the task for each model, over all folds of patients."""
    early_N, late_N = halves(examples, float(task.horizons_min[-1]))
    parts: dict[str, list[Forecast]] = {}
    for training_N, test_N in _folds(examples):
        own = examples.at(test_N)
        late = late_N[test_N]
        rows = own.at(late)
        if isinstance(task, LastValueTask):
            parts.setdefault("persistence", []).append(task.forecast(task.persistence_outputs(rows), rows))
        for name, outputs in _models(network, task, examples.at(training_N), own, early_N[test_N]).items():
            parts.setdefault(name, []).append(task.forecast(outputs(rows), rows))
    found = {name: _joined(forecasts) for name, forecasts in parts.items()}
    if isinstance(task, PathTask) and "global" in found:
        found = {"persistence": _persistence(found["global"])} | found
    return {name: _judged(task, forecast) for name, forecast in found.items()}


def _folds(examples: Examples) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows of the patients that train and of those that judge, fold after fold."""
    patients = len(examples.patients)
    for index in range(min(FOLDS, patients) if patients > 1 else 0):
        split = Split(kind="folds", count=min(FOLDS, patients), index=index)
        judged = set(split.test_patients("", examples.patients))
        in_P = torch.tensor([patient in judged for patient in examples.patients])
        test_N = in_P[examples.patient_N]
        yield ~test_N, test_N


def _models(
    network: Network, task: Task, training: Examples, own: Examples, early_N: Tensor
) -> dict[str, Outputs]:
    found: dict[str, Outputs] = {"global": network}
    if not isinstance(task, PathTask):
        classifier = adapt_site_classifier(network, training)
        return found | {"site": lambda rows: classifier.outputs(network, rows)}
    site: SiteModel = adapt_site(network, task, training)
    personal = adapt_patients(network, task, site, own, early_N)
    return found | {
        "site": lambda rows: site.outputs(network, task, rows),
        "personal": lambda rows: personal.outputs(network, task, rows),
    }


def _joined(parts: list[Forecast]) -> Forecast:
    names = [f.name for f in fields(Forecast) if f.name not in ("patients", "part_N")]
    columns: dict[str, Any] = {n: np.concatenate([getattr(part, n) for part in parts]) for n in names}
    whole = replace(parts[0], **columns)
    return whole.at(np.argsort(whole.patient_N, kind="stable"))


def _persistence(forecast: Forecast) -> Forecast:
    """What somebody forecasts who says that glucose stays what it was."""
    last_NH = np.repeat(forecast.anchor_N[:, None], forecast.middle_NH.shape[1], axis=1)
    return replace(forecast, low_NH=last_NH, middle_NH=last_NH, high_NH=last_NH)


def _judged(task: Task, forecast: Forecast) -> dict[str, float]:
    everybody = np.ones((1, len(forecast.patients)))
    figures = {metric.name: float(metric(forecast, everybody)[0]) for metric in task.metrics()}
    return {name: value for name, value in figures.items() if np.isfinite(value)}
