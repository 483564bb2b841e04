"""`twinward simulate`: one run, a sweep of runs, or one continued."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cli.words import OVERRIDE_DOC, output, parser, read, settings
from conf.errors import ConfigError

if TYPE_CHECKING:  # torch, Flower and Hydra come only when a run begins; --help does without
    from conf.schema import Config
    from simulate.progress import Progress
    from simulate.run import RunResult

DOC = "Train a federation of simulated hospitals, judge it against its baselines, write a report."
EXAMPLES = """\
runs that work:
  twinward simulate
  twinward simulate privacy.epsilon=2 rounds=30 run.dir=runs/strict
  twinward simulate data=folder data.path=studies sites=[hall,colas] run.forecasts=true
  twinward simulate -m privacy=patient,none seed=0,1,2 --jobs 2
  twinward simulate --resume runs/strict

The same settings lead to the same folder: a run that was stopped goes on, a finished one is shown again.
A sweep finds its finished runs by their settings, goes on with the others, and tries failed ones again.
"""


def run(name: str, words: list[str]) -> int:
    """The command; returns its exit code."""
    args = read(_parser(name), words)
    if args.resume is not None:
        if args.settings or args.multirun or args.jobs:
            raise ConfigError("--resume continues a run with the settings it has; leave the others out")
        return _resume(args.resume, as_json=args.json)
    if args.multirun:
        from cli.sweep import sweep

        return sweep(args.settings, as_json=args.json, jobs=args.jobs)
    if args.jobs is not None:
        raise ConfigError("--jobs says how many runs of a sweep go on at a time; it needs -m")
    from conf.load import load

    config = at_directory(load(args.settings))
    show(simulate_one(config), config.task.unit, as_json=args.json)
    return 0


def at_directory(config: Config, directory: Path | None = None) -> Config:
    """The configuration with the folder of its run written down, so that it can be told."""
    from conf.naming import run_directory

    chosen = run_directory(config) if directory is None else directory
    return replace(config, run=replace(config.run, dir=str(chosen)))


def simulate_one(config: Config) -> RunResult:
    """Run a configuration whose folder is written down."""
    from simulate.run import simulate

    return watched(lambda progress: simulate(config, progress=progress), Path(str(config.run.dir)))


def show(result: RunResult, unit: str, *, as_json: bool) -> None:
    """The result on stdout: a table and where the files lie, or summary.json as it is."""
    if as_json:
        print(json.dumps(result.summary, indent=2, allow_nan=False))
        return
    from simulate.table import show as show_table

    report = result.directory / "report.html"
    show_table(result.summary, output(), unit, report=report if report.exists() else result.directory)
    if (result.directory / "profile.json").exists():
        from simulate.profile import profile_lines

        print("\n".join(["", *profile_lines(json.loads((result.directory / "profile.json").read_text()))]))


def watched(work: Callable[[Progress], RunResult], directory: Path) -> RunResult:
    """Do the work with progress on stderr; when stopped by hand, say how to go on."""
    from rich.console import Console

    from simulate.progress import TerminalProgress

    _one_thread()
    try:
        with TerminalProgress(Console(stderr=True)) as progress:
            return work(progress)
    except KeyboardInterrupt:
        how = f"twinward simulate --resume {directory}"
        if not (directory / "config.yaml").exists():
            how = "the same command again"
        print(f"\nStopped; what is committed is kept. Go on with: {how}", file=sys.stderr)
        raise


def _one_thread() -> None:
    """Matrices here are small: threads of torch gain nothing alone, and beside other work they fight.

    Whoever sets OMP_NUM_THREADS is heeded.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(1)


def _resume(directory: Path, *, as_json: bool) -> int:
    written = directory / "config.yaml"
    if not written.is_file():
        raise ConfigError(f"{directory} is no run: {_no_run(directory)}")
    from simulate.folder import configuration_of
    from simulate.run import resume

    unit = configuration_of(directory).task.unit
    show(watched(lambda progress: resume(directory, progress=progress), directory), unit, as_json=as_json)
    return 0


def _no_run(directory: Path) -> str:
    if (directory / "sweep.csv").is_file():
        return "it holds a sweep, which the same command continues"
    why = "it has no config.yaml" if directory.is_dir() else "there is no such folder"
    return f"{why}; runs lie in runs/ unless run.dir is given"


def _parser(name: str) -> argparse.ArgumentParser:
    words = parser(name, DOC, epilog=f"{EXAMPLES}\n{settings()}")
    words.add_argument("settings", nargs="*", metavar="key=value", help=OVERRIDE_DOC)
    words.add_argument(
        "-m",
        "--multirun",
        action="store_true",
        help="run every combination of values with commas: seed=0,1,2",
    )
    words.add_argument(
        "--jobs", type=_jobs, metavar="N", help="runs of a sweep at a time (default: one for each core)"
    )
    words.add_argument("--resume", type=Path, metavar="RUN", help="continue the run in this folder")
    words.add_argument("--json", action="store_true", help="print summary.json instead of a table")
    return words


def _jobs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 1024; {text!r} came")
    return int(text)
