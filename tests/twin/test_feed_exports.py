from __future__ import annotations

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.twin import exported
from twin.connectors.feed import Batch
from twin.connectors.feeds import build
from twin.errors import DataError
from twin.ingest import Ingest

MG_DL = 18.016


def read(kind: str, folder: Path, position: str = "", **options: object) -> list[Batch]:
    feed = build(kind, {"name": "f", "path": str(folder), "settle_s": 0.0, **options})
    return list(feed.batches(position))


def stored(batches: list[Batch], timezone: str | None = "UTC") -> pd.DataFrame:
    """What the ingest makes of batches."""
    ingest = Ingest(pseudonym=str, timezone=timezone)
    rows = pd.concat([ingest.take(batch, "f").observations for batch in batches])
    return rows.sort_values(["signal", "time"], ignore_index=True)


def counted(batches: list[Batch]) -> dict[str, int]:
    found: dict[str, int] = {}
    for batch in batches:
        for reason, rows in [*batch.rejected.items(), *batch.fixed.items()]:
            found[reason] = found.get(reason, 0) + rows
    return found


def values(rows: pd.DataFrame, signal: str) -> list[float]:
    return [round(float(value), 2) for value in rows.loc[rows["signal"] == signal, "value"]]


def put(folder: Path, name: str, text: str, patient: str = "MRN1") -> Path:
    path = folder / patient / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_clarity_gives_sensor_meter_insulin_and_carbohydrates_and_no_name(tmp_path: Path) -> None:
    put(tmp_path, "Clarity_Export_Planted_Ada.csv", exported.CLARITY)
    batches = read("clarity", tmp_path)
    rows = stored(batches)
    assert values(rows, "glucose") == [121, 40, 400]
    assert values(rows, "blood_glucose") == [130]
    assert values(rows, "insulin_bolus") == [5.5]
    assert values(rows, "insulin_long_acting") == [18]
    assert values(rows, "carbohydrates") == [40]
    assert set(rows["patient_id"]) == {"MRN1"}
    assert counted(batches) == {
        "kind of event not used": 1,
        "value is no number": 1,
        '"Low" of a sensor set to its limit': 1,
        '"High" of a sensor set to its limit': 1,
    }
    assert "Planted" not in json.dumps([batch.observations.to_dict() for batch in batches], default=str)


def test_a_german_clarity_export_with_semicolons_and_decimal_commas_is_the_same_to_the_twin(
    tmp_path: Path,
) -> None:
    put(tmp_path, "export.csv", exported.CLARITY_GERMAN)
    rows = stored(read("clarity", tmp_path))
    assert values(rows, "glucose") == [round(6.7 * MG_DL, 2), 40]
    assert values(rows, "carbohydrates") == [40]


def test_libreview_reads_every_type_of_record_and_dates_with_the_month_first(tmp_path: Path) -> None:
    put(tmp_path, "e.csv", exported.LIBREVIEW)
    batches = read("libreview", tmp_path)
    rows = stored(batches)
    assert values(rows, "glucose") == [110, 40, 118]
    assert values(rows, "blood_glucose") == [121]
    assert values(rows, "ketones") == [0.6]
    assert values(rows, "insulin_bolus") == [6, 4]
    assert values(rows, "insulin_long_acting") == [20]
    assert values(rows, "carbohydrates") == [45]
    assert rows.loc[rows["signal"] == "glucose", "time"].min() == pd.Timestamp("2024-02-03T13:12Z")
    assert counted(batches)["servings without grams"] == 1
    assert counted(batches)["type of record not known"] == 1
    assert counted(batches)["note not used"] == 1


def test_a_german_libreview_export_has_the_day_first_because_its_own_date_says_so(tmp_path: Path) -> None:
    put(tmp_path, "e.csv", exported.LIBREVIEW_GERMAN)
    rows = stored(read("libreview", tmp_path))
    assert values(rows, "glucose") == [round(6.1 * MG_DL, 2), 500]
    assert rows["time"].min() == pd.Timestamp("2024-02-03T13:12Z")


@pytest.mark.parametrize("text", ["03-02-2024 12:05 UTC", "14-02-2024 12:05 UTC"])
def test_dates_that_fit_both_orders_or_neither_refuse_the_file_unless_the_order_is_declared(
    tmp_path: Path, text: str
) -> None:
    broken = exported.LIBREVIEW.replace("02-14-2024 12:05 UTC", text)
    if text.startswith("03"):
        broken = broken.replace("02-13-", "02-03-")
    put(tmp_path, "e.csv", broken)
    (batch,) = read("libreview", tmp_path)
    assert batch.observations.empty
    assert "date_order" in next(iter(batch.rejected))
    assert not stored(read("libreview", tmp_path, date_order="mdy")).empty


def test_carelink_gives_boluses_over_their_duration_and_the_rate_after_a_temporary_one(
    tmp_path: Path,
) -> None:
    put(tmp_path, "e.csv", exported.CARELINK)
    batches = read("carelink", tmp_path)
    rows = stored(batches)
    assert values(rows, "glucose") == [142, 148]
    assert values(rows, "blood_glucose") == [151]
    assert values(rows, "carbohydrates") == [45]
    bolus = rows[rows["signal"] == "insulin_bolus"]
    assert len(bolus) == 13
    assert bolus["value"].sum() == pytest.approx(7.0)
    basal = rows[rows["signal"] == "insulin_basal"]
    assert [
        (time.hour, round(rate, 2)) for time, rate in zip(basal["time"], basal["value"], strict=True)
    ] == [
        (0, 0.8),
        (5, 1.2),
        (6, 1.5),
        (7, 1.0),
    ]
    assert counted(batches) == {"row with nothing that is used": 1}


def test_a_european_carelink_export_has_semicolons_commas_and_the_day_first(tmp_path: Path) -> None:
    put(tmp_path, "e.csv", exported.CARELINK_EUROPE)
    rows = stored(read("carelink", tmp_path))
    assert values(rows, "glucose") == [round(7.8 * MG_DL, 2)]
    assert values(rows, "insulin_bolus") == [2.35]
    assert list(rows["time"].dt.month) == [1, 2]


@pytest.mark.parametrize("form", ["array", "ndjson", "object", "gzip"])
def test_nightscout_reads_the_same_from_an_array_lines_an_object_of_arrays_and_a_gzip(
    tmp_path: Path, form: str
) -> None:
    items = json.loads(exported.NIGHTSCOUT)
    text = {
        "array": json.dumps(items, indent=2),
        "ndjson": "\n".join(map(json.dumps, items)),
        "object": json.dumps({"profile": items[:1], "entries": items[1:6], "treatments": items[6:]}),
        "gzip": exported.NIGHTSCOUT,
    }[form]
    path = put(tmp_path, "e.json", text)
    if form == "gzip":
        path.with_name("e.json.gz").write_bytes(gzip.compress(text.encode()))
        path.unlink()
    batches = read("nightscout", tmp_path)
    rows = stored(batches, timezone=None)
    assert values(rows, "glucose") == [120, 40]
    assert values(rows, "blood_glucose") == [131, round(7.2 * MG_DL, 2)]
    assert values(rows, "carbohydrates") == [40]
    assert rows.loc[rows["signal"] == "insulin_bolus", "value"].sum() == pytest.approx(7.0)
    assert values(rows, "insulin_basal") == [0.6]
    assert counted(batches)["sensor's code of a fault"] == 1
    assert counted(batches)["record not used: store"] == 1


def test_tidepool_gives_dual_boluses_rates_pens_and_food_at_the_right_instants(tmp_path: Path) -> None:
    put(tmp_path, "e.json", exported.TIDEPOOL)
    batches = read("tidepool", tmp_path)
    rows = stored(batches, timezone=None)
    assert values(rows, "glucose") == [round(5.55 * MG_DL, 2)]
    assert rows.loc[rows["signal"] == "blood_glucose", "time"].iloc[0] == pd.Timestamp("2024-02-01T00:05Z")
    assert rows.loc[rows["signal"] == "insulin_bolus", "value"].sum() == pytest.approx(5.0)
    assert values(rows, "insulin_basal") == [0.75, 0.0]
    assert values(rows, "insulin_long_acting") == [14]
    assert values(rows, "carbohydrates") == [45, 20]
    assert counted(batches) == {"type of record not used": 1}


def test_a_file_of_another_kind_is_refused_with_its_reason_and_the_others_are_read(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", exported.LIBREVIEW)
    put(tmp_path, "b.csv", exported.CLARITY)
    batches = read("clarity", tmp_path)
    assert counted(batches)["file refused: this is no Dexcom Clarity export"] == 1
    assert len(values(stored(batches), "glucose")) == 3


def test_an_export_that_is_nobodys_is_refused_and_the_option_says_whose_it_is(tmp_path: Path) -> None:
    (tmp_path / "MRN7_export.csv").write_text(exported.CLARITY, encoding="utf-8")
    assert "folder named after its patient" in next(iter(read("clarity", tmp_path)[0].rejected))
    assert set(stored(read("clarity", tmp_path, patient="file"))["patient_id"]) == {"MRN7"}
    assert set(stored(read("clarity", tmp_path, patient="id:X 9"))["patient_id"]) == {"X 9"}
    with pytest.raises(DataError, match="option patient"):
        read("clarity", tmp_path, patient="header")


@pytest.mark.parametrize("cut", [0, 1, 3, 5])
def test_a_feed_that_stops_after_any_batch_goes_on_at_the_row(tmp_path: Path, cut: int) -> None:
    put(tmp_path, "e.csv", exported.CLARITY)
    whole = read("clarity", tmp_path)
    parts = read("clarity", tmp_path, rows_per_batch=1)
    position = parts[cut].position
    rest = read("clarity", tmp_path, position, rows_per_batch=1)
    both = pd.concat([batch.observations for batch in [*parts[: cut + 1], *rest]], ignore_index=True)
    pd.testing.assert_frame_equal(both, whole[0].observations)
    assert counted([*parts[: cut + 1], *rest]) == counted(whole)


def test_a_file_that_grew_goes_on_one_that_changed_is_read_anew_the_same_is_left(tmp_path: Path) -> None:
    path = put(tmp_path, "e.csv", exported.CLARITY)
    position = read("clarity", tmp_path)[-1].position
    assert read("clarity", tmp_path, position) == []
    more = "15,2024-02-02T01:00:00,EGV,,,,iPhone G6,99,,,,,1,8X\n"
    path.write_text(exported.CLARITY + more, encoding="utf-8")
    grown = read("clarity", tmp_path, position)
    assert [len(batch.observations) for batch in grown] == [1]
    path.write_text(exported.CLARITY.replace(",121,", ",122,") + more, encoding="utf-8")
    changed = read("clarity", tmp_path, grown[-1].position)
    assert sum(len(batch.observations) for batch in changed) == 8


KINDS = {
    "clarity": ("e.csv", exported.CLARITY),
    "libreview": ("e.csv", exported.LIBREVIEW),
    "carelink": ("e.csv", exported.CARELINK),
    "nightscout": ("e.json", exported.NIGHTSCOUT),
    "tidepool": ("e.json", exported.TIDEPOOL),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
@given(data=st.data())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_files_never_crash_and_every_row_of_the_ingest_is_accounted_for(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    name, text = KINDS[kind]
    raw = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(raw) - 1))
        width = data.draw(st.integers(0, 40))
        raw[at : at + width] = data.draw(
            st.binary(max_size=8) | st.sampled_from([b'"', b"\n", b"{", b"}", b","])
        )
    path = tmp_path / "MRN1" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(raw))
    batches = read(kind, tmp_path)
    assert batches[-1].position
    ingest = Ingest(pseudonym=str, timezone="UTC")
    for batch in batches:
        counts = ingest.take(batch, "f").counts
        fates = counts[counts["fate"].isin(["kept", "dropped", "quarantined"])]
        assert fates["rows"].sum() == len(batch.observations) + sum(batch.rejected.values())


@pytest.mark.parametrize("kind", ["clarity", "libreview"])
@given(line=st.integers(8, 12), junk=st.binary(max_size=60).filter(lambda b: b"\n" not in b))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_broken_line_costs_no_other_line(tmp_path: Path, kind: str, line: int, junk: bytes) -> None:
    name, text = KINDS[kind]
    path = tmp_path / "MRN1" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    options = {"date_order": "mdy"} if kind == "libreview" else {}
    clean = read(kind, tmp_path, **options)[0].observations
    lines = text.encode().split(b"\n")
    lines.insert(line, b'7,"' + junk.replace(b"\r", b""))
    path.write_bytes(b"\n".join(lines))
    broken = read(kind, tmp_path, **options)[0].observations
    pd.testing.assert_frame_equal(broken, clean)


@given(place=st.integers(1, 8), junk=st.sampled_from(['{"type": "cbg", "va', "{]", '{"a": nul}', "garbage"]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_broken_object_costs_no_other_object(tmp_path: Path, place: int, junk: str) -> None:
    items = [json.dumps(item) for item in json.loads(exported.TIDEPOOL)]
    path = put(tmp_path, "e.json", "\n".join(items))
    clean = read("tidepool", tmp_path)[0].observations
    items.insert(place, junk)
    path.write_text("\n".join(items), encoding="utf-8")
    pd.testing.assert_frame_equal(read("tidepool", tmp_path)[0].observations, clean)


def test_an_export_on_one_line_longer_than_any_buffer_is_read(tmp_path: Path) -> None:
    item = {"type": "cbg", "value": 5.5, "units": "mmol/L", "time": "2024-02-01T00:00:00Z", "deviceId": "D"}
    long = json.dumps(item | {"payload": "x" * 900_000})
    put(tmp_path, "e.json", "[" + ",".join([long] * 40) + "]")  # 36 MB, of which a line may have 32
    batches = read("tidepool", tmp_path)
    assert sum(len(batch.observations) for batch in batches) == 40


def test_an_extended_dose_equal_to_the_one_given_at_once_is_not_taken_for_its_double(tmp_path: Path) -> None:
    item = {
        "type": "bolus",
        "normal": 2.0,
        "extended": 4.0,
        "duration": 600_000,
        "time": "2024-02-01T00:00:00Z",
    }
    put(tmp_path, "e.json", json.dumps([item | {"deviceId": "D"}]))
    rows = stored(read("tidepool", tmp_path))
    assert rows["value"].sum() == pytest.approx(6.0)
    assert len(rows) == 3
