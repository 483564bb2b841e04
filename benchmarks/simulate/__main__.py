"""Simulators side by side, in one command. README.md in this folder tells what is measured and how.

.venv/bin/python -m benchmarks.simulate --quick
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.simulate import data
from benchmarks.simulate.environments import REQUIREMENTS, TORCH, EnvironmentMissing, python_of
from benchmarks.simulate.job import Job
from benchmarks.simulate.processes import RunFailed, run
from benchmarks.simulate.simulators import SIMULATORS
from benchmarks.simulate.tables import Cell, Run, page, write

# Rounds of a run by model and number of sites; the first is not timed.
ROUNDS = {("mlp", 8): 13, ("mlp", 64): 9, ("mlp", 512): 5, ("gru", 64): 3}
MOST_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured: cells in turn, in each of them simulators in turn, all of it `repeats` times."""

    cells: tuple[Cell, ...]
    simulators: tuple[str, ...]
    repeats: int
    envs: Path


def main() -> None:
    """Measures, and writes a table (.md) and all figures (.json)."""
    chosen = _arguments().parse_args()
    plan = Plan(
        cells=_cells(chosen),
        simulators=_simulators(chosen),
        repeats=1 if chosen.quick else chosen.repeats,
        envs=chosen.envs.expanduser(),
    )
    out = (chosen.out or plan.envs / "results").expanduser()
    began = datetime.now(UTC)
    machine = f"{platform.machine()}, Python {platform.python_version()}, {TORCH}, {began:%Y-%m-%d %H:%M} UTC"
    runs: list[Run] = []
    for entry in measure(plan, pythons(plan)):
        print(entry.line(), flush=True)
        runs.append(entry)
        write(out, runs, plan.cells, machine)
    print(page(runs, plan.cells, machine))
    print(f"written: {out}.md and {out}.json")


def pythons(plan: Plan) -> dict[str, Path | str]:
    """The interpreter of each environment that is needed, or why there is none."""
    found: dict[str, Path | str] = {}
    for name in sorted({SIMULATORS[key].environment for key in plan.simulators}):
        try:
            found[name] = Path(sys.executable) if name not in REQUIREMENTS else python_of(name, plan.envs)
        except EnvironmentMissing as error:
            found[name] = f"not installed: {error}"
    return found


def measure(plan: Plan, python: dict[str, Path | str]) -> Iterator[Run]:
    """Each run as it ends; one that failed has its error, and is not tried again in that cell."""
    failed: set[tuple[str, Cell]] = set()
    with tempfile.TemporaryDirectory() as folder:
        for model in sorted({cell.model for cell in plan.cells}):
            (Path(folder) / model).mkdir()
            most = max(cell.sites for cell in plan.cells if cell.model == model)
            data.write(Path(folder) / model, model, most)
        for repeat in range(plan.repeats):
            for cell in plan.cells:
                turn = repeat % len(plan.simulators)
                for key in plan.simulators[turn:] + plan.simulators[:turn]:
                    if cell.takes(SIMULATORS[key]) and (key, cell) not in failed:
                        done = _one(key, cell, python[SIMULATORS[key].environment], Path(folder))
                        failed |= {(key, cell)} if done.error else set()
                        yield done


def _one(key: str, cell: Cell, python: Path | str, folder: Path) -> Run:
    simulator = SIMULATORS[key]
    job = Job(
        model=cell.model,
        sites=cell.sites,
        rounds=cell.rounds,
        data=str(folder / cell.model),
        out="",
        workers=simulator.workers,
        mode=simulator.mode,
    )
    if isinstance(python, str):
        return Run(simulator=key, cell=cell, error=python)
    try:
        return Run(simulator=key, cell=cell, measured=run(python, simulator.module, job, most_s=MOST_S))
    except RunFailed as error:
        return Run(simulator=key, cell=cell, error=str(error))


def _cells(chosen: argparse.Namespace) -> tuple[Cell, ...]:
    sites = chosen.sites or ([8, 64] if chosen.quick else [8, 64, 512])
    cells = [Cell(model="mlp", sites=n, rounds=ROUNDS.get(("mlp", n), 3)) for n in sites]
    if "mlp" not in chosen.models:
        cells = []
    if "gru" in chosen.models and not chosen.quick:
        cells += [Cell(model="gru", sites=n, rounds=ROUNDS.get(("gru", n), 3)) for n in chosen.gru_sites]
    if chosen.large:
        cells.append(Cell(model="mlp", sites=4096, rounds=3, ours_only=True))
    return tuple(cells)


def _simulators(chosen: argparse.Namespace) -> tuple[str, ...]:
    if chosen.peers:
        return tuple(key for key in SIMULATORS if key in chosen.peers)
    return tuple(key for key, value in SIMULATORS.items() if value.usual or chosen.nvflare)


def _arguments() -> argparse.ArgumentParser:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--quick", action="store_true", help="MLP, 8 and 64 sites, once")
    args.add_argument("--peers", nargs="+", choices=list(SIMULATORS), help="these alone")
    args.add_argument("--nvflare", action="store_true", help="NVFlare too, at 8 sites (minutes)")
    args.add_argument("--models", nargs="+", choices=("mlp", "gru"), default=["mlp", "gru"])
    args.add_argument("--sites", type=int, nargs="+", help="of the MLP; 8 64 512 by default")
    args.add_argument("--gru-sites", type=int, nargs="+", default=[64])
    args.add_argument("--large", action="store_true", help="4,096 sites as well, ours alone")
    args.add_argument("--repeats", type=int, default=2)
    args.add_argument("--envs", type=Path, default=Path("~/.cache/twinward-peers"))
    args.add_argument("--out", type=Path, help="without ending; `results` beside the environments by default")
    return args


if __name__ == "__main__":
    main()
