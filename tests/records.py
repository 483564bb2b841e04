"""Small records of patients, made by hand or drawn, for tests of what is learnt from them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from conf import schema
from twin import tasks
from twin.connectors.virtual import virtual_sites
from twin.signals import SIGNALS as catalogue
from twin.site import Site
from twin.tasks.glucose import HORIZONS_MIN, GlucoseTask
from twin.tasks.protocol import Examples

# Patient, signal, minutes since `START`, value.
Row = tuple[str, str, float, float]

START = pd.Timestamp("2024-03-05T06:00:00Z")
START_US = START.value // 1000
SIGNALS = ("insulin_bolus", "carbohydrates", "energy_intake", "insulin_basal", "heart_rate", "steps")


def site_of(rows: Iterable[Row], name: str = "here") -> Site:
    """A site that holds these rows, in the order that the contract asks for."""
    listed = list(rows)
    frame = pd.DataFrame(listed, columns=["patient_id", "signal", "minute", "value"])
    frame["time"] = (START + pd.to_timedelta((frame["minute"] * 60).round(), unit="s")).astype(
        "datetime64[us, UTC]"
    )
    frame = frame.drop_duplicates(["patient_id", "signal", "time"])
    frame = frame.sort_values(["patient_id", "signal", "time"], ignore_index=True)
    frame["value"] = frame["value"].astype(float)
    frame["source"], frame["quality"] = "test", ""
    people = pd.Index(sorted(set(frame["patient_id"])), name="patient_id")
    columns = ["patient_id", "signal", "time", "value", "source", "quality"]
    return Site(name=name, observations=frame[columns], patients=pd.DataFrame(index=people))


def drawn_rows(seed: int, step_min: int, hours: float = 7.0) -> list[Row]:
    """Some hours of three patients: glucose with gaps and jitter, other signals here and there.

    The second has energy and no carbohydrates; the third has glucose alone. Doses fall on edges of
    slots as well as between them.
    """
    draws = np.random.default_rng(seed)
    rows: list[Row] = []
    for patient in ("p1", "p2", "p3"):
        minutes = np.arange(0.0, hours * 60, step_min) + draws.uniform(0, 3)
        minutes = minutes + draws.uniform(-0.5, 0.5, len(minutes)) * draws.integers(0, 2)
        there = draws.random(len(minutes)) > 0.2
        gap = draws.uniform(0, hours * 60)
        there &= (minutes < gap) | (minutes > gap + draws.uniform(0, 100))
        level = 140 + np.cumsum(draws.normal(0, 6, len(minutes)))
        rows += [(patient, "glucose", m, v) for m, v in zip(minutes[there], level[there], strict=True)]
        if patient == "p3":
            continue
        for signal in SIGNALS:
            if signal == ("energy_intake" if patient == "p1" else "carbohydrates"):
                continue
            times = draws.uniform(0, hours * 60, draws.integers(0, 8))
            times = np.concatenate([times, draws.choice(minutes, 2) - 5.0 * draws.integers(0, 6, 2)])
            rows += [(patient, signal, float(m), float(draws.uniform(1, 90))) for m in times if m > 0]
    return rows


def glucose_task(stride_min: int = 15) -> GlucoseTask:
    task = tasks.build(schema.Task(stride_min=stride_min))
    assert isinstance(task, GlucoseTask)
    return task


@lru_cache(maxsize=4)
def virtual(sites: int = 3, patients: int = 10, days: int = 3, seed: int = 0) -> tuple[Site, ...]:
    """Virtual hospitals, made once per process."""
    return virtual_sites(sites=sites, patients_per_site=patients, days=days, seed=seed)


@lru_cache(maxsize=4)
def virtual_examples(number: int = 0) -> Examples:
    """Windows of one of the virtual hospitals, made once per process; not to be changed in place."""
    return glucose_task().examples(virtual()[number])


def toy_task(features: int) -> GlucoseTask:
    """The glucose task on a table of so many columns, of which the last is one."""
    names = (*(f"feature_{n}" for n in range(features - 1)), "one")
    return GlucoseTask(stride_min=15, low_mg_dl=70.0, alarm_mg_dl=80.0, columns=names)


def toy_examples(
    table_NF: np.ndarray, change_NH: np.ndarray, patient_N: np.ndarray, observed_NH: np.ndarray | None = None
) -> Examples:
    """Windows with a given table and given changes of glucose (mg/dL), a quarter of an hour apart."""
    n = len(table_NF)
    seen = np.ones((n, len(HORIZONS_MIN)), bool) if observed_NH is None else observed_NH
    place_N = np.concatenate([np.arange(count) for count in np.bincount(patient_N)] or [np.arange(0)])
    return Examples(
        series_NTC=torch.zeros(n, 0, 8),
        static_NS=torch.zeros(n, 9),
        table_NF=torch.from_numpy(table_NF).float(),
        anchor_N=torch.full((n,), 150.0),
        target_NH=torch.from_numpy(np.where(seen, 150.0 + change_NH, 0.0)).float(),
        observed_NH=torch.from_numpy(seen),
        patient_N=torch.from_numpy(patient_N.astype(np.int64)),
        time_us_N=torch.from_numpy(START_US + place_N.astype(np.int64) * 900_000_000),
        patients=tuple(f"p{n}" for n in range(int(patient_N.max()) + 1 if n else 1)),
    )


def write_sites(root: Path, patients: dict[str, int]) -> Path:
    """A federation folder of virtual people: so many of them at each named site."""
    for (name, count), site in zip(patients.items(), virtual(), strict=False):
        chosen = set(site.patients.index[:count])
        frame = site.observations[site.observations["patient_id"].isin(chosen)]
        frame = frame.assign(unit=[catalogue[signal].unit for signal in frame["signal"]])
        (root / name).mkdir(parents=True)
        frame[["patient_id", "time", "signal", "value", "unit"]].to_csv(
            root / name / "observations.csv", index=False
        )
    return root
