"""Federation folders: what strangers bring."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from twin.connectors.folder import read_folder
from twin.errors import DataError

HEADER = "patient_id,time,signal,value,unit\n"
ROWS = "".join(
    f"{patient},2024-03-01T{hour:02d}:05:00Z,glucose,{100 + hour}.5,mg/dL\n"
    for patient in ("007", "7")
    for hour in range(12)
)
GOOD = HEADER + ROWS


def _put(root: Path, name: str, content: str | bytes) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _refused(root: Path, timezone: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        read_folder(root, timezone)
    return str(caught.value)


def test_sites_come_in_the_order_of_their_names_with_identifiers_as_text(tmp_path: Path) -> None:
    _put(tmp_path, "south/observations.csv", GOOD)
    _put(tmp_path, "north/observations.csv", GOOD)
    sites = read_folder(tmp_path)
    assert [site.name for site in sites] == ["north", "south"]
    assert sites[0].patients.index.tolist() == ["007", "7"]
    assert sites[0].step_min == {"glucose": 60.0}
    assert sites[0].quality.rows_kept == 24


def test_csv_gzip_and_parquet_give_the_same_observations(tmp_path: Path) -> None:
    _put(tmp_path, "a/observations.csv", GOOD)
    _put(tmp_path, "b/observations.csv.gz", gzip.compress(GOOD.encode()))
    frame = pd.read_csv(tmp_path / "a" / "observations.csv", dtype={"patient_id": "str"})
    for name, typed in (("c", frame), ("d", frame.assign(time=pd.to_datetime(frame["time"])))):
        (tmp_path / name).mkdir()
        typed.to_parquet(tmp_path / name / "observations.parquet")
    frames = [site.observations.drop(columns="source") for site in read_folder(tmp_path)]
    for other in frames[1:]:
        pd.testing.assert_frame_equal(frames[0], other)


def test_parquet_takes_whole_numbers_categories_and_local_timestamps(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "patient_id": [1, 2],
            "time": pd.to_datetime(["2024-07-01 08:05", "2024-07-01 08:05"]),
            "signal": pd.Categorical(["glucose", "glucose"]),
            "value": np.array([100, 110], dtype=np.int16),
            "unit": pd.Categorical(["mg/dL", "mg/dL"]),
        }
    )
    (tmp_path / "a").mkdir()
    frame.to_parquet(tmp_path / "a" / "observations.parquet")
    assert "data.timezone" in _refused(tmp_path)
    site = read_folder(tmp_path, "Europe/London")[0]
    assert site.patients.index.tolist() == ["1", "2"]
    assert str(site.observations["time"].iloc[0]) == "2024-07-01 07:05:00+00:00"


def test_a_byte_order_mark_spaced_headers_and_extra_columns_do_no_harm(tmp_path: Path) -> None:
    header = "note, Patient_ID ,time,SIGNAL,value,unit\n"
    body = "".join(f'"a, b",{line}\n' for line in ROWS.splitlines())
    _put(tmp_path, "a/observations.csv", b"\xef\xbb\xbf" + (header + body).encode())
    assert read_folder(tmp_path)[0].quality.rows_kept == 24


def test_hidden_folders_and_loose_files_are_not_looked_at(tmp_path: Path) -> None:
    _put(tmp_path, "a/observations.csv", GOOD)
    _put(tmp_path, "a/LICENSE.txt", "CC BY")
    _put(tmp_path, "README.md", "hello")
    _put(tmp_path, ".git/config", "x")
    assert [site.name for site in read_folder(tmp_path)] == ["a"]


def test_static_columns_become_numbers_or_text_and_question_marks_are_missing(tmp_path: Path) -> None:
    _put(tmp_path, "a/patients.csv", "patient_id,age,sex,chol\n01,63,f,?\n02,,m,230\n")
    patients = read_folder(tmp_path)[0].patients
    assert patients["age"].tolist()[0] == 63.0
    assert np.isnan(patients["age"].tolist()[1])
    assert np.isnan(patients["chol"].tolist()[0])
    assert patients["sex"].tolist() == ["f", "m"]
    assert patients.index.tolist() == ["01", "02"]


def test_a_site_of_static_columns_only_is_whole(tmp_path: Path) -> None:
    _put(tmp_path, "a/patients.csv", "patient_id,age\n1,63\n1,63\n,5\n")
    site = read_folder(tmp_path)[0]
    assert site.observations.empty
    assert site.quality.rows_read == 3
    assert site.quality.rows_kept == len(site.patients) == 1
    assert sum(site.quality.dropped.values()) == 2


def test_every_observed_patient_is_among_the_patients(tmp_path: Path) -> None:
    _put(tmp_path, "a/observations.csv", GOOD)
    _put(tmp_path, "a/patients.csv", "patient_id,age\n007,63\n99,40\n")
    patients = read_folder(tmp_path)[0].patients
    assert patients.index.tolist() == ["007", "7", "99"]
    assert patients["age"].isna().tolist() == [False, True, False]


def test_a_site_with_one_patient_is_allowed(tmp_path: Path) -> None:
    _put(tmp_path, "a/observations.csv", HEADER + "1,2024-03-01T08:05:00Z,glucose,100,mg/dL\n")
    assert len(read_folder(tmp_path)[0].patients) == 1


def test_lines_with_other_numbers_of_fields_are_dropped_and_counted(tmp_path: Path) -> None:
    _put(
        tmp_path,
        "a/observations.csv",
        GOOD + "8,2024-03-01T08:05:00Z,glucose,5,4,mmol/L\n8,2024-03-01T08:05:00Z\n",
    )
    quality = read_folder(tmp_path)[0].quality
    assert quality.rows_read == 26
    assert quality.dropped == {"line with more or fewer fields than the header": 2}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("observations.csv", "", "empty"),
        ("observations.csv", HEADER, "no row"),
        ("observations.csv", GOOD.replace(",", ";"), "semicolons"),
        ("observations.csv", GOOD.replace(",", "\t"), "tabs"),
        ("observations.csv", GOOD.replace(",", ";").replace("time", "Zeit", 1), "none is called time"),
        ("observations.csv", GOOD.replace("unit", "units", 1), "lacks the column unit"),
        ("observations.csv", ROWS, "first line must name the columns"),
        ("observations.csv", GOOD.replace("time,", "time,time,", 1), "time more than once"),
        ("observations.csv", (GOOD + "é").encode("latin-1"), "iconv -f WINDOWS-1252"),
        ("observations.csv", GOOD.encode("utf-16"), "UTF-16"),
        ("observations.csv", GOOD + "\x00", "NUL"),
        ("observations.csv", GOOD + '"8,2024-03-01T08:05:00Z,glucose,100,mg/dL\n', "never ends"),
        ("observations.csv", gzip.compress(GOOD.encode()), "rename it to end in .csv.gz"),
        ("observations.csv.gz", gzip.compress(GOOD.encode())[:-9], "gzip"),
        ("observations.csv.gz", GOOD, "gzip"),
        ("observations.parquet", b"PAR1 and nothing else", "Parquet"),
        ("observations.csv", GOOD.replace("mg/dL", "mg%"), "mmol/L"),
        ("observations.csv", GOOD.replace("Z,", ","), "data.timezone=Europe/London"),
        ("observations.csv", GOOD.replace("glucose", "interleukin"), "unknown signal: interleukin (24)"),
        (
            "observations.csv",
            GOOD.replace("glucose", "interleukin"),
            "as they are known: glucose, blood_glucose",
        ),
        ("glucose.csv", GOOD, "neither observations nor patients"),
        ("patients.csv", "id,age\n1,63\n", "lacks the column patient_id"),
        ("patients.csv", "patient_id,age\n1,63\n1,64\n", "repeats a patient_id"),
        ("patients.csv", "patient_id,age\n", "no usable row"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_way_to_mend_it(
    tmp_path: Path, name: str, content: str | bytes, told: str
) -> None:
    _put(tmp_path, f"hospital/{name}", content)
    message = _refused(tmp_path)
    assert told in message
    assert "hospital" in message
    assert "To mend it" in message


def test_the_place_of_a_byte_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    _put(tmp_path, "a/observations.csv", GOOD.encode() + b"\xff")
    assert f"byte {len(GOOD):,} (line 26)" in _refused(tmp_path)


def test_all_faults_of_all_sites_come_in_one_message(tmp_path: Path) -> None:
    _put(tmp_path, "a/observations.csv", GOOD.replace("mg/dL", "mg%").replace("Z,", ","))
    _put(tmp_path, "b/observations.csv", GOOD.replace("mg/dL", "mg%"))
    _put(tmp_path, "c/observations.csv", GOOD.encode("utf-16"))
    message = _refused(tmp_path)
    assert "3 problems" in message
    assert all(f"{site}/observations.csv" in message for site in "abc")


def test_two_tables_of_one_kind_are_refused(tmp_path: Path) -> None:
    _put(tmp_path, "a/observations.csv", GOOD)
    _put(tmp_path, "a/observations.csv.gz", gzip.compress(GOOD.encode()))
    assert "observations.csv and observations.csv.gz" in _refused(tmp_path)


def test_identifiers_that_lost_their_zeros_are_noticed(tmp_path: Path) -> None:
    _put(tmp_path, "a/observations.csv", GOOD.replace("\n7,", "\n008,"))
    _put(tmp_path, "a/patients.csv", "patient_id,age\n7,63\n8,64\n")
    assert "leading zeros" in _refused(tmp_path)


def test_the_wrong_level_of_folders_is_recognised(tmp_path: Path) -> None:
    _put(tmp_path, "fed/a/observations.csv", GOOD)
    assert str(tmp_path / "fed") in _refused(tmp_path / "fed" / "a")
    assert f"give {tmp_path / 'fed'}" in _refused(tmp_path)
    assert f"give {tmp_path / 'fed'}" in _refused(tmp_path / "fed" / "a" / "observations.csv")
    assert "does not exist" in _refused(tmp_path / "nothing")
    (tmp_path / "void").mkdir()
    assert "no site folder" in _refused(tmp_path / "void")


def test_links_that_lead_back_or_twice_to_a_place_are_refused(tmp_path: Path) -> None:
    _put(tmp_path, "a/observations.csv", GOOD)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    message = _refused(tmp_path)
    assert "b: is the same folder as a" in message
    assert "loop: is a link back" in message
    assert "2 problems" in message


def test_no_refusal_shows_an_identifier_or_a_value(tmp_path: Path) -> None:
    secret, value = "Zaphod-4711", "123.456"
    line = f"{secret},2024-03-01T08:05:00,glucose,{value},mg%\n"
    _put(tmp_path, "a/observations.csv", HEADER + line)
    _put(tmp_path, "b/observations.csv", line)
    _put(tmp_path, "c/patients.csv", f"patient_id,age\n{secret},{value}\n{secret},5\n")
    message = _refused(tmp_path)
    assert secret not in message
    assert value not in message


def test_an_unknown_zone_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="IANA"):
        read_folder(tmp_path / "nothing", "London")
