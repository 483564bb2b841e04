"""Runs one simulator in a process of its own and watches its memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.simulate.data import judged_loss
from benchmarks.simulate.job import Job, descendants

_POLL_S = 0.2
_PAGE = os.sysconf("SC_PAGE_SIZE")
_ROOT = Path(__file__).parents[2]
_QUIET = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": str(_ROOT),
}


_PINNED = "OPENBLAS_CORETYPE"
"""Gives numpy's products kernels of another processor; each simulator is judged with those of this one."""


class RunFailed(Exception):
    """A simulator ended badly or not at all; the text is the end of what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one run gave.

    Attributes:
        round_s: median wall time of a round after the first.
        cpu_s: CPU time per round after the first, of all its processes; NaN where it is not known.
        start_s: from the start of the process to the end of the first round, less one round.
        peak_mb: greatest sum of the memory of all its processes, pages that they share counted once.
        loss: of the final model on windows of no site.
        model: its parameters in one vector.
    """

    round_s: float
    cpu_s: float
    start_s: float
    peak_mb: float
    loss: float
    model: np.ndarray


def run(python: Path, module: str, job: Job, *, most_s: float) -> Measured:
    """One measurement.

    Args:
        python: the interpreter of the simulator's environment.
        module: of this package.
        most_s: seconds after which it is given up.

    Raises:
        RunFailed: it ended with an error, or was given up.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = replace(job, out=str(Path(folder) / "out"), launched_s=time.time())
        words = [str(python), "-m", f"benchmarks.simulate.{module}", job.to_json()]
        said = Path(folder) / "said.txt"
        with said.open("wb") as log:
            child = subprocess.Popen(  # noqa: S603  words of this file
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={name: value for name, value in os.environ.items() if name != _PINNED} | _QUIET,
                start_new_session=True,
            )
            peak_mb = _watch(child, most_s)
        if child.returncode or not Path(job.out + ".json").exists():
            end = said.read_text(errors="replace")[-800:].strip()
            raise RunFailed(f"exit code {child.returncode}: {end}")
        return _read(job, peak_mb)


def _watch(child: subprocess.Popen[bytes], most_s: float) -> float:
    """Peak memory (MB) of a child and its descendants; waits until the child is gone."""
    peak, most_resident = 0, 0
    until = time.monotonic() + most_s
    while child.poll() is None:
        processes = (child.pid, *descendants(child.pid))
        resident = sum(_resident(process) for process in processes)
        # To find out what is shared takes the processes time: it is asked for when there is more than before.
        if resident > 1.02 * most_resident:
            most_resident = resident
            peak = max(peak, sum(_proportional(process) for process in processes))
        if time.monotonic() > until:
            started = descendants(child.pid)
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            for process in started:
                _end(process)
            raise RunFailed(f"given up after {most_s:.0f} s")
        time.sleep(_POLL_S)
    return peak / 2**20


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE
    except OSError:
        return 0


def _proportional(process: int) -> int:
    """Memory in bytes; of pages that several processes share, each has its part."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _end(process: int) -> None:
    """Ends a process that the child had started; it may be gone already."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def _read(job: Job, peak_mb: float) -> Measured:
    marks = json.loads(Path(job.out + ".json").read_text())
    walls_s, cpus_s = np.array(marks["walls_s"]), np.array(marks["cpus_s"])
    if len(walls_s) != job.rounds:
        raise RunFailed(f"{len(walls_s)} rounds were marked; {job.rounds} were asked for")
    with np.load(job.out + ".npz") as saved:
        state = {name: saved[name] for name in saved.files}
    round_s = float(np.median(np.diff(walls_s)))
    return Measured(
        round_s=round_s,
        cpu_s=float((cpus_s[-1] - cpus_s[0]) / (job.rounds - 1)) if len(cpus_s) else float("nan"),
        start_s=float(walls_s[0] - job.launched_s - round_s),
        peak_mb=peak_mb,
        loss=judged_loss(job, state),
        model=np.concatenate([state[name].ravel() for name in sorted(state)]),
    )
