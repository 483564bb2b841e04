"""A ward says of hypoxemia what the task's own windows say, by each patient's model, and rings once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from conf import schema
from tests.records import Row, site_of
from twin import models, tasks
from twin.connectors.convert import CONVERTERS
from twin.errors import DataError
from twin.models.network import Network
from twin.site import Site
from twin.tasks.hypoxemia import HypoxemiaTask
from twin.tasks.windows import microseconds
from twin.ward.forecaster import Forecaster
from twin.ward.ward import Ward


def task_of(horizon_min: int) -> HypoxemiaTask:
    built = tasks.build(schema.Task(name="hypoxemia", horizon_min=horizon_min, stride_min=1))
    assert isinstance(built, HypoxemiaTask)
    return built


def network_of(task: HypoxemiaTask, **weights: float) -> Network:
    """Log odds that are a weighted sum of columns of the table; drawn weights if none are named."""
    network = models.build(schema.Model(), task)
    draws = torch.Generator().manual_seed(1)
    network.head.weight.data = 0.3 * torch.randn(network.head.weight.shape, generator=draws)
    if weights:
        network.head.weight.data.zero_()
    for name, weight in weights.items():
        network.head.weight.data[0, task.columns.index(name)] = weight
    return network


def breathing(hours: float) -> list[Row]:
    """Three people with a monitor of one value a minute, who are given oxygen now and then."""
    draws = np.random.default_rng(3)
    rows: list[Row] = []
    for patient in ("a", "b", "c"):
        minute = np.arange(0.0, 60 * hours)
        level = np.clip(93 + np.cumsum(draws.normal(0, 0.4, len(minute))) % 8, 80, 100).round()
        rows += [(patient, "spo2", m, v) for m, v in zip(minute, level, strict=True)]
        rows += [(patient, "pulse_rate", m, 80 + 9 * np.sin(m / 40)) for m in minute]
        rows += [(patient, "respiratory_rate", m, 18 + draws.normal(0, 2)) for m in minute[::7]]
        # Set once: the history's first hours still see it many hours later.
        rows += [(patient, "fio2", 5.0, 40.0), (patient, "temperature", 9.0, 37.6)]
    return rows


def test_rows_that_stream_through_a_ward_give_the_probabilities_of_the_task_s_windows() -> None:
    """Half an hour ahead: the windows look ten hours back, and the ward drops what is older than they."""
    task = task_of(30)
    network, site = network_of(task), site_of(breathing(hours=22))
    examples = task.examples(site)
    with torch.no_grad():
        said = torch.sigmoid(network(examples.without_series()).double())[:, 0].numpy()
    ward = Ward(forecasters=[Forecaster.build(task, network, version="1")])
    rows = site.observations.sort_values("time", kind="stable", ignore_index=True)
    compared = 0
    for number, (_, batch) in enumerate(rows.groupby(rows["time"].dt.floor("10min"))):
        ward.update(batch)
        if number < 6 or number % 8:
            continue
        told = ward.forecasts(batch["time"].max()).set_index("patient_id")
        now_us = int(told["made"].iloc[0].as_unit("us").asm8.astype(np.int64))
        for at in np.flatnonzero(examples.time_us_N.numpy() == now_us):
            patient = examples.patients[int(examples.patient_N[at])]
            assert told.loc[patient, "probability"] == pytest.approx(said[at], abs=1e-6)
            compared += 1
    assert compared > 30
    assert ward.counts()["recent_rows"] < 0.9 * len(rows)


@pytest.mark.parametrize("study", ["varfio2", "bidmc"])
def test_a_monitor_s_recording_streams_through_a_ward_as_the_task_reads_it(
    study: str, recordings: Path
) -> None:
    found = CONVERTERS[study](recordings / study)[0].observations
    assert found is not None
    some = found[found["patient_id"].isin(sorted(found["patient_id"].unique())[:8])]
    rows = some.assign(source="", quality="").sort_values("time", kind="stable", ignore_index=True)
    site = Site(
        name=study,
        observations=rows.sort_values(["patient_id", "signal", "time"], ignore_index=True),
        patients=pd.DataFrame(index=pd.Index(sorted(rows["patient_id"].unique()), name="patient_id")),
    )
    task = task_of(5)
    examples = task.examples(site)
    forecaster = Forecaster.build(task, network_of(task), version="1")
    said = torch.sigmoid(forecaster.outputs(examples.without_series()))[:, 0].numpy()
    ward, done = Ward(forecasters=[forecaster]), 0
    time_us = microseconds(rows["time"])
    compared = 0
    for now_us in np.unique(examples.time_us_N.numpy())[::3]:
        until = int(np.searchsorted(time_us, now_us, side="right"))
        ward.update(rows.iloc[done:until])
        done = until
        told = ward.forecasts(pd.Timestamp(now_us, unit="us", tz="UTC")).set_index("patient_id")
        for at in np.flatnonzero(examples.time_us_N.numpy() == now_us):
            patient = examples.patients[int(examples.patient_N[at])]
            assert told.loc[patient, "probability"] == pytest.approx(said[at], abs=1e-6)
            compared += 1
    assert compared >= 10


def test_each_patient_s_offset_moves_the_patient_alone_and_goes_with_the_patient() -> None:
    task, site = task_of(5), site_of(breathing(hours=3))
    network = network_of(task)
    examples = task.examples(site).without_series()
    arrays = {"shift_D": np.full(len(task.columns), 0.05), "precision": np.asarray(3.0)}
    offsets = {"offset_P": np.array([1.5, 0.0])}
    forecaster = Forecaster.build(
        task, network, version="7", site=arrays, personal=offsets, patients=("b", "c")
    )
    by_site = Forecaster.build(task, network, version="7", site=arrays)
    moved = (forecaster.outputs(examples) - by_site.outputs(examples))[:, 0].numpy()
    of_b = examples.patient_N.numpy() == examples.patients.index("b")
    np.testing.assert_allclose(moved, np.where(of_b, 1.5, 0.0), atol=1e-12)
    assert [forecaster.model_of(p) for p in ("a", "b", "c")] == ["site 7", "personal 7", "site 7"]

    ward, now = Ward.from_site(site, forecasters=[forecaster]), site.observations["time"].max()
    ward.forecasts(now)
    (ahead,) = ward.twin("b", now).forecasts
    assert (ahead.task, ahead.model, ahead.horizon_min) == ("hypoxemia", "personal 7", 5)
    assert ahead.probability is not None and 0 < ahead.probability < 1 and ahead.middle is None
    assert f"next 5 min: hypoxemia {100 * ahead.probability:.0f} % (personal 7)" in str(ward.twin("b", now))
    before = ward.forecasts(now).set_index("patient_id")["probability"]
    ward.forget("b")
    ward.update(site.observations[site.observations["patient_id"] == "b"])
    after = ward.forecasts(now).set_index("patient_id")
    assert after["model"].unique().tolist() == ["site 7"]
    back = np.log(before / (1 - before)) - np.log(after["probability"] / (1 - after["probability"]))
    np.testing.assert_allclose(back["b"], 1.5, atol=1e-9)
    with pytest.raises(DataError, match="2 personal models came with 1"):
        Forecaster.build(task, network, version="7", site=arrays, personal=offsets, patients=("b",))


def test_a_risk_that_trembles_rings_once_escalates_until_acknowledged_and_ends_when_it_is_over() -> None:
    """The probability is 5 % at 96 %, 38 % at 93 and 58 % at 92: the rule begins at 50 and ends at 30."""
    task = task_of(5)
    forecaster = Forecaster.build(task, network_of(task, level=-2.5, one=-3.0), version="1")
    course = [97] * 10 + [92, 93] * 6 + [96] * 7 + [92] * 8
    rows = site_of([("p", "spo2", float(m), float(v)) for m, v in enumerate(course)]).observations
    ward = Ward(forecasters=[forecaster])
    told: list[tuple[int, str]] = []

    def minute(at: int) -> None:
        nonlocal ward
        if at < len(rows):
            ward.update(rows.iloc[at : at + 1])
        now = start + pd.Timedelta(minutes=at, seconds=20)
        ward.forecasts(now)
        notices = [n for n in ward.check(now) if n.alert.rule == "low-spo2-ahead"]
        told.extend((at, notice.event) for notice in notices)
        if at == 16:
            (alert,) = [a for a in ward.alerts(now) if a.rule == "low-spo2-ahead"]
            ward.acknowledge("p", alert.id, who="nurse 7", why="seen", now=now)
        if at == 18:  # a restart in between rings nobody again
            kept = ward.snapshot()
            ward = Ward(forecasters=[forecaster])
            ward.update(rows.iloc[: at + 1])
            ward.restore(kept)

    start = rows["time"].iloc[0]
    for at in [*range(len(course)), *range(len(course), len(course) + 260, 10)]:
        minute(at)
    # Raised at minute 10; told again after five minutes without an answer; over five minutes after 96 % is
    # back at minute 22; silent for ten; raised once more; nobody knows any more four hours after the last.
    assert told[:3] == [(10, "raised"), (15, "escalated"), (27, "resolved")]
    assert told[3][1] == "raised" and 29 <= told[3][0] < 38
    assert {event for _, event in told[4:-1]} <= {"escalated"}
    assert told[-1][1] == "lapsed" and told[-1][0] > len(course) + 235
