from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twin.connectors.payloads import FORMS, OTHER_PATIENT, Payloads, Told
from twin.connectors.rows import Rows
from twin.connectors.topics import Pattern

TIME = "2024-03-01T10:00:00+00:00"
TOLD = Told(patient="p", device="m", code="spo2")


def read(payload: Any, told: Told = TOLD, **options: Any) -> Rows:
    rows = Rows()
    text = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    Payloads(kind="mqtt", **options).take(text, told, rows)
    return rows


@pytest.mark.parametrize(
    ("payload", "row"),
    [
        ({"time": TIME, "value": 97}, ("p", TIME, "twinward", "spo2", 97.0, "", "m")),
        ({"time": TIME, "value": "97.5", "unit": "%"}, ("p", TIME, "twinward", "spo2", 97.5, "%", "m")),
        (
            {"time": TIME, "value": 97, "system": "mdc", "code": 150456, "device": "x"},
            ("p", TIME, "mdc", "150456", 97.0, "", "x"),
        ),
        ({"time": TIME, "value": 5, "signal": "Pleth"}, ("p", TIME, "mqtt", "Pleth", 5.0, "", "m")),
    ],
    ids=["topic", "text", "mdc", "own"],
)
def test_an_object_is_a_row_with_what_the_topic_says(payload: Any, row: tuple[Any, ...]) -> None:
    assert read(payload).observed == [row]


def test_arrays_samples_values_and_series_are_rows_of_their_own() -> None:
    later = "2024-03-01T10:00:01+00:00"
    several = [{"time": TIME, "value": 97}, {"time": later, "value": 96}]
    forms: list[Any] = [
        several,
        {"samples": several},
        {"samples": [[TIME, 97], [later, 96]]},
        {"time": TIME, "period_ms": 1000, "data": [97, 96]},
    ]
    for form in forms:
        assert [(row[1], row[3], row[4]) for row in read(form).observed] == [
            (TIME, "spo2", 97.0),
            (later, "spo2", 96.0),
        ]
    both = read({"time": TIME, "values": {"heart_rate": 70, "spo2": 97}, "unit": {"heart_rate": "/min"}})
    assert [(row[3], row[4], row[5]) for row in both.observed] == [
        ("heart_rate", 70, "/min"),
        ("spo2", 97, ""),
    ]


def test_options_name_keys_units_epochs_and_columns() -> None:
    found = read({"t": 1709287200, "v": 97}, keys={"time": "t", "value": "v"}, epoch="s", units={"spo2": "%"})
    assert found.observed == [("p", TIME, "twinward", "spo2", 97.0, "%", "m")]
    text = b"time,value,unit\r\n2024-03-01T10:00:00Z,97,%\r\nx\r\n,98,%\n"
    lines = read(text, form="csv")
    assert [(row[1], row[4]) for row in lines.observed] == [("2024-03-01T10:00:00Z", 97.0), ("", 98.0)]
    assert lines.rejected == {"line with other columns": 1}
    plain = read(b" 97\n", Told(patient="p", code="spo2", time=TIME), form="number")
    assert [(row[1], row[4]) for row in plain.observed] == [(TIME, 97.0)]


def observation(**more: Any) -> dict[str, Any]:
    code = {"coding": [{"system": "http://loinc.org", "code": "59408-5"}]}
    quantity = {"value": 97, "unit": "%", "system": "http://unitsofmeasure.org", "code": "%"}
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": code,
        "valueQuantity": quantity,
        "effectiveDateTime": TIME,
    } | more


def test_a_fhir_observation_is_of_its_subject_or_else_of_the_topic_s_patient() -> None:
    row = ("p", TIME, "loinc", "59408-5", 97.0, "%", "")
    assert read(observation()).observed == [row]
    assert read(observation(subject={"reference": "Patient/p"})).observed == [row]
    assert read(observation(subject={"reference": "Patient/p"}), Told()).observed == [row]
    other = read(observation(subject={"reference": "Patient/q"}))
    assert not other.observed and other.rejected == {OTHER_PATIENT: 1}
    assert read([observation(status="entered-in-error"), observation()]).taken_back


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "payload is no JSON"),
        (b"[" * 100_000, "payload is no JSON"),
        (b"7", "payload is no object"),
        ({"time": TIME}, "no value"),
        ({"time": TIME, "value": True}, "value is no number"),
        ({"time": TIME, "value": "1_0"}, "value is no number"),
        ({"time": TIME, "value": "1e999"}, "value is no number"),
        ({"time": 1, "value": 1}, "time is a number, and the option epoch does not say since when"),
        ({"time": [], "value": 1}, "time is no time"),
        ({"time": TIME, "value": 1, "unit": {}}, "unit is no text"),
        ({"time": TIME, "value": 1, "code": "x" * 300}, "code is too long"),
        ({"time": TIME, "value": float("nan")}, "value is no number"),
        ({"time": TIME, "value": 1, "unit": "\ud800"}, "unit has characters that are none"),
        ({"time": TIME, "value": 1, "patient": "q"}, OTHER_PATIENT),
        ([{}] * 10_001, "message with too many rows"),
        ({"data": [1], "time": TIME}, "data without a period_ms"),
        ({"data": [1], "period_ms": 5}, "data without a time"),
    ],
    ids=lambda entry: entry if isinstance(entry, str) else "",
)
def test_what_is_no_row_is_counted_with_its_reason(payload: Any, reason: str) -> None:
    found = read(payload)
    assert not found.observed
    assert found.rejected == {reason: 1}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "patient",
                    "time",
                    "value",
                    "unit",
                    "code",
                    "samples",
                    "values",
                    "data",
                    "period_ms",
                    "resourceType",
                ]
            )
            | st.text(max_size=4),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(json_values, st.sampled_from(["", "s", "ms", "us"]))
def test_no_json_breaks_the_reading_and_a_good_row_beside_it_stays(value: Any, epoch: str) -> None:
    good = {"time": TIME, "value": 97}
    found = read([value, good], epoch=epoch)
    assert found.observed[-1] == ("p", TIME, "twinward", "spo2", 97.0, "", "m")
    assert {row[0] for row in found.observed} <= {"p"}
    assert len(found.batch("").observations) == len(found.observed)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(FORMS))
def test_no_bytes_break_the_reading_and_each_is_a_row_or_a_count(payload: bytes, form: str) -> None:
    found = read(payload, form=form)
    if payload.strip() and form != "csv":
        assert found.observed or found.rejected or payload.strip() == b"[]"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_mutated_observations_of_fhir_are_rows_or_counts(data: st.DataObject) -> None:
    text = bytearray(json.dumps(observation()).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    found = read(bytes(text))
    assert found.observed or found.rejected or found.facts or found.taken_back


levels = st.text(st.characters(blacklist_characters="/+#\0", blacklist_categories=("Cs",)), max_size=5)


@given(levels, levels, levels)
def test_a_topic_gives_back_the_levels_it_was_made_of(patient: str, device: str, signal: str) -> None:
    pattern = Pattern.of("ward/{patient}/x/{device}/{signal}")
    assert pattern.told(f"ward/{patient}/x/{device}/{signal}") == Told(
        patient=patient, device=device, code=signal
    )
    assert pattern.told(f"ward/{patient}/y/{device}/{signal}") is None
    assert pattern.told(f"ward/{patient}/x/{device}") is None


def test_a_series_of_samples_has_the_times_of_its_period() -> None:
    found = read({"time": TIME, "period_ms": 8, "data": list(range(500))})
    begin = datetime.fromisoformat(TIME)
    assert [datetime.fromisoformat(row[1]) for row in found.observed] == [
        begin + timedelta(milliseconds=8 * k) for k in range(500)
    ]
