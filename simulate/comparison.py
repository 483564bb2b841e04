"""Finished runs beside each other: what each reached, at what price in privacy, communication and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.errors import ConfigError
from server.app import store_path
from server.store import Store
from simulate.folder import read_json
from simulate.intervals import Interval
from simulate.models import headline_metrics

FEWEST = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run.

    Attributes:
        name: of its folder.
        figures: of the model that is compared, by metric.
        epsilon: greatest of any site; None without privacy.
        megabytes: that models and updates of the released federation took; None if its file is gone.
        seconds: of training all its federations, folds included.
        sites: name and number of patients of each.
    """

    name: str
    task: str
    strategy: str
    rounds: int
    figures: dict[str, Interval]
    epsilon: float | None
    delta: float | None
    megabytes: float | None
    seconds: float | None
    sites: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs of one task.

    Attributes:
        model: whose figures these are: "global", "site" or "personal".
        metrics: that are shown; the first one is drawn against its price.
        notes: why figures may not be comparable.
    """

    model: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def compare(runs: Sequence[Path], model: str, metric: str | None = None) -> Comparison:
    """Reads finished runs.

    Args:
        runs: their folders, two at least.
        model: as summary.json names it.
        metric: to be shown first; None takes those with which a report opens.

    Raises:
        ConfigError: a folder is no finished run, or has not this model or metric, or tasks differ.
    """
    if len(runs) < FEWEST:
        raise ConfigError(f"a comparison needs {FEWEST} runs or more; {len(runs)} came")
    rows = tuple(_row(run, model) for run in runs)
    if len({row.task for row in rows}) > 1:
        tasks = ", ".join(f"{row.name}: {row.task}" for row in rows)
        raise ConfigError(f"runs of one task can be compared; these are of several ({tasks})")
    common = {name for name in rows[0].figures if all(name in row.figures for row in rows)}
    if metric is not None and metric not in common:
        raise ConfigError(f"--metric: allowed are {', '.join(sorted(common))}; {metric!r} came")
    chosen = [name for name in headline_metrics(common) if name != metric]
    metrics = ([metric] if metric else []) + chosen
    return Comparison(model=model, metrics=tuple(metrics), rows=rows, notes=_notes(rows))


def _row(run: Path, model: str) -> Row:
    if not (run / "summary.json").is_file():
        raise ConfigError(
            f"{run} is no finished run: it has no summary.json; "
            f"`twinward simulate --resume {run}` finishes one"
        )
    summary = read_json(run / "summary.json")
    figures = summary["metrics"].get(model)
    if figures is None:
        raise ConfigError(f"--model: {run} has {', '.join(summary['metrics'])}; {model!r} is not among them")
    return Row(
        name=run.resolve().name,
        task=summary["task"],
        strategy=summary["strategy"],
        rounds=summary["rounds"]["committed"],
        figures={name: Interval(**found) for name, found in figures.items()},
        epsilon=summary["privacy"]["epsilon"],
        delta=summary["privacy"]["delta"],
        megabytes=_megabytes(store_path(run / "federations" / "all")),
        seconds=summary["timing_s"].get("federation"),
        sites=tuple(sorted((name, site["patients"]) for name, site in summary["sites"].items())),
    )


def _megabytes(path: Path) -> float | None:
    if not path.is_file():
        return None
    with Store(path) as store:
        plan: Any = store.plan()
        if plan is None:
            return None
        total = sum(
            len(plan.asked(row.number)) * len(store.data(row.base))
            + sum(store.reply_bytes(row.number).values())
            for row in store.rounds()
        )
    return total / 1e6


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    notes = []
    if len({row.sites for row in rows}) > 1:
        notes.append("These runs are of different hospitals or patients: their figures are not comparable.")
    if len({row.delta for row in rows if row.epsilon is not None}) > 1:
        notes.append("The runs state their epsilon at different deltas.")
    return tuple(notes)
