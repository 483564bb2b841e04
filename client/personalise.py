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

from client import plugins, research
from client.data import windows
from client.errors import ClientError
from client.home import SiteHome
from client.own_models import Own, OwnModels
from client.records import recorded_policy
from client.shelf import Shelf, plan_of
from client.trainer import load_state
from trust.card import Card
from trust.digest import Arrays
from twin.halves import halves
from twin.models.network import Network
from twin.personal.bayes import PathTask, SiteModel, adapt_patients, adapt_site
from twin.personal.logistic import (
    PatientClassifiers,
    SiteClassifier,
    adapt_patient_classifiers,
    adapt_site_classifier,
    offset_precision,
)
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

    def facts(self) -> dict[str, Any]:
        """For a person or JSON."""
        return {
            "task": self.card.task,
            "model": self.card.sha256,
            "patients": self.patients,
            "patients_with_own_model": self.moved,
            "figures": self.figures,
            "best": self.best,
        }

    @property
    def best(self) -> str:
        """The model with the least error here; empty if too few patients tell."""
        for metric in LEAST_IS_BEST:
            errors = {name: values[metric] for name, values in self.figures.items() if metric in values}
            if errors:
                return min(errors, key=errors.__getitem__)
        return ""


def personalise_store(home: SiteHome, task_name: str) -> Personalised:
    """Fits, keeps and judges them in the site's store, which no process has open.

    Raises:
        ClientError: as `personalise`.
        StoreError, TrustError: the store cannot be opened.
    """
    with home.lock(), research.opened(home) as store:
        return personalise(home, task_name, OwnModels(store))


def personalise(home: SiteHome, task_name: str, own: OwnModels | None = None) -> Personalised:
    """Fits and keeps the site's and every patient's model of a task, and judges them.

    Args:
        own: where they are kept; by default on the shelf, in files.

    Raises:
        ClientError: no model of the task is held, or there is no data to fit.
    """
    card, network, task, examples = _ready(home, task_name)
    moved = _keep(_Place(Shelf(home), own), card, network, task, examples)
    return Personalised(
        card=card, patients=len(examples.patients), moved=moved, figures=_figures(network, task, examples)
    )


def fit(home: SiteHome, task_name: str, own: OwnModels) -> int:
    """Fits and keeps them without judging; how many patients have a model of their own.

    Raises:
        ClientError: as `personalise`.
    """
    return _keep(_Place(Shelf(home), own), *_ready(home, task_name))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where models are kept: in the site's store if it has one, or on the shelf."""

    shelf: Shelf
    own: OwnModels | None

    def put(self, card: Card, patients: tuple[str, ...], site: Arrays, personal: Arrays | None) -> None:
        if self.own is not None:
            self.own.keep(card.task, Own(base=card.sha256, site=site, personal=personal, patients=patients))
            return
        self.shelf.put(card.task, "site", site)
        if personal is not None:
            self.shelf.put(card.task, "personal", personal)
        facts = {"model_sha256": card.sha256, "serial": card.serial, "patients": list(patients)}
        self.shelf.put_facts(card.task, "personal", facts)


def _ready(home: SiteHome, task_name: str) -> tuple[Card, Network, Task, Examples]:
    held = Shelf(home).held(task_name)
    if held is None:
        raise ClientError(
            "home_unreadable",
            f"No model of task {task_name!r} is held; the coordinator promotes one, `twinward site run`"
            " fetches it.",
        )
    card, state = held
    pins = recorded_policy(home).plugins
    task = plugins.build_task(plan_of(card).task, pins)
    network = plugins.build_model(plan_of(card).model, task, pins)
    network.requires_grad_(False)
    load_state(network, state)
    reads = bool(network.reads_series)
    _, examples = windows(home, plan_of(card).task, pins, purpose="care", series=reads)
    if not len(examples):
        raise ClientError("too_few_patients", f"No patient here has data for task {task_name!r}.")
    return card, network, task, examples


def _keep(place: _Place, card: Card, network: Network, task: Task, examples: Examples) -> int:
    """Fits on everything and keeps it; how many patients have a model of their own."""
    if not isinstance(task, PathTask):
        return _keep_classifier(place, card, network, task, examples)
    site = adapt_site(network, task, examples)
    everything = torch.ones(len(examples), dtype=torch.bool)
    personal = adapt_patients(network, task, site, examples, everything)
    place.put(
        card,
        examples.patients,
        _arrays({f.name: getattr(site, f.name) for f in fields(site)}),
        _arrays({f.name: getattr(personal, f.name) for f in fields(personal)}),
    )
    return int((personal.kept_P > 0).reshape(len(examples.patients), -1).any(1).sum())


def _keep_classifier(place: _Place, card: Card, network: Network, task: Task, examples: Examples) -> int:
    everything = torch.ones(len(examples), dtype=torch.bool)
    site, personal = _classifiers(network, task, examples, *_halves(task, examples), examples, everything)
    arrays = _arrays({"shift_D": site.shift_D, "precision": site.precision})
    if personal is None:
        place.put(card, (), arrays, None)
        return 0
    # Kept for everybody, also where it is 0: what is kept takes the place of what was.
    place.put(card, examples.patients, arrays, _arrays({"offset_P": personal.offset_P}))
    return int((personal.offset_P != 0).sum())


def _classifiers(
    network: Network,
    task: Task,
    training: Examples,
    early_N: Tensor,
    late_N: Tensor,
    own: Examples,
    adapts_N: Tensor,
) -> tuple[SiteClassifier, PatientClassifiers | None]:
    """The site's model of yes or no, and the patients'; without time nobody has one.

    Args:
        training: what makes the site's model. early_N, late_N: its halves, which tell how far patients move.
        own: windows of the patients who are adapted to. adapts_N: which of them adapt.
    """
    site = adapt_site_classifier(network, training)
    if task.horizons_min == (0,):
        return site, None
    precision = offset_precision(network, site, training, early_N, late_N)
    return site, adapt_patient_classifiers(network, site, own, adapts_N, precision)


def _halves(task: Task, examples: Examples) -> tuple[Tensor, Tensor]:
    return halves(examples, float(task.horizons_min[-1]))


def _arrays(values: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        name: value.numpy() if isinstance(value, Tensor) else np.asarray(value, np.float64)
        for name, value in values.items()
    }


def _figures(network: Network, task: Task, examples: Examples) -> dict[str, dict[str, float]]:
    """Every figure of the task for each model, over all folds of patients."""
    early_N, late_N = _halves(task, examples)
    parts: dict[str, list[Forecast]] = {}
    for training_N, test_N in _folds(examples):
        own = examples.at(test_N)
        late = late_N[test_N]
        rows = own.at(late)
        if isinstance(task, LastValueTask):
            parts.setdefault("persistence", []).append(task.forecast(task.persistence_outputs(rows), rows))
        training, halves_N = examples.at(training_N), (early_N[training_N], late_N[training_N])
        for name, outputs in _models(network, task, training, halves_N, own, early_N[test_N]).items():
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
    network: Network,
    task: Task,
    training: Examples,
    halves_N: tuple[Tensor, Tensor],
    own: Examples,
    early_N: Tensor,
) -> dict[str, Outputs]:
    found: dict[str, Outputs] = {"global": network}
    if not isinstance(task, PathTask):
        classifier, patients = _classifiers(network, task, training, *halves_N, own, early_N)
        found["site"] = lambda rows: classifier.outputs(network, rows)
        if patients is not None:
            found["personal"] = lambda rows: patients.outputs(network, rows)
        return found
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
