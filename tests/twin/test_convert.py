"""The published recordings become sites, with their hazards handled and counted."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from conf.errors import ConfigError
from twin.connectors.convert import NAMES, ConversionReport, Job, convert, parse_jobs
from twin.connectors.folder import read_folder
from twin.errors import DataError
from twin.site import Site

PATIENTS = {"hall": 57, "colas": 208, "d1namo": 9, "t1d_uom": 9}
COMPLETE = {"cleveland": 303, "hungary": 261, "switzerland": 46, "va": 130}
EVERY = {"cleveland": 303, "hungary": 294, "switzerland": 123, "va": 200}


@pytest.fixture(scope="module")
def converted(
    recordings: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ConversionReport, dict[str, Site]]:
    out = tmp_path_factory.mktemp("federation") / "sites"
    report = convert([Job(name=name, source=recordings / name) for name in PATIENTS], out)
    return report, {site.name: site for site in read_folder(out)}


def _raw(recordings: Path, name: str, table: str = "glucose") -> pd.DataFrame:
    return pd.read_csv(recordings / name / f"{table}.csv.gz", dtype={"id": "str"})


def _of(site: Site, signal: str) -> pd.DataFrame:
    return site.observations[site.observations["signal"] == signal]


def test_every_patient_of_the_four_cgm_studies_arrives(
    converted: tuple[ConversionReport, dict[str, Site]],
) -> None:
    assert {name: len(site.patients) for name, site in converted[1].items()} == PATIENTS


def test_entries_read_are_kept_or_dropped_and_all_kept_are_read_back(
    converted: tuple[ConversionReport, dict[str, Site]],
) -> None:
    report, sites = converted
    for site in report.sites:
        quality = site.quality
        assert not quality.quarantined
        assert quality.rows_read == quality.rows_kept + sum(quality.dropped.values())
        back = sites[site.site].quality
        assert back.rows_read == back.rows_kept == quality.rows_kept


@pytest.mark.parametrize("name", ["hall", "colas"])
def test_values_and_clock_of_a_plain_study_are_unchanged(
    name: str, recordings: Path, converted: tuple[ConversionReport, dict[str, Site]]
) -> None:
    raw = _raw(recordings, name).dropna(subset="gl").sort_values(["id", "time"])
    site = converted[1][name].observations
    np.testing.assert_allclose(site["value"], raw["gl"])
    assert site["time"].dt.strftime("%Y-%m-%d %H:%M:%S").tolist() == raw["time"].tolist()
    assert site["patient_id"].tolist() == raw["id"].tolist()


def test_repeated_readings_of_t1d_uom_become_one(
    recordings: Path, converted: tuple[ConversionReport, dict[str, Site]]
) -> None:
    raw = _raw(recordings, "t1d_uom")
    assert raw.duplicated(["id", "bg_ts"]).sum() == 7283
    glucose = _of(converted[1]["t1d_uom"], "glucose")
    assert not glucose.duplicated(["patient_id", "time"]).any()
    assert 0 <= len(raw) - 7283 - len(glucose) <= 100  # hours of clock changes


def test_glucose_of_t1d_uom_is_in_mg_dl_and_in_utc(
    recordings: Path, converted: tuple[ConversionReport, dict[str, Site]]
) -> None:
    raw = _raw(recordings, "t1d_uom").drop_duplicates(["id", "bg_ts"], keep=False)
    local = pd.to_datetime(raw["bg_ts"]).dt.tz_localize("Europe/London", ambiguous="NaT", nonexistent="NaT")
    expected = raw.assign(time=local.dt.tz_convert("UTC")).dropna(subset="time")
    both = expected.merge(
        _of(converted[1]["t1d_uom"], "glucose"), left_on=["id", "time"], right_on=["patient_id", "time"]
    )
    assert len(both) == len(expected)
    assert (both["value_y"] - 18.016 * both["value_x"]).abs().max() < 1e-5


def test_basal_insulin_of_t1d_uom_is_a_rate_or_an_injection_by_its_kind(
    recordings: Path, converted: tuple[ConversionReport, dict[str, Site]]
) -> None:
    raw = _raw(recordings, "t1d_uom", "basal")
    for kind, signal in (("R", "insulin_basal"), ("L", "insulin_long_acting")):
        mine = _of(converted[1]["t1d_uom"], signal)
        assert set(mine["patient_id"]) == set(raw.loc[raw["insulin_kind"] == kind, "id"])
        assert mine["value"].max() == raw.loc[raw["insulin_kind"] == kind, "basal_dose"].max()


def test_steps_of_t1d_uom_are_added_over_their_interval_and_stamped_at_its_end(
    recordings: Path, converted: tuple[ConversionReport, dict[str, Site]]
) -> None:
    raw = _raw(recordings, "t1d_uom", "activity").drop_duplicates()
    raw = raw[raw["duration_s"] == 900]
    steps = _of(converted[1]["t1d_uom"], "steps")
    assert steps["value"].sum() == raw["step_count"].sum()
    first = raw.loc[raw["id"] == "2301", "start_time_s"].min() + 900
    assert steps.loc[steps["patient_id"] == "2301", "time"].min() == pd.Timestamp(first, unit="s", tz="UTC")


def test_carbohydrates_of_t1d_uom_are_all_there(
    recordings: Path, converted: tuple[ConversionReport, dict[str, Site]]
) -> None:
    raw = _raw(recordings, "t1d_uom", "meals")
    assert _of(converted[1]["t1d_uom"], "carbohydrates")["value"].sum() == pytest.approx(raw["carbs_g"].sum())


def test_absent_heart_rates_and_absent_doses_of_d1namo_give_no_row(
    recordings: Path, converted: tuple[ConversionReport, dict[str, Site]]
) -> None:
    raw, site = _raw(recordings, "d1namo", "events"), converted[1]["d1namo"]
    assert len(_of(site, "heart_rate")) == (raw["HR"] > 0).sum()
    assert _of(site, "heart_rate")["value"].min() > 30
    for column, signal in (("fast_insulin", "insulin_bolus"), ("calories", "energy_intake")):
        assert len(_of(site, signal)) == (raw[column] > 0).sum()
        assert _of(site, signal)["value"].sum() == pytest.approx(raw[column].sum())


def test_every_site_states_its_licence(converted: tuple[ConversionReport, dict[str, Site]]) -> None:
    for site in converted[0].sites:
        licence = (converted[0].out / site.site / "LICENSE.txt").read_text()
        assert "Creative Commons" in licence
        assert ("ShareAlike" in licence) == (site.site == "d1namo")


@pytest.mark.parametrize(("rows", "count", "columns"), [("complete", COMPLETE, 11), ("all", EVERY, 14)])
def test_uci_heart_gives_the_published_numbers_of_patients(
    rows: str, count: dict[str, int], columns: int, recordings: Path, tmp_path: Path
) -> None:
    convert([Job(name="uci_heart", source=recordings / "uci_heart", rows=rows)], tmp_path)
    sites = {site.name: site.patients for site in read_folder(tmp_path)}
    assert {name: len(patients) for name, patients in sites.items()} == count
    for patients in sites.values():
        assert patients.shape[1] == columns
        assert set(patients["diagnosis"]) <= {0, 1, 2, 3, 4}
        assert patients.isna().any().any() == (rows == "all")
    zeros = sum(int(patients["chol"].eq(0).sum()) for patients in sites.values())
    assert zeros == (46 + 33 if rows == "complete" else 0)


def _small(folder: Path, **tables: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in tables.items():
        (folder / f"{name}.csv.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def test_impossible_dates_and_values_of_t1d_uom_are_dropped_and_counted(tmp_path: Path) -> None:
    readings = "".join(f"1,2023-10-01 08:{minute:02d}:00,7.5\n" for minute in range(0, 60, 5))
    source = _small(
        tmp_path / "source",
        glucose=f"id,bg_ts,value\n{readings}1,2023-10-01 09:00:00,0.2\n1,2023-10-01 09:05:00,1.8\n",
        meals="id,meal_ts,carbs_g\n1,2204-10-01 08:00:00,30\n1,2023-10-01 08:00:00,40\n",
    )
    report = convert([Job(name="t1d_uom", source=source)], tmp_path / "out")
    dropped = report.sites[0].quality.dropped
    assert dropped == {"impossible date": 1, "outside limits: glucose": 1}
    assert "1 impossible date" in str(report)
    site = read_folder(tmp_path / "out")[0]
    assert _of(site, "glucose")["value"].min() == pytest.approx(1.8 * 18.016)


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path) -> None:
    good = _small(tmp_path / "good", glucose="id,time,gl\n1,2014-01-01 08:00:00,90\n")
    bad = _small(tmp_path / "bad", glucose="id,when,gl\n1,2014-01-01 08:00:00,90\n")
    with pytest.raises(DataError, match="lacks the columns time"):
        convert([Job(name="hall", source=good), Job(name="colas", source=bad)], tmp_path / "out" / "deep")
    assert not (tmp_path / "out").exists()


def test_a_failure_while_writing_takes_back_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = _small(tmp_path / "good", glucose="id,time,gl\n1,2014-01-01 08:00:00,90\n")
    rename, calls = Path.rename, []

    def full_disk(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full_disk)
    with pytest.raises(DataError, match="No space"):
        convert([Job(name="hall", source=good), Job(name="colas", source=good)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_site_that_is_there_already_is_not_overwritten(tmp_path: Path) -> None:
    good = _small(tmp_path / "good", glucose="id,time,gl\n1,2014-01-01 08:00:00,90\n")
    convert([Job(name="hall", source=good)], tmp_path / "out")
    before = (tmp_path / "out" / "hall" / "observations.csv.gz").read_bytes()
    with pytest.raises(DataError, match="hall already"):
        convert([Job(name="colas", source=good), Job(name="hall", source=good)], tmp_path / "out")
    assert (tmp_path / "out" / "hall" / "observations.csv.gz").read_bytes() == before
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["hall"]


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    good = _small(tmp_path / "good", glucose="id,time,gl\n1,2014-01-01 08:00:00,90\n")
    for out in ("one", "two"):
        convert([Job(name="hall", source=good)], tmp_path / out)
    one, two = ((tmp_path / out / "hall" / "observations.csv.gz").read_bytes() for out in ("one", "two"))
    assert one == two


def test_the_words_of_the_command_become_jobs() -> None:
    jobs, out = parse_jobs(["hall", "a", "uci_heart", "b", "out", "rows=all"])
    assert jobs == [Job(name="hall", source=Path("a")), Job(name="uci_heart", source=Path("b"), rows="all")]
    assert out == Path("out")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "twinward data convert NAME SRC"),
        (["hall", "a"], "Came: 2 words"),
        (["hal", "a", "out"], "'hal' is no recording"),
        (["hall", "a", "hall", "b", "out"], "hall is given twice"),
        (["uci_heart", "a", "out", "rows=some"], "allowed are complete, all"),
        (["hall", "a", "out", "rows=all"], "uci_heart only"),
    ],
)
def test_wrong_words_are_refused_with_the_right_ones(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        parse_jobs(words)
    assert all(name in str(caught.value) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_source_that_is_not_the_recording_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(DataError, match="expected"):
        convert([Job(name=name, source=tmp_path / "source")], tmp_path / "out")
    with pytest.raises(DataError, match="does not exist"):
        convert([Job(name=name, source=tmp_path / "nowhere")], tmp_path / "out")
