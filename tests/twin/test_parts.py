"""A site that is cut between patients has the same windows as the whole."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
import torch

from conf import schema
from twin import tasks
from twin.site import Site
from twin.tasks.parts import cut, examples_of
from twin.tasks.protocol import Examples

START = pd.Timestamp("2026-01-01", tz="UTC").as_unit("us")


def _site(seed: int, patients: int) -> Site:
    """Patients with records of different lengths, of whom some have none."""
    draws = np.random.default_rng(seed)
    rows = []
    for number in range(patients):
        count = int(draws.choice([0, 5, 90, 300]))
        times = START + pd.to_timedelta(np.sort(draws.choice(2000, count, replace=False)), unit="min")
        for signal, share in (("carbohydrates", 0.1), ("glucose", 1.0), ("heart_rate", 0.5)):
            here = draws.random(count) < share
            frame = pd.DataFrame({"time": times[here], "value": draws.uniform(60, 180, int(here.sum()))})
            rows.append(frame.assign(patient_id=f"p{number:02d}", signal=signal))
    table = pd.concat(rows, ignore_index=True).assign(source="", quality="")
    table["time"] = pd.to_datetime(table["time"], utc=True).dt.as_unit("us")
    index = pd.Index([f"p{number:02d}" for number in range(patients)], dtype="str", name="patient_id")
    return Site(
        name="x",
        observations=table[["patient_id", "signal", "time", "value", "source", "quality"]],
        patients=pd.DataFrame({"age": np.arange(float(patients))}, index=index),
    )


@pytest.mark.parametrize("rows", [1, 400, 10**9])
@pytest.mark.parametrize("series", [True, False])
def test_windows_do_not_depend_on_where_a_site_is_cut(rows: int, series: bool) -> None:
    site, task = _site(7, 12), tasks.build(schema.Task())
    whole = task.examples(site)
    assert len(whole) > 100
    found = examples_of(task, list(cut(site, rows)), series=series)
    assert found.patients == whole.patients
    expected = whole if series else whole.without_series()
    for entry in fields(Examples):
        if entry.name != "patients":
            assert torch.equal(getattr(found, entry.name), getattr(expected, entry.name)), entry.name


@pytest.mark.parametrize("rows", [1, 50, 10**9])
def test_every_patient_and_every_row_is_in_one_part_in_order(rows: int) -> None:
    site = _site(3, 9)
    parts = list(cut(site, rows))
    pd.testing.assert_frame_equal(pd.concat([part.patients for part in parts]), site.patients)
    pd.testing.assert_frame_equal(pd.concat([part.observations for part in parts]), site.observations)
    nobody = Site(name="x", observations=site.observations.head(0), patients=site.patients.head(0))
    assert len(list(cut(nobody, rows))) == 1
