"""`twinward data check`: collects, never raises."""

from __future__ import annotations

import json
import shlex
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twin.connectors.check import CheckReport, check_folder
from twin.connectors.folder import read_folder
from twin.errors import DataError

HEADER = "patient_id,time,signal,value,unit\n"


def _rows(patients: int, *, zone: str = "Z", signal: str = "glucose", unit: str = "mmol/L") -> str:
    return "".join(
        f"{patient:03d},2024-03-0{day}T08:{minute:02d}:00{zone},{signal},5.5,{unit}\n"
        for patient in range(patients)
        for day in (1, 3)
        for minute in range(0, 60, 15)
    )


def _check(root: Path, text: str, timezone: str | None = None) -> CheckReport:
    (root / "north").mkdir()
    (root / "north" / "observations.csv").write_text(text)
    return check_folder(root, timezone, now=datetime(2025, 1, 1, tzinfo=UTC))


def test_a_good_folder_is_described_as_a_run_would_see_it(tmp_path: Path) -> None:
    report = _check(tmp_path, HEADER + _rows(6))
    assert report.ok
    site = report.sites[0]
    assert (site.patients, site.quality.rows_kept, site.warnings) == (6, 48, ())
    signal = site.signals[0]
    assert (signal.name, signal.unit, signal.rows, signal.step_min) == ("glucose", "mg/dL", 48, 15.0)
    assert signal.days == pytest.approx(2.03)
    assert f"data=folder data.path={tmp_path}" in str(report)


def test_the_command_it_ends_with_carries_zone_and_quotes(tmp_path: Path) -> None:
    root = tmp_path / "my studies"
    root.mkdir()
    report = _check(root, HEADER + _rows(6, zone=""), "Europe/London")
    words = shlex.split(str(report).rpartition("used: ")[2])
    assert words == [
        "twinward",
        "simulate",
        "data=folder",
        f"data.path={root}",
        "data.timezone=Europe/London",
    ]


def test_doses_have_no_step(tmp_path: Path) -> None:
    text = HEADER + _rows(6) + _rows(6, signal="carbohydrates", unit="g")
    lines = str(_check(tmp_path, text)).splitlines()
    assert [line.endswith("every 15 min") for line in lines if "48 rows" in line] == [False, True]


@pytest.mark.parametrize(
    ("text", "timezone", "told"),
    [
        (HEADER + _rows(2), None, "fewer than privacy.minimum_patients"),
        (HEADER + _rows(6, zone=""), "Europe/London", "read as Europe/London"),
        (HEADER + _rows(6).replace("2024-", "2124-"), None, "lie in the future"),
        (HEADER + _rows(6, signal="heart_rate", unit="bpm").replace(",5.5,", ",70,"), None, "no glucose"),
        (HEADER + _rows(6) + _rows(6, signal="glukose"), None, "is glucose meant?"),
        (HEADER + _rows(6) + _rows(6), None, "48 of 96 rows are not used"),
    ],
)
def test_what_should_be_known_is_a_warning(
    tmp_path: Path, text: str, timezone: str | None, told: str
) -> None:
    report = _check(tmp_path, text, timezone)
    assert report.ok
    assert told in str(report)


@pytest.mark.parametrize(
    "text",
    ["", HEADER, _rows(6), HEADER + _rows(6, zone=""), HEADER + _rows(6, unit="mg%"), "\ufeff;;;", '"'],
)
def test_bad_data_is_collected_and_a_run_refuses_the_same(tmp_path: Path, text: str) -> None:
    report = _check(tmp_path, text)
    assert not report.ok
    with pytest.raises(DataError) as caught:
        read_folder(tmp_path)
    for problem in report.problems:
        assert str(problem) in str(caught.value)


def test_no_path_and_no_zone_make_it_raise(tmp_path: Path) -> None:
    assert not check_folder(tmp_path / "nothing").ok
    assert not check_folder(tmp_path).ok
    assert "data.timezone=London: is no time zone" in str(check_folder(tmp_path, timezone="London"))


def test_the_report_is_plain_data(tmp_path: Path) -> None:
    report = _check(tmp_path, HEADER + _rows(3) + _rows(1, signal="interleukin"))
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["ok"] is True
    assert plain["sites"][0]["quality"]["quarantined"] == {"unknown signal: interleukin": 8}
    assert plain["problems"] == []


EDIT = st.tuples(
    st.integers(0, 10_000),
    st.integers(0, 40),
    st.binary(max_size=6) | st.sampled_from([b'"', b"\n", b"\r", b",", b"\x00"]),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(EDIT, min_size=1, max_size=6), st.sampled_from(["observations.csv", "patients.csv"]))
def test_no_damage_to_a_file_makes_it_raise_and_no_row_vanishes(
    edits: list[tuple[int, int, bytes]], name: str
) -> None:
    data = (HEADER + _rows(3)).encode()
    for place, length, text in edits:
        start = place % (len(data) + 1)
        data = data[:start] + text + data[start + length :]
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "north").mkdir()
        (Path(root) / "north" / name).write_bytes(data)
        report = check_folder(root)
    quality = report.sites[0].quality
    assert str(report)
    lost = sum(quality.dropped.values()) + sum(quality.quarantined.values())
    assert not report.ok or quality.rows_read == quality.rows_kept + lost
