"""Our engines: plan, ledgers on disk, egress gate, durable rounds, as `twinward simulate` runs them.

Sites' windows are put into memory instead of being read from a folder of recordings. Our patients
take turns in a random order, 32 of 256 in a step, where the others take them as they lie: as many steps
of the same size, on other batches.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import client.site
from benchmarks.simulate.data import NAMES, examples_of_sites, settings
from benchmarks.simulate.job import Clock, finish, job_of_this_process, network_at_start
from simulate.federation import run_federation
from twin import tasks


def main() -> None:
    """Runs the job that the command line gives."""
    job, clock = job_of_this_process(), Clock()
    config = settings(job.model, job.mode, job.rounds)
    if job.mode == "batched":
        config.engine.processes = job.workers
    data = (tasks.build(config.task), examples_of_sites(job))
    client.site._data = lambda _: data  # type: ignore[assignment]  # windows from memory
    with tempfile.TemporaryDirectory() as folder:
        result = run_federation(config, directory=Path(folder), on_round=lambda *_: clock.mark())
    network = network_at_start(job)
    trained = set(network.state_dict())
    state = {NAMES.get(name, name): torch.from_numpy(value) for name, value in result.model.items()}
    network.load_state_dict({name: value for name, value in state.items() if name in trained})
    finish(job, clock, network)


if __name__ == "__main__":
    main()
