"""Raw rows into canonical observations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twin.cleaning import CANONICAL, COLUMNS, Cleaned, clean, step_minutes
from twin.signals import SIGNALS

TIME = "2024-03-01T08:05:00Z"


def _raw(*rows: tuple[Any, ...]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype("str")


def _values(cleaned: Cleaned) -> list[float]:
    return cleaned.observations["value"].tolist()


def test_a_row_becomes_canonical() -> None:
    cleaned = clean(_raw(("007", TIME, " Glucose ", "5.5", "mmol/L")), source="observations.csv")
    row = cleaned.observations.iloc[0]
    assert tuple(cleaned.observations.columns) == CANONICAL
    assert row["patient_id"] == "007"
    assert row["signal"] == "glucose"
    assert row["value"] == pytest.approx(99.088)
    assert row["source"] == "observations.csv"
    assert cleaned.observations["time"].dtype == "datetime64[us, UTC]"
    assert cleaned.observations["value"].dtype == np.float64
    assert not cleaned.faults


def test_rows_come_out_sorted_by_patient_signal_and_time() -> None:
    later = "2024-03-01T08:10:00Z"
    rows = [("b", TIME, "glucose"), ("a", later, "glucose"), ("a", TIME, "steps"), ("a", TIME, "glucose")]
    units = {"glucose": "mg/dL", "steps": "count"}
    frame = clean(_raw(*[(*row, "100", units[row[2]]) for row in rows])).observations
    key = ["patient_id", "signal", "time"]
    pd.testing.assert_frame_equal(frame, frame.sort_values(key, ignore_index=True))
    assert frame["patient_id"].tolist() == ["a", "a", "a", "b"]


def test_a_repeated_row_is_kept_once_even_if_its_unit_differs() -> None:
    cleaned = clean(
        _raw(
            ("a", TIME, "glucose", "90", "mg/dL"),
            ("a", TIME, "glucose", "90.0", "mg/dL"),
            ("a", TIME, "glucose", "0.9", "g/L"),
        )
    )
    assert _values(cleaned) == [90.0]
    assert cleaned.quality.dropped == {"duplicate": 2}


@pytest.mark.parametrize(
    ("signal", "unit", "values", "kept"),
    [
        ("glucose", "mg/dL", ("90", "100", "140"), 100.0),
        ("heart_rate", "/min", ("60", "70"), 65.0),
        ("insulin_bolus", "U", ("3.27", "0"), 3.27),
        ("carbohydrates", "g", ("36", "35"), 71.0),
        ("insulin_basal", "U/h", ("0.8", "0"), 0.0),
        ("steps", "count", ("10", "30"), 20.0),
    ],
)
def test_other_values_at_one_time_follow_the_kind_of_signal(
    signal: str, unit: str, values: tuple[str, ...], kept: float
) -> None:
    cleaned = clean(_raw(*[("a", TIME, signal, value, unit) for value in values]))
    assert _values(cleaned) == pytest.approx([kept])
    assert cleaned.quality.dropped == {"duplicate time, other value": len(values) - 1}


def test_real_lows_and_highs_stay_and_impossible_values_go() -> None:
    values = ("20", "9", "1100", "2500", "-5")
    rows = [("a", f"2024-03-01T08:0{i}:00Z", "glucose", value, "mg/dL") for i, value in enumerate(values)]
    cleaned = clean(_raw(*rows))
    assert _values(cleaned) == [20.0, 1100.0]
    assert cleaned.quality.dropped == {"outside limits: glucose": 3}


def test_a_meal_dated_2204_goes_and_a_record_shifted_by_a_century_stays() -> None:
    rows = [("a", f"2023-10-0{day}T12:00:00Z", "carbohydrates", "30", "g") for day in range(1, 6)]
    shifted = [("b", f"2150-10-0{day}T12:00:00Z", "carbohydrates", "30", "g") for day in range(1, 6)]
    cleaned = clean(_raw(*rows, ("a", "2204-10-01T12:00:00Z", "carbohydrates", "30", "g"), *shifted))
    assert len(cleaned.observations) == 10
    assert sum(cleaned.quality.dropped.values()) == 1


def test_an_unknown_signal_is_put_aside_by_name() -> None:
    cleaned = clean(_raw(("a", TIME, "interleukin", "1", "ng/L"), ("a", TIME, "glucose", "90", "mg/dL")))
    assert cleaned.quality.quarantined == {"unknown signal: interleukin": 1}
    assert not cleaned.faults


def test_identifiers_in_the_column_signal_are_not_shown() -> None:
    many = clean(_raw(*[("glucose", TIME, f"Name {chr(65 + i)}", "90", "mg/dL") for i in range(26)]))
    one = clean(_raw(("glucose", TIME, "1960-04-01", "90", "mg/dL")))
    assert many.quality.quarantined == {"unknown signals of many names": 26}
    assert one.quality.quarantined == {"unknown signal: (not shown)": 1}


def test_an_unknown_unit_stops_and_names_what_is_accepted() -> None:
    cleaned = clean(_raw(("a", TIME, "glucose", "90", "mg%"), ("a", TIME, "heart_rate", "90", "mg/dL")))
    told = " ".join(f"{fault.what} {fault.fix}" for fault in cleaned.faults)
    assert len(cleaned.faults) == 2
    assert "mg%" in told and "mmol/L" in told and "bpm" in told


def test_a_missing_unit_stops() -> None:
    cleaned = clean(_raw(("a", TIME, "glucose", "90", "")))
    assert "no unit" in cleaned.faults[0].what


def test_naive_times_stop_and_the_message_names_the_key() -> None:
    rows = _raw(("a", "2024-03-01T08:05:00", "glucose", "90", "mg/dL"), ("a", TIME, "glucose", "90", "mg/dL"))
    refused = clean(rows)
    assert "1 of 2" in refused.faults[0].what and "data.timezone" in refused.faults[0].fix
    read = clean(rows, timezone="Europe/London")
    assert not read.faults
    assert read.quality.fixed == {"time without zone, read as Europe/London": 1}


@pytest.mark.parametrize(
    ("value", "unit"), [("5.4", "mg/dL"), ("11.2", "mg/dL"), ("98", "mmol/L"), ("0.9", "mg/dL")]
)
def test_a_unit_that_is_known_but_wrong_is_noticed(value: str, unit: str) -> None:
    rows = [("a", f"2024-03-01T{hour:02d}:00:00Z", "glucose", value, unit) for hour in range(24)]
    assert clean(_raw(*rows)).faults


def test_zeros_that_stand_for_absence_are_dropped_without_stopping() -> None:
    rows = [
        ("a", f"2024-03-01T{hour:02d}:00:00Z", "heart_rate", "70" if hour > 20 else "0", "/min")
        for hour in range(24)
    ]
    cleaned = clean(_raw(*rows))
    assert not cleaned.faults
    assert cleaned.quality.dropped == {"outside limits: heart_rate": 21}


def test_decimal_commas_stop_with_the_cause() -> None:
    rows = [("a", f"2024-03-01T{hour:02d}:00:00Z", "glucose", "5,4", "mmol/L") for hour in range(24)]
    assert "5.4, not 5,4" in clean(_raw(*rows)).faults[0].fix


def test_numbers_for_times_stop() -> None:
    frame = _raw(("a", TIME, "glucose", "90", "mg/dL")).assign(time=1_700_000_000)
    assert "numbers" in clean(frame).faults[0].what


def test_no_message_holds_an_identifier_or_a_value() -> None:
    secret, value = "Zaphod-4711", "123.456"
    rows = [
        (secret, "2024-03-01T08:05:00", "glucose", value, "mg/dL"),
        (secret, TIME, "glucose", value, "furlong"),
        (secret, "yesterday", "glucose", value, "mg/dL"),
        (secret, TIME, "glucose", f"{value}x", "mg/dL"),
        (secret, TIME, "interleukin", value, "mmol/L"),
    ]
    cleaned = clean(_raw(*rows))
    told = f"{cleaned.quality} {cleaned.faults}"
    assert secret not in told and value not in told


def test_the_typical_step_is_the_median_within_patients() -> None:
    rows = [
        (patient, f"2024-03-0{day}T08:{minute:02d}:00Z", "glucose", "90", "mg/dL")
        for patient, day in (("a", 1), ("b", 5))
        for minute in (0, 5, 10, 15, 30)
    ]
    assert step_minutes(clean(_raw(*rows)).observations) == {"glucose": 5.0}


def test_no_rows_give_no_rows() -> None:
    cleaned = clean(_raw())
    assert cleaned.observations.empty and tuple(cleaned.observations.columns) == CANONICAL


ROW = st.tuples(
    st.sampled_from(["a", "b", " a ", "", None]),
    st.sampled_from(
        [TIME, "2024-03-01T09:05:00+01:00", "2024-10-27T01:30", "2024-03-31T01:30", "", "soon", None]
    ),
    st.sampled_from(["glucose", "Heart Rate", "steps", "insulin_bolus", "mood", "", None]),
    st.sampled_from(["90", "5.5", "0", "-1", "1e9", "nan", "inf", "x", "", None]),
    st.sampled_from(["mg/dL", "mmol/L", "/min", "count", "U", "furlong", "", None]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ROW, max_size=40), st.sampled_from([None, "Europe/London"]))
def test_every_row_read_is_kept_dropped_or_put_aside(rows: list[tuple[Any, ...]], zone: str | None) -> None:
    cleaned = clean(pd.DataFrame(rows, columns=list(COLUMNS)), timezone=zone)
    quality, frame = cleaned.quality, cleaned.observations
    assert quality.rows_read == len(rows)
    assert quality.rows_kept == len(frame)
    lost = sum(quality.dropped.values()) + sum(quality.quarantined.values())
    assert quality.rows_read == quality.rows_kept + lost
    assert not frame.duplicated(["patient_id", "signal", "time"]).any()
    assert not frame.isna().any().any()
    low = frame["signal"].map({name: entry.low for name, entry in SIGNALS.items()})
    assert (frame["value"] >= low.astype("float64")).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(ROW, max_size=30), st.randoms(use_true_random=False))
def test_the_order_of_rows_matters_only_for_rates_and_the_hour_that_comes_twice(
    rows: list[tuple[Any, ...]], random: Any
) -> None:
    zoned = [row for row in rows if row[1] != "2024-10-27T01:30"]
    mixed = list(zoned)
    random.shuffle(mixed)
    first, second = (
        clean(pd.DataFrame(some, columns=list(COLUMNS)), timezone="UTC").observations
        for some in (zoned, mixed)
    )
    pd.testing.assert_frame_equal(first, second)
