"""A ward is the same however its rows are cut into calls, knows what is usual, and forgets whom it must."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf import schema
from tests.records import drawn_rows, glucose_task, site_of, virtual
from twin import models
from twin.errors import DataError
from twin.personal.bayes import adapt_patients, adapt_site
from twin.site import Site
from twin.ward.forecaster import Forecaster
from twin.ward.ward import Ward

quick = settings(max_examples=15, deadline=None)


def in_time(site: Site) -> pd.DataFrame:
    return site.observations.sort_values("time", kind="stable", ignore_index=True)


def middle_of(site: Site) -> pd.Timestamp:
    """A moment at which every patient is being read."""
    times = site.observations[site.observations["signal"] == "glucose"]["time"]
    return pd.Timestamp(times.iloc[len(times) // (2 * len(site.patients))])


def told(ward: Ward, now: pd.Timestamp) -> str:
    return json.dumps([ward.twin(patient, now).to_dict() for patient in ward.patients()])


def plain_forecaster(stride_min: int = 15) -> Forecaster:
    import torch

    task = glucose_task(stride_min)
    network = models.build(schema.Model(), task)
    draws = torch.Generator().manual_seed(1)
    network.head.weight.data = 0.1 * torch.randn(network.head.weight.shape, generator=draws)
    return Forecaster.build(task, network, version="3")


@given(st.integers(0, 1000), st.lists(st.integers(0, 400), max_size=6))
@quick
def test_however_rows_are_cut_into_calls_the_twins_are_the_same(seed: int, cuts: list[int]) -> None:
    rows = in_time(site_of(drawn_rows(seed, 5)))
    now = rows["time"].iloc[-1] + pd.Timedelta(minutes=1)
    cuts = sorted({0, len(rows), *(cut % len(rows) for cut in cuts)})
    ward = Ward()
    for first, last in pairwise(cuts):
        ward.update(rows.iloc[first:last])
    whole = Ward()
    whole.update(rows)
    assert told(ward, now) == told(whole, now)


def test_one_by_one_and_rebuilt_after_a_restart_is_the_same() -> None:
    site = site_of(drawn_rows(4, 5))
    rows = in_time(site)
    now = rows["time"].iloc[-1] + pd.Timedelta(minutes=1)
    ward = Ward(forecasters=[plain_forecaster()])
    for at in range(len(rows)):
        ward.update(rows.iloc[at : at + 1])
    again = Ward.from_site(site, forecasters=[plain_forecaster()])
    pd.testing.assert_frame_equal(ward.forecasts(now), again.forecasts(now))
    assert told(ward, now) == told(again, now)


def test_the_window_of_this_moment_is_the_one_that_training_has_of_it() -> None:
    task = glucose_task(5)
    site = virtual()[0]
    examples = task.examples(site)
    for at in (40, 400):
        now_us = int(examples.time_us_N[at])
        patient = int(examples.patient_N[at])
        latest = task.latest(site, now_us)
        here = latest.at(latest.patient_N == patient)
        np.testing.assert_allclose(here.table_NF[0], examples.table_NF[at], atol=1e-5)
        np.testing.assert_allclose(here.series_NTC[0], examples.series_NTC[at], atol=1e-4)
        assert not here.observed_NH.any()


def test_a_ward_s_forecast_is_the_model_s_own_for_every_patient_at_once() -> None:
    site, forecaster = virtual()[0], plain_forecaster(5)
    now = middle_of(site)
    past = replace(site, observations=site.observations[site.observations["time"] <= now])
    table = Ward.from_site(past, forecasters=[forecaster]).forecasts(now)
    examples = forecaster.task.latest(site, int(now.as_unit("us").asm8.astype(np.int64)))
    expected = forecaster.task.forecast(
        forecaster.outputs(examples.without_series()), examples.without_series()
    )
    np.testing.assert_allclose(table["middle"], expected.middle_NH.ravel(), atol=1e-4)
    lower = expected.low_NH.ravel()  # a ward's bands end at what a meter can report, 10 mg/dL
    np.testing.assert_allclose(table["low_80"], np.maximum(lower, np.minimum(10, table["middle"])), atol=1e-4)
    assert set(table["patient_id"]) == {examples.patients[at] for at in examples.patient_N}
    assert table["patient_id"].nunique() > 3
    assert (table["low_90"] <= table["low_80"]).all()
    assert (table["made"] <= now).all()


def test_personal_models_forecast_their_own_patients_and_the_site_s_everyone_else() -> None:
    site, task = virtual()[0], glucose_task()
    network = models.build(schema.Model(), task)
    examples = task.examples(site).without_series()
    everything = examples.patient_N >= 0
    fitted = adapt_site(network, task, examples)
    own = adapt_patients(network, task, fitted, examples, everything)
    site_arrays = {
        "shift_HD": fitted.shift_HD.numpy(),
        "log_spread_2H": fitted.log_spread_2H.numpy(),
        "precision": np.asarray(fitted.precision),
    }
    personal = {name: getattr(own, name).numpy()[:3] for name in ("shift_PHD", "log_spread_P2H", "kept_P")}
    patients = list(site.patients.index)
    forecaster = Forecaster.build(
        task, network, version="3", site=site_arrays, personal=personal, patients=patients[:3]
    )
    mine = own.outputs(network, task, examples)
    theirs = fitted.outputs(network, task, examples)
    first_three = (examples.patient_N < 3)[:, None]
    np.testing.assert_allclose(forecaster.outputs(examples), mine.where(first_three, theirs), atol=1e-9)
    assert forecaster.model_of(patients[0]) == "personal 3"
    assert forecaster.without(patients[0]).model_of(patients[0]) == "site 3"
    with pytest.raises(DataError, match="2 pseudonyms"):
        Forecaster.build(task, network, version="3", personal=personal, patients=patients[:2])


def days_of(
    patient: str, values: np.ndarray, signal: str = "heart_rate"
) -> list[tuple[str, str, float, float]]:
    return [(patient, signal, 5.0 * turn, float(value)) for turn, value in enumerate(values)]


def test_what_is_unusual_is_unusual_for_the_patient_not_for_people() -> None:
    """An athlete's 44 /min is usual and 90 at rest is not; a patient who has 90 at rest has it every day."""
    draws = np.random.default_rng(2)
    athlete, other = draws.normal(44, 2, 600), draws.normal(90, 3, 600)
    athlete[-12:] = 90
    other[300] = 250
    ward = Ward()
    ward.update(in_time(site_of(days_of("athlete", athlete) + days_of("other", other))))
    now = pd.Timestamp("2024-01-03 02:00", tz="UTC")
    readings = {p: ward.twin(p, now).readings[0] for p in ("athlete", "other")}
    unusual = {patient: reading.unusual for patient, reading in readings.items()}
    assert unusual["athlete"] is not None
    assert unusual["athlete"] > 6
    assert unusual["other"] is not None
    assert abs(unusual["other"]) < 3
    assert readings["other"].usual == pytest.approx(90, abs=2)


def test_marked_and_late_rows_move_no_estimate_and_are_counted() -> None:
    rows = in_time(site_of(days_of("a", np.full(20, 100.0), "glucose")))
    ward, clean = Ward(), Ward()
    clean.update(rows)
    ward.update(rows)
    spike = rows.iloc[[-1]].assign(time=rows["time"].iloc[-1] + pd.Timedelta(minutes=5), value=400.0)
    ward.update(spike.assign(quality="spike"))
    ward.update(rows.iloc[[3]].assign(value=300.0))
    now = spike["time"].iloc[0]
    (mine,), (theirs,) = ward.twin("a", now).devices, clean.twin("a", now).devices
    assert (mine.suspect, mine.late) == (1, 1)
    assert ward.twin("a", now).readings == clean.twin("a", now).readings
    assert (theirs.suspect, theirs.late) == (0, 0)


def test_an_erased_patient_leaves_nothing_and_the_next_one_inherits_nothing() -> None:
    site = virtual()[0]
    gone = site.patients.index[0]
    now = middle_of(site)
    past = replace(site, observations=site.observations[site.observations["time"] <= now])
    ward = Ward.from_site(past, forecasters=[plain_forecaster(5)])
    assert gone in set(ward.forecasts(now)["patient_id"])
    ward.check(now)
    ward.forget(gone)
    assert gone not in ward.patients()
    assert gone.encode() not in ward.snapshot()
    assert gone not in set(ward.forecasts(now)["patient_id"])
    with pytest.raises(DataError):
        ward.twin(gone, now)
    fresh = in_time(site_of(days_of("new", np.linspace(90, 120, 30), "glucose")))
    alone = Ward()
    alone.update(fresh)
    ward.update(fresh)
    later = fresh["time"].iloc[-1]
    assert ward.twin("new", later).readings == alone.twin("new", later).readings
    assert ward.twin("new", later).devices == alone.twin("new", later).devices


def test_bands_learn_from_outcomes_and_alerts_outlive_a_restart() -> None:
    """A low that lasts is raised, survives the snapshot with its acknowledgement, and is not raised twice."""
    rows = in_time(site_of(days_of("a", 84 - 0.5 * np.arange(45.0), "glucose")))
    ward = Ward(forecasters=[plain_forecaster(5)])
    raised = []
    for at in range(len(rows)):
        ward.update(rows.iloc[at : at + 1])
        now = rows["time"].iloc[at] + pd.Timedelta(seconds=20)
        ward.forecasts(now)
        raised += [n for n in ward.check(now) if n.event == "raised"]
    low = next(n for n in raised if n.alert.rule == "low-glucose")
    ward.acknowledge("a", low.alert.id, who="nurse 7", why="juice", now=now)
    again = Ward.from_site(
        site_of(days_of("a", 84 - 0.5 * np.arange(45.0), "glucose")), forecasters=[plain_forecaster(5)]
    )
    again.restore(ward.snapshot())
    assert again.alerts(now) == ward.alerts(now)
    assert any(a.acknowledged_by == "nurse 7" for a in again.alerts(now))
    assert [n for n in again.check(now) if n.event == "raised" and n.alert.rule == "low-glucose"] == []
    pd.testing.assert_frame_equal(again.forecasts(now), ward.forecasts(now))
    fresh = Ward.from_site(
        site_of(days_of("a", 84 - 0.5 * np.arange(45.0), "glucose")), forecasters=[plain_forecaster(5)]
    )
    assert (fresh.forecasts(now)["low_80"] != ward.forecasts(now)["low_80"]).all()
    with pytest.raises(DataError, match="snapshot"):
        again.restore(b"{}")


def test_a_sensor_s_faults_are_measured() -> None:
    draws = np.random.default_rng(1)
    smooth = 120 + 25 * np.sin(np.arange(400) / 30)
    flat = np.append(smooth[:380], np.full(20, smooth[379]))
    noisy = np.append(smooth[:370] + draws.normal(0, 0.5, 370), smooth[370:] + draws.normal(0, 25, 30))
    rows = days_of("flat", flat, "glucose") + days_of("noisy", noisy, "glucose")
    rows += [("biased", "glucose", 5.0 * t, 100.0) for t in range(400)]
    rows += [("biased", "blood_glucose", 5.0 * t + 1, 140.0) for t in range(0, 400, 50)]
    ward = Ward()
    ward.update(in_time(site_of(rows)))
    now = pd.Timestamp(ward.twin("flat", pd.Timestamp("2024-01-03", tz="UTC")).readings[0].time)
    devices = {patient: ward.twin(patient, now).devices[0] for patient in ("flat", "noisy", "biased")}
    assert devices["flat"].flat_min == pytest.approx(100)
    assert devices["noisy"].noise > 5
    assert devices["flat"].noise < 2
    assert devices["biased"].drift is not None
    assert devices["biased"].drift > 3
    assert devices["flat"].drift is None
    gone = ward.twin("flat", now + pd.Timedelta(hours=1)).devices[0]
    assert gone.gap_min == pytest.approx(55, abs=1)


def test_a_time_without_a_zone_and_an_unknown_patient_are_refused() -> None:
    ward = Ward()
    with pytest.raises(DataError, match="zone"):
        ward.check(pd.Timestamp("2024-01-01"))
    with pytest.raises(DataError, match="pseudonym"):
        ward.twin("nobody", pd.Timestamp("2024-01-01", tz="UTC"))
    assert ward.forecasts(pd.Timestamp("2024-01-01", tz="UTC")).empty
    assert ward.update(site_of(days_of("a", np.zeros(0))).observations) == 0
