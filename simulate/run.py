"""One simulation from configuration to report, and its continuation; also the way in for notebooks.

    from conf.load import load
    from simulate.run import simulate

    result = simulate(load(["privacy.epsilon=2", "run.dir=runs/strict"]))
    result.summary["metrics"]["global"]["rmse_30_mg_dl"]

A federation is trained once per fold, once with everybody (the model that is kept) and, for the
learning curves, once without each site. All of them are durable: whatever is interrupted goes on
where it was when the same call comes again. A finished run is read and not computed again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from conf.errors import ConfigError
from conf.load import from_yaml, to_yaml
from conf.naming import run_directory
from conf.schema import Config
from simulate.curves import PATIENTS, new_hospital, new_patient
from simulate.federation import FederationResult, run_federation
from simulate.files import write_atomically
from simulate.fold import ByModel, States, global_forecasts, headline, judge_fold, train_references
from simulate.intervals import Judged, judge
from simulate.models import headline_metrics
from simulate.outcome import Outcome, write_outcome
from simulate.progress import Progress, SilentProgress
from simulate.report.data import CurveRow
from simulate.summary import RoundRow
from simulate.wards import Ward, join_models, open_wards
from trust.digest import Arrays
from twin import models, tasks
from twin.personal.bayes import PathTask
from twin.prior import initial_state
from twin.splits import Split
from twin.tasks.protocol import Task

__all__ = ["RunResult", "resume", "simulate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """Where a finished run lies, and the content of its summary.json."""

    directory: Path
    summary: dict[str, Any]


def simulate(config: Config, *, progress: Progress | None = None) -> RunResult:
    """Train, personalise, judge and report as configured, or go on with it, or read it.

    Args:
        config: from `conf.load.load`; the run's folder is `run.dir`, or follows from the rest.
        progress: is told how far the work is.

    Raises:
        ConfigError: the folder holds a run of another configuration.
        DataError: the sites' data cannot be read, or do not fit the task.
    """
    directory = run_directory(config)
    config = replace(config, run=replace(config.run, dir=str(directory)))
    _claim(directory, config)
    summary = directory / "summary.json"
    if not summary.exists():
        _Simulation(config, directory, progress or SilentProgress()).run()
    return RunResult(directory=directory, summary=json.loads(summary.read_text(encoding="utf-8")))


def resume(directory: Path, *, progress: Progress | None = None) -> RunResult:
    """Go on with the run in this folder, with the configuration that it was begun with.

    Raises:
        ConfigError: there is no run.
    """
    written = directory / "config.yaml"
    if not written.is_file():
        raise ConfigError(f"{directory} holds no run: expected a config.yaml in it")
    config = from_yaml(written.read_text(encoding="utf-8"))
    return simulate(replace(config, run=replace(config.run, dir=str(directory))), progress=progress)


def splits_of(config: Config) -> tuple[Split, ...]:
    """The ways in which an evaluation leaves patients out."""
    evaluation = config.evaluation
    count = evaluation.folds if evaluation.name == "folds" else evaluation.repeats
    return tuple(
        Split(
            kind=evaluation.name,
            count=count,
            index=index,
            test_fraction=evaluation.test_fraction,
            seed=config.seed,
        )
        for index in range(count)
    )


def _claim(directory: Path, config: Config) -> None:
    """Writes the configuration into the run's folder, or checks that it is the one that is there."""
    path = directory / "config.yaml"
    if not path.exists():
        write_atomically(path, to_yaml(config).encode())
        return
    there = from_yaml(path.read_text(encoding="utf-8"))
    if replace(there, run=replace(there.run, dir=None)) != replace(config, run=replace(config.run, dir=None)):
        raise ConfigError(
            f"{directory} holds a run of another configuration (its config.yaml differs). "
            "Choose another run.dir, or continue that one with --resume."
        )


@dataclass(slots=True)
class _Simulation:
    """A run at work; `timing_s` fills as its steps end."""

    config: Config
    directory: Path
    progress: Progress
    timing_s: dict[str, float] = field(default_factory=dict)

    def run(self) -> None:
        config, task = self.config, tasks.build(self.config.task)
        with self._step("read data", 1):
            wards = open_wards(config, task)
        with self._step("public prior", 1):
            initial = initial_state(config)
        splits = splits_of(config)
        with self._step("federation", config.rounds * (len(splits) + 1)):
            whole = self._federate("all", Split(seed=config.seed))
            folds = [self._federate(f"{s.kind}-{s.index}", s) for s in splits]
        with self._step("comparisons", len(splits)):
            states = self._states(task, wards, splits, initial, folds)
        with self._step("forecasts", len(splits)):
            forecasts = self._judge_folds(task, wards, splits, states)
        chosen = headline_metrics({metric.name for metric in task.metrics()})
        with self._step("progress of sites", config.rounds + 1):
            rounds = self._rounds(task, wards, splits, folds, chosen)
        curves = self._curves(task, wards, splits, folds, initial, chosen)
        noiseless = self._without_noise(task, wards, splits)
        with self._step("intervals", 1):
            judged = self._judge(task, forecasts)
        began = time.monotonic()
        outcome = Outcome(
            config=config,
            task=task,
            whole=whole,
            wards=wards,
            splits=splits,
            forecasts=forecasts,
            judged=judged,
            rounds=tuple(rounds),
            curves=tuple(curves),
            noiseless=self._judge(task, {"global": noiseless}) if noiseless else None,
        )
        self.progress.step("report", 1)
        write_outcome(outcome, self.directory, self.timing_s, began)
        self.progress.advance(str(self.directory / "report.html"))
        self.progress.done()

    @contextmanager
    def _step(self, name: str, total: int) -> Iterator[None]:
        self.progress.step(name, total)
        began = time.monotonic()
        yield
        if total == 1:
            self.progress.advance()
        key = name.replace(" ", "_")
        self.timing_s[key] = round(self.timing_s.get(key, 0.0) + time.monotonic() - began, 3)

    def _federate(
        self, name: str, split: Split, left_out: tuple[str, ...] = (), config: Config | None = None
    ) -> FederationResult:
        return run_federation(
            config or self.config,
            directory=self.directory / "federations" / name,
            split=split,
            left_out=left_out,
            on_round=lambda number, _: self.progress.advance(f"{name}, round {number}"),
        )

    def _states(
        self,
        task: Task,
        wards: Mapping[str, Ward],
        splits: tuple[Split, ...],
        initial: Arrays,
        folds: list[FederationResult],
    ) -> list[States]:
        states = []
        for split, fold in zip(splits, folds, strict=True):
            references = train_references(self.config, task, wards, split, initial)
            states.append(replace(references, federated=fold.model))
            self.progress.advance()
        return states

    def _judge_folds(
        self, task: Task, wards: Mapping[str, Ward], splits: tuple[Split, ...], states: list[States]
    ) -> ByModel:
        parts = []
        for split, state in zip(splits, states, strict=True):
            parts.append(judge_fold(self.config, task, wards, split, state))
            self.progress.advance()
        return join_models(parts, splits)

    def _judge(self, task: Task, forecasts: ByModel) -> Judged:
        evaluation = self.config.evaluation
        return judge(
            forecasts,
            task.metrics(),
            samples=evaluation.bootstrap_samples,
            level=evaluation.level,
            seed=self.config.seed,
        )

    def _rounds(
        self,
        task: Task,
        wards: Mapping[str, Ward],
        splits: tuple[Split, ...],
        folds: list[FederationResult],
        chosen: tuple[str, ...],
    ) -> list[RoundRow]:
        """The global model of every round, judged by the simulation; nothing of it leaves a site."""
        network = models.build(self.config.model, task)
        rows = []
        for number in range(self.config.rounds + 1):
            found = global_forecasts(network, task, wards, splits, [f.model_after(number) for f in folds])
            figures = headline(task, found, chosen)
            for metric in chosen:
                values = {site: named[metric] for site, named in figures.items()}
                rows += [RoundRow(round=number, site=s, metric=metric, value=v) for s, v in values.items()]
                if values:
                    mean = sum(values.values()) / len(values)
                    rows.append(RoundRow(round=number, site="all", metric=metric, value=mean))
            self.progress.advance()
        return rows

    def _curves(
        self,
        task: Task,
        wards: Mapping[str, Ward],
        splits: tuple[Split, ...],
        folds: list[FederationResult],
        initial: Arrays,
        chosen: tuple[str, ...],
    ) -> list[CurveRow]:
        if not self.config.evaluation.curves or len(wards) < 2:
            return []
        everybody = Split(seed=self.config.seed)
        with self._step("federations without a site", self.config.rounds * len(wards)):
            without = {site: self._federate(f"without-{site}", everybody, (site,)).model for site in wards}
        few = min(len(splits), 5)
        with self._step("learning curves", few * (len(PATIENTS) + 1)):
            rows = new_hospital(
                self.config, task, wards, splits, without, initial, chosen, self.progress.advance
            )
            if isinstance(task, PathTask) and self.config.personal.name != "none":
                federated = [fold.model for fold in folds]
                rows += new_patient(
                    self.config, task, wards, splits, federated, chosen, self.progress.advance
                )
        return rows

    def _without_noise(self, task: Task, wards: Mapping[str, Ward], splits: tuple[Split, ...]) -> Any:
        """Forecasts of the same federation without clipping and noise: what privacy is held against."""
        if self.config.privacy.name == "none" or not self.config.evaluation.curves:
            return None
        open_terms = replace(self.config.privacy, name="none", epsilon=None, noise_multiplier=None)
        config = replace(self.config, privacy=open_terms)
        with self._step("federation without noise", self.config.rounds * len(splits)):
            folds = [self._federate(f"open-{s.kind}-{s.index}", s, config=config) for s in splits]
            network = models.build(config.model, task)
            return global_forecasts(network, task, wards, splits, [fold.model for fold in folds])
