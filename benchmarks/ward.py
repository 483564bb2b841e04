"""Print how long the ward takes at 10,000 patients.

Run it from the root:  OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.ward
"""

from __future__ import annotations

import resource
import time

import numpy as np
import pandas as pd
import torch

from client.trainer import load_state
from conf import schema
from twin import models, prior, tasks
from twin.ward.forecaster import Forecaster
from twin.ward.ward import Ward

PATIENTS, MONITORS = 10_000, 1_000
START = pd.Timestamp("2026-01-01", tz="UTC")


def main() -> None:
    """One line for each figure: median of wall time, and CPU time."""
    torch.set_num_threads(1)
    ward, draws = Ward(forecasters=[_forecaster()]), np.random.default_rng(0)
    whole = [_rows(turn, draws) for turn in range(30)]
    began = time.perf_counter()
    for rows in whole:
        ward.update(rows)
    say(f"{30 * PATIENTS:,} observations in batches of 10,000: {time.perf_counter() - began:.2f} s")
    single = [_rows(31 + turn, draws).iloc[[turn]] for turn in range(200)]
    now = START + pd.Timedelta(minutes=5 * 29.5)
    patient = single[0]["patient_id"].iloc[0]
    for name, calls in (
        ("one observation of one patient", [lambda rows=rows: ward.update(rows) for rows in single]),
        ("all rules for one patient", [lambda: ward.check(now, [patient])] * 50),
        ("one patient's twin", [lambda: ward.twin(patient, now)] * 50),
        ("forecasts of everybody", [lambda: ward.forecasts(now)] * 5),
        ("all rules for everybody", [lambda: ward.check(now)] * 5),
    ):
        wall, cpu = [], time.process_time()
        for call in calls:
            began = time.perf_counter()
            call()
            wall.append(time.perf_counter() - began)
        each = (time.process_time() - cpu) / len(calls)
        say(f"{name:<32} {1e3 * float(np.median(wall)):9.2f} ms, CPU {1e3 * each:9.2f} ms")
    _monitors()
    say(f"memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def _monitors() -> None:
    """Hypoxemia of the next five minutes, from four hours of three signals, one row a minute each."""
    task = tasks.build(schema.Task(name="hypoxemia", stride_min=1))
    ward = Ward(forecasters=[Forecaster.build(task, models.build(schema.Model(), task), version="1")])
    draws = np.random.default_rng(1)
    for turn in range(240):
        for signal, usual in (("spo2", 96.0), ("pulse_rate", 80.0), ("respiratory_rate", 16.0)):
            rows = _rows(turn, draws).head(MONITORS)
            value = np.round(usual + draws.normal(0, 1, MONITORS))
            time_of = START + pd.to_timedelta(np.full(MONITORS, turn), unit="min")
            ward.update(rows.assign(signal=signal, value=value, time=time_of))
    now, wall, cpu = START + pd.Timedelta(minutes=239.5), [], time.process_time()
    for _ in range(5):
        began = time.perf_counter()
        ward.forecasts(now)
        wall.append(time.perf_counter() - began)
    each = (time.process_time() - cpu) / 5
    name = f"hypoxemia of {MONITORS:,}"
    say(f"{name:<32} {1e3 * float(np.median(wall)):9.2f} ms, CPU {1e3 * each:9.2f} ms")


def _forecaster() -> Forecaster:
    task, config = tasks.build(schema.Task()), schema.Config()
    network = models.build(config.model, task)
    load_state(network, prior.initial_state(config))
    return Forecaster.build(task, network, version="1")


def _rows(turn: int, draws: np.random.Generator) -> pd.DataFrame:
    """A glucose reading of everybody, five minutes after the one before."""
    return pd.DataFrame(
        {
            "patient_id": pd.Series([f"p{n:05d}" for n in range(PATIENTS)], dtype="str"),
            "signal": pd.Series("glucose", index=range(PATIENTS), dtype="str"),
            "time": START + pd.to_timedelta(np.full(PATIENTS, 5 * turn), unit="min"),
            "value": 120 + 10 * np.sin(turn / 9) + draws.normal(0, 2, PATIENTS),
            "source": pd.Series("feed", index=range(PATIENTS), dtype="str"),
            "quality": pd.Series("", index=range(PATIENTS), dtype="str"),
        }
    )


def say(text: str) -> None:
    """Prints at once, also into a file."""
    print(text, flush=True)


if __name__ == "__main__":
    main()
