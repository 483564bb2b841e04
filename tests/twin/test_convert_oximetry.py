"""Recordings of oxygen become sites: intensive care by unit, volunteers short of oxygen, monitors."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from conf import schema
from twin import tasks
from twin.connectors.convert import ConversionReport, Job, convert
from twin.connectors.folder import read_folder
from twin.errors import DataError
from twin.site import Site


@pytest.fixture(scope="module")
def oximetry(
    recordings: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ConversionReport, dict[str, Site]]:
    out = tmp_path_factory.mktemp("oximetry") / "sites"
    report = convert([Job(name=name, source=recordings / name) for name in ("varfio2", "bidmc")], out)
    return report, {site.name: site for site in read_folder(out)}


@pytest.fixture(scope="module")
def extract(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stays of some hundred patients, as the publisher writes them."""
    table = pd.read_csv(recordings / "physionet2019b" / "hourly.csv.gz", dtype="str", nrows=8000)
    folder = tmp_path_factory.mktemp("icu")
    table[table["id"] != table["id"].iloc[-1]].to_csv(folder / "hourly.csv", index=False)
    return folder


def _of(site: Site, signal: str) -> pd.DataFrame:
    return site.observations[site.observations["signal"] == signal]


def test_every_patient_and_entry_arrives_or_is_counted(
    oximetry: tuple[ConversionReport, dict[str, Site]],
) -> None:
    report, sites = oximetry
    assert {name: len(site.patients) for name, site in sites.items()} == {"bidmc": 53, "varfio2": 6}
    for site in report.sites:
        assert site.quality.rows_read == site.quality.rows_kept + sum(site.quality.dropped.values())
        assert sites[site.site].quality.rows_kept == site.quality.rows_kept


def test_the_monitors_numbers_are_unchanged(
    recordings: Path, oximetry: tuple[ConversionReport, dict[str, Site]]
) -> None:
    raw = pd.read_csv(recordings / "bidmc" / "numerics_1hz.csv.gz")
    raw = raw[raw["id"] == "bidmc07"].dropna(subset=["SpO2"])
    spo2 = _of(oximetry[1]["bidmc"], "spo2")
    spo2 = spo2[spo2["patient_id"] == "bidmc07"]
    assert spo2["value"].tolist() == raw["SpO2"].tolist()
    seconds = (spo2["time"] - pd.Timestamp("2000-01-01T00:00:00Z")).dt.total_seconds()
    assert seconds.tolist() == raw["Time [s]"].tolist()


def test_volunteers_breathe_ever_less_oxygen_and_the_saturation_follows(
    oximetry: tuple[ConversionReport, dict[str, Site]],
) -> None:
    site = oximetry[1]["varfio2"]
    assert _of(site, "spo2")["value"].between(60, 100).all()
    assert _of(site, "etco2")["value"].median() == pytest.approx(32, abs=4)
    for patient, fio2 in _of(site, "fio2").groupby("patient_id"):
        spo2 = _of(site, "spo2")
        spo2 = spo2[spo2["patient_id"] == patient]
        assert fio2["value"].iloc[:30].median() == pytest.approx(20.9, abs=0.6)
        assert fio2["value"].quantile(0.05) < 13 and spo2["value"].quantile(0.05) < 86
        seconds = spo2["time"].diff().dt.total_seconds().dropna()
        assert (seconds == 1).all(), "also where the source has no clock"


def test_the_pulse_of_the_oximeters_agrees_with_the_ecg_of_the_shifted_column(
    oximetry: tuple[ConversionReport, dict[str, Site]],
) -> None:
    site = oximetry[1]["varfio2"]
    both = [
        _of(site, name).set_index(["patient_id", "time"])["value"] for name in ("heart_rate", "pulse_rate")
    ]
    apart = (both[0] - both[1]).dropna().abs()
    assert apart.median() <= 2


def test_a_file_whose_columns_are_not_shifted_is_refused(recordings: Path, tmp_path: Path) -> None:
    table = pd.read_csv(recordings / "varfio2" / "oximetry_1hz.csv.gz", dtype="str", nrows=100)
    table["Insp TV 3"] = "480.0"
    table.to_csv(tmp_path / "oximetry_1hz.csv", index=False)
    with pytest.raises(DataError, match="inspired oxygen"):
        convert([Job(name="varfio2", source=tmp_path)], tmp_path / "out")


def test_stays_go_to_the_site_of_their_unit_and_nobody_is_lost(extract: Path, tmp_path: Path) -> None:
    raw = pd.read_csv(extract / "hourly.csv", dtype={"id": "str"})
    first = raw.groupby("id")[["Unit1", "Unit2"]].first()
    expected = {
        "micu": set(first.index[first["Unit1"] == 1]),
        "sicu": set(first.index[first["Unit2"] == 1]),
        "icu_unknown": set(first.index[first["Unit1"].isna()]),
    }
    report = convert([Job(name="physionet2019", source=extract)], tmp_path / "icu")
    sites = {site.name: site for site in read_folder(tmp_path / "icu")}
    assert {name: set(site.patients.index) for name, site in sites.items()} == expected
    assert sum(map(len, expected.values())) == raw["id"].nunique()
    for site in report.sites:
        assert site.quality.rows_read == site.quality.rows_kept + sum(site.quality.dropped.values())
    kept = sum(len(_of(site, "spo2")) for site in sites.values())
    assert kept == raw["O2Sat"].notna().sum()
    assert set(sites["micu"].patients.columns) == {"age_years", "sex", "sepsis"}
    oxygen = pd.concat([_of(site, "fio2")["value"] for site in sites.values()])
    assert oxygen.between(15, 100).all()


def test_hours_of_a_stay_stand_at_their_end_and_a_label_looks_at_the_next(
    extract: Path, tmp_path: Path
) -> None:
    convert([Job(name="physionet2019", source=extract)], tmp_path / "icu")
    site = next(site for site in read_folder(tmp_path / "icu") if site.name == "micu")
    raw = pd.read_csv(extract / "hourly.csv", dtype={"id": "str"}).set_index(["id", "ICULOS"])["O2Sat"]
    task = tasks.build(schema.Task(name="hypoxemia", horizon_min=60, stride_min=60))
    examples = task.examples(site)
    start_us = pd.Timestamp("2000-01-01T00:00:00Z").value // 1000
    hours = (examples.time_us_N.numpy() - start_us) // 3_600_000_000
    for n in range(0, len(examples), 37):
        patient = examples.patients[int(examples.patient_N[n])]
        assert float(examples.anchor_N[n]) == pytest.approx(raw[(patient, int(hours[n]))])
        assert bool(examples.target_NH[n, 0]) == (raw[(patient, int(hours[n]) + 1)] < 90)
