"""`twinward simulate -m`: every combination of settings, one run each, and one table of all."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from cli.simulate import at_directory, simulate_one
from cli.words import output
from conf.errors import TwinwardError
from conf.load import load_sweep
from conf.schema import Config
from simulate.files import write_atomically
from simulate.models import headline_metrics, label
from twin.tasks.metrics.units import display

COLUMNS = ("directory", "settings", "error", "model", "metric", "value", "low", "high")
SHOWN_MODELS = ("global", "site", "personal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run of a sweep: the settings that set it apart, where it lies, and what came of it."""

    settings: tuple[str, ...]
    directory: Path
    summary: dict[str, Any] | None = None
    error: str = ""


def sweep(words: Sequence[str], *, as_json: bool) -> int:
    """Run all; returns 0 when every run succeeded, else 1. A failed run does not stop the others.

    All configurations are checked before the first run. The folder follows from the words, so the
    same command goes on where a stopped one was.
    """
    runs = load_sweep(words)
    folder = _folder(words, runs[0][1])
    differing = _differing([settings for settings, _ in runs])
    outcomes: list[Outcome] = []
    for place, (settings, (_, config)) in enumerate(zip(differing, runs, strict=True)):
        print(f"[{place + 1}/{len(runs)}] {' '.join(settings) or 'as given'}", file=sys.stderr)
        outcomes.append(_run(config, folder / f"{place:03d}_{_label(settings)}", settings))
        write_atomically(folder / "sweep.csv", _csv(outcomes))
    if as_json:
        print(json.dumps([_record(outcome) for outcome in outcomes], indent=2, allow_nan=False))
    else:
        output().print(_table(outcomes, runs[0][1].task.unit))
        print(f"\nAll figures: {folder / 'sweep.csv'}")
    return 1 if any(outcome.error for outcome in outcomes) else 0


def _run(config: Config, directory: Path, settings: tuple[str, ...]) -> Outcome:
    try:
        result = simulate_one(at_directory(config, directory))
    except TwinwardError as error:
        print(f"twinward: {error}", file=sys.stderr)
        return Outcome(settings=settings, directory=directory, error=str(error))
    return Outcome(settings=settings, directory=directory, summary=result.summary)


def _folder(words: Sequence[str], config: Config) -> Path:
    if config.run.dir is not None:
        return Path(config.run.dir)
    return Path("multirun") / hashlib.sha256("\0".join(sorted(words)).encode()).hexdigest()[:8]


def _differing(runs: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    columns = [len(set(column)) > 1 for column in zip(*runs, strict=True)]
    return [tuple(word for word, varies in zip(run, columns, strict=True) if varies) for run in runs]


def _label(settings: Sequence[str]) -> str:
    return re.sub(r"[^A-Za-z0-9._=,+-]+", "-", ",".join(settings))[:80] or "run"


def _record(outcome: Outcome) -> dict[str, Any]:
    return {
        "directory": str(outcome.directory),
        "settings": list(outcome.settings),
        "error": outcome.error or None,
        "summary": outcome.summary,
    }


def _csv(outcomes: Sequence[Outcome]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for outcome in outcomes:
        head = (outcome.directory, " ".join(outcome.settings), outcome.error)
        metrics = (outcome.summary or {}).get("metrics", {})
        rows = [
            (
                *head,
                model,
                metric,
                *(("", "", "") if found is None else (found[k] for k in ("value", "low", "high"))),
            )
            for model, figures in metrics.items()
            for metric, found in (figures or {}).items()
        ]
        writer.writerows(rows or [(*head, "", "", "", "", "")])
    return text.getvalue().encode()


def _table(outcomes: Sequence[Outcome], unit: str) -> Table:
    """One row a run, with the figure that its report opens with, of the shared and adapted models."""
    table = Table("run", *(label(model) for model in SHOWN_MODELS), title=None)
    for outcome in outcomes:
        name = escape(" ".join(outcome.settings) or outcome.directory.name)
        metrics = (outcome.summary or {}).get("metrics", {})
        cells = [_headline(metrics.get(model) or {}, unit) for model in SHOWN_MODELS]
        table.add_row(name, *(["failed"] if outcome.error else cells))
    return table


def _headline(figures: dict[str, Any], unit: str) -> str:
    known = {metric for metric, found in figures.items() if found is not None}
    for metric in headline_metrics(known)[:1]:
        shown = display(metric, unit)
        return f"{shown.label}: {shown.text(figures[metric]['value'])} {shown.unit}".strip()
    return "–"
