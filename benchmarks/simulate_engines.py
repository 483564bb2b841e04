"""What a simulated round costs: engine local and engine batched beside a bare PyTorch loop.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.simulate_engines --sites 8 64 512

FedAvg, an MLP of about 20,000 parameters, one local epoch. Each site has 256 patients of one window;
an epoch in batches of 32 is 8 steps at a sampling rate of 32/256, in which our patients take turns (with
`--private`: Poisson, 32 on average). The bare loop draws batches of the same size from the same tensors,
takes the same 8 steps with torch.optim-free SGD at each site in turn, and averages. It has no
messages, no ledger, no file. Windows are made up: only how long things take is looked at.

Sites' windows are put into memory instead of being read from files; everything else is the engine as
`twinward simulate` runs it: plan, ledgers on disk, egress gate, durable rounds. Seconds are wall time
per round after the first one, seconds of CPU beside them, memory is the peak of the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import client.site
from conf.load import load
from conf.schema import Config
from simulate.federation import run_federation
from twin import models, prior, tasks
from twin.tasks.protocol import Examples, Task

PATIENTS, BATCH, HIDDEN = 256, 32, 128
STEPS = PATIENTS // BATCH
ENGINES = ("bare", "local", "batched")


@dataclass(slots=True)
class Clock:
    """Marks of wall time and of CPU time at the end of each round."""

    marks: list[tuple[float, float]] = field(default_factory=list)

    def mark(self) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))

    def per_round(self) -> tuple[float, float]:
        """Median seconds of wall and of CPU per round after the first."""
        wall, cpu = np.median(np.diff(np.array(self.marks), axis=0), axis=0)
        return float(wall), float(cpu)


def settings(engine: str, rounds: int, *, model: str, private: bool) -> Config:
    """The configuration that an engine runs."""
    privacy = ["privacy=patient", "privacy.noise_multiplier=1.0", "privacy.epsilon=null"]
    return load(
        [
            "task=heart",
            "data=folder",
            f"data.path={tempfile.gettempdir()}",
            f"model={model}",
            *([] if model == "linear" else [f"model.hidden={HIDDEN}"]),
            f"engine={engine}",
            "engine.device=cpu",
            *(privacy if private else ["privacy=none"]),
            f"privacy.sampling_rate={BATCH / PATIENTS}",
            f"strategy.local_steps={STEPS}",
            "strategy.learning_rate=0.05",
            f"rounds={rounds}",
        ]
    )


def make_sites(task: Task, sites: int) -> dict[str, Examples]:
    """Windows of made-up patients, one each."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for number in range(1, sites + 1):
        table_NF = torch.randn(PATIENTS, len(task.columns), generator=generator)
        table_NF[:, -1] = 1.0
        chance_N = torch.sigmoid(table_NF[:, 0] + 0.5 * table_NF[:, 1])
        found[f"hospital_{number:04d}"] = Examples(
            series_NTC=torch.zeros(PATIENTS, 0, 0),
            static_NS=torch.zeros(PATIENTS, 0),
            table_NF=table_NF,
            anchor_N=torch.zeros(PATIENTS),
            target_NH=torch.bernoulli(chance_N, generator=generator)[:, None],
            observed_NH=torch.ones(PATIENTS, 1, dtype=torch.bool),
            patient_N=torch.arange(PATIENTS),
            time_us_N=torch.zeros(PATIENTS, dtype=torch.int64),
            patients=tuple(f"p{patient:03d}" for patient in range(PATIENTS)),
        )
    return found


def bare(config: Config, task: Task, sites: dict[str, Examples], rounds: int, clock: Clock) -> None:
    """FedAvg as one would write it in a notebook."""
    network = models.build(config.model, task)
    state = {name: torch.from_numpy(value) for name, value in prior.initial_state(config).items()}
    generator = torch.Generator().manual_seed(2)
    names = [name for name, _ in network.named_parameters()]
    for _ in range(rounds):
        total = {name: torch.zeros_like(state[name]) for name in names}
        for examples in sites.values():
            network.load_state_dict(state)
            for _ in range(STEPS):
                chosen = torch.nonzero(torch.rand(PATIENTS, generator=generator) < BATCH / PATIENTS)[:, 0]
                part = examples.at(chosen)
                loss = task.loss(network(part), part).mean()
                gradients = torch.autograd.grad(loss, list(network.parameters()))
                with torch.no_grad():
                    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                        parameter.sub_(config.strategy.learning_rate * gradient)
            for name, parameter in network.named_parameters():
                total[name] += (parameter.detach() - state[name]) / len(sites)
        state |= {name: state[name] + total[name] for name in names}
        clock.mark()


def measure(engine: str, sites: int, rounds: int, *, model: str, private: bool) -> dict[str, float]:
    """Seconds per round and memory of one engine, in this process."""
    torch.set_num_threads(1)
    config = settings("local" if engine == "bare" else engine, rounds, model=model, private=private)
    task = tasks.build(config.task)
    data, clock = make_sites(task, sites), Clock()
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start_s = time.perf_counter()
    if engine == "bare":
        bare(config, task, data, rounds, clock)
    else:
        client.site._data = lambda _: (task, data)  # type: ignore[assignment]  # windows from memory
        with tempfile.TemporaryDirectory() as folder:
            run_federation(config, directory=Path(folder), on_round=lambda *_: clock.mark())
    wall_s, cpu_s = clock.per_round()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    first_s = clock.marks[0][0] - start_s
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "start_s": first_s - wall_s,
        "peak_mb": peak / 1024,
        "base_mb": began / 1024,
    }


def main() -> None:
    """One process per engine and number of sites, one after the other, and a table."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--sites", type=int, nargs="+", default=[8, 64, 512])
    args.add_argument("--rounds", type=int, default=6)
    args.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    args.add_argument("--model", choices=("linear", "mlp"), default="mlp")
    args.add_argument("--private", action="store_true")
    args.add_argument("--one", action="store_true", help="measure here, print JSON")
    chosen = args.parse_args()
    if chosen.one:
        figures = measure(
            chosen.engines[0],
            chosen.sites[0],
            chosen.rounds,
            model=chosen.model,
            private=chosen.private,
        )
        print(json.dumps(figures))
        return
    print("| sites | engine | s a round | CPU s | times bare (CPU) | ms a site (CPU) | start s | peak MB |")
    print("|---|---|---|---|---|---|---|---|")
    for sites in chosen.sites:
        base = None
        for engine in chosen.engines:
            words = [sys.executable, "-m", "benchmarks.simulate_engines", "--one", "--engines", engine]
            words += ["--sites", str(sites), "--rounds", str(chosen.rounds), "--model", chosen.model]
            words += ["--private"] if chosen.private and engine != "bare" else []
            done = subprocess.run(words, check=True, capture_output=True, text=True)  # noqa: S603  this module
            found = json.loads(done.stdout.splitlines()[-1])
            base = base or found["cpu_s"]
            print(
                f"| {sites} | {engine} | {found['wall_s']:.4f} | {found['cpu_s']:.4f} |"
                f" {found['cpu_s'] / base:.2f} | {1e3 * found['cpu_s'] / sites:.2f} |"
                f" {found['start_s']:.1f} | {found['peak_mb']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
