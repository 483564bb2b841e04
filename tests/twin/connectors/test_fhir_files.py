from __future__ import annotations

import contextlib
import json
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twin.codes import signal_of
from twin.connectors.fhir_files import FhirFiles
from twin.connectors.fhir_models import TYPES, Refused, read_xml, validated
from twin.connectors.fhir_rows import Reader
from twin.connectors.rows import Rows
from twin.errors import DataError

LOINC = "http://loinc.org"
UCUM = "http://unitsofmeasure.org"


def observation(value: float = 72.0, **more: Any) -> dict[str, Any]:
    made = {
        "resourceType": "Observation",
        "status": "final",
        "code": {"coding": [{"system": LOINC, "code": "8867-4"}]},
        "subject": {"reference": "Patient/p1"},
        "effectiveDateTime": "2024-03-01T10:00:00+01:00",
        "valueQuantity": {"value": value, "unit": "bpm", "system": UCUM, "code": "/min"},
    }
    return {name: entry for name, entry in (made | more).items() if entry is not None}


def rows_of(*resources: Any, **options: Any) -> Rows:
    reader, rows = Reader(**options), Rows()
    for resource in resources:
        reader.take_text(resource if isinstance(resource, bytes) else json.dumps(resource).encode(), rows)
    return rows


def read_all(
    path: Path, position: str = "", **options: Any
) -> tuple[pd.DataFrame, pd.DataFrame, Counter[str]]:
    batches = list(FhirFiles(name="t", path=path, **options).batches(position))
    rejected: Counter[str] = Counter()
    for batch in batches:
        rejected.update(batch.rejected)
    return (
        pd.concat([batch.observations for batch in batches], ignore_index=True),
        pd.concat([batch.facts for batch in batches], ignore_index=True),
        rejected,
    )


def resources_below(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.rglob("*.json")):
        whole = json.loads(path.read_bytes())
        entries = whole.get("entry", [{"resource": whole}])
        found += [entry["resource"] for entry in entries if entry["resource"]["resourceType"] in TYPES]
    return found


def test_the_fast_way_and_fhir_resources_agree_on_every_resource_there_is(recordings: Path) -> None:
    from fhir.resources.R4B.observation import Observation

    compared = 0
    for resource in resources_below(recordings / "fhir"):
        text = json.dumps(resource).encode()
        try:
            again = validated(text, resource["resourceType"])
        except ValueError:
            continue  # what the library refuses it cannot be asked about
        fast = rows_of(text, waveforms=True)
        slow = rows_of(again, waveforms=True)
        assert fast.rejected == slow.rejected
        assert [_fact(row) for row in fast.facts] == [_fact(row) for row in slow.facts]
        assert [row[4] for row in fast.observed] == [row[4] for row in slow.observed]
        assert [_moment(row[1]) for row in fast.observed] == [_moment(row[1]) for row in slow.observed]
        if resource["resourceType"] == "Observation" and fast.observed:
            model: Any = Observation.model_validate(resource)
            parts = [model, *(model.component or [])]
            numbers = [float(part.valueQuantity.value) for part in parts if part.valueQuantity]
            for part in parts:
                if series := part.valueSampledData:
                    origin, factor = float(series.origin.value), float(series.factor or 1)
                    numbers += [origin + float(sample) * factor for sample in series.data.split()]
            assert [row[4] for row in fast.observed] == pytest.approx(numbers)
        compared += 1
    assert compared > 700


def _fact(row: tuple[str, str, str]) -> tuple[str, str, datetime | str]:
    return row[0], row[1], _moment(row[2]) if row[1].startswith("encounter_") else row[2]


def _moment(time: str) -> datetime | str:
    return datetime.fromisoformat(time) if "T" in time else time


def test_the_pulse_oximeters_bundle_gives_its_saturations_and_pulses(recordings: Path) -> None:
    path = recordings / "fhir/phd/input/examples/bundle-continuousnonin.json"
    observations, _, rejected = read_all(path)
    signals = Counter(map(signal_of, observations["system"], observations["code"]))
    assert signals["spo2"] == signals["pulse_rate"] == 12
    assert set(observations["patient"]) == {"patientExample-1"}
    saturations = observations[observations["code"] == "150456"]
    assert saturations["value"].between(95, 100).all() and set(saturations["unit"]) == {"%"}
    # 47 observations: 36 with a number, one without, and ten of the device's state (41 flags)
    assert len(observations) == 36
    assert rejected == {"value is no number": 41, "no value: not-a-number": 1}


def test_synthetic_records_are_read_whole(recordings: Path) -> None:
    observations, facts, _ = read_all(recordings / "fhir/synthea_r4")
    expected: Counter[str] = Counter()
    for resource in resources_below(recordings / "fhir/synthea_r4"):
        if resource["resourceType"] == "Observation":
            for part in [resource, *resource.get("component", [])]:
                expected[part["code"]["coding"][0]["code"]] += "valueQuantity" in part
    assert Counter(observations["code"]) == +expected
    assert observations["patient"].nunique() == facts["patient"].nunique() == 6
    assert set(observations["patient"]) <= set(facts["patient"])
    assert facts["name"].str.startswith("condition:snomed:").any()
    assert {"birth_date", "sex", "encounter_class"} <= set(facts["name"])


def test_references_within_a_bundle_and_to_it_mean_the_same_patient(recordings: Path) -> None:
    observations, facts, _ = read_all(recordings / "fhir/carebundle")
    assert observations["patient"].nunique() == facts["patient"].nunique() == 1


def test_bedside_monitors_xml_is_read_as_their_json_would_be(recordings: Path) -> None:
    folder = recordings / "fhir/pocd/input/examples"
    observations, facts, _ = read_all(folder, waveforms=True)
    pressures = observations[observations["code"].isin(["150021", "150022", "150023"])]
    assert list(pressures["value"]) == [120.0, 80.0, 90.0] and set(pressures["unit"]) == {"mm[Hg]"}
    tree = ET.parse(folder / "Observation-CVPSampleArrayObservation.xml")
    data = tree.find(".//{http://hl7.org/fhir}data")
    assert data is not None
    samples = [float(sample) for sample in data.attrib["value"].split()]
    venous = observations[observations["code"] == "150084"]
    assert list(venous["value"]) == samples
    assert datetime.fromisoformat(venous["time"].iloc[1]).microsecond == 8_000
    assert dict(zip(facts["name"], facts["value"], strict=True))["sex"] == "male"


@pytest.mark.parametrize(
    "text",
    [
        b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><Patient xmlns="http://hl7.org/fhir">&b;</Patient>',
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><Patient xmlns="http://hl7.org/fhir"/>',
        b'<Patient xmlns="http://hl7.org/fhir">' + b"<a>" * 100 + b"</a>" * 100 + b"</Patient>",
        b'<Patient xmlns="http://hl7.org/fhir">',
        b"<Patient/>",
        b'<?xml version="1.0" encoding="utf-9"?><Patient xmlns="http://hl7.org/fhir"/>',
        b"",
    ],
    ids=["laughs", "file", "deep", "cut", "foreign", "encoding", "empty"],
)
def test_xml_that_is_dangerous_or_none_is_refused(text: bytes) -> None:
    with pytest.raises(Refused):
        read_xml(text)


def test_json_nested_beyond_reason_is_refused_and_its_neighbours_stay() -> None:
    deep = b'{"resourceType":"Observation","extension":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    rows = rows_of(observation(71), deep, observation(72))
    assert [row[4] for row in rows.observed] == [71, 72]
    assert rows.rejected == {"not JSON": 1}


def test_a_series_has_its_origin_factor_and_marks() -> None:
    sampled = {
        "origin": {"value": 90, "unit": "%", "system": UCUM, "code": "%"},
        "period": 2000,
        "factor": 0.5,
        "dimensions": 1,
        "data": "10 E 12 L U 14",
    }
    rows = rows_of(observation(valueQuantity=None, valueSampledData=sampled))
    assert [(row[1][11:19], row[4], row[5]) for row in rows.observed] == [
        ("10:00:00", 95.0, "%"),
        ("10:00:04", 96.0, "%"),
        ("10:00:10", 97.0, "%"),
    ]
    assert rows.rejected == {
        "sample in error": 1,
        "sample below the limit of detection": 1,
        "sample above the limit of detection": 1,
    }


def test_a_wave_of_an_unknown_code_is_counted_and_not_taken_unless_asked_for() -> None:
    code = {"coding": [{"system": "urn:iso:std:iso:11073:10101", "code": "150452"}]}
    sampled = {"origin": {"value": 0}, "period": 8, "dimensions": 1, "data": "1 2 3"}
    wave = observation(valueQuantity=None, valueSampledData=sampled, code=code)
    assert rows_of(wave).rejected == {"sample of a waveform": 3}
    assert len(rows_of(wave, waveforms=True).observed) == 3


@pytest.mark.parametrize("status", ["entered-in-error", "cancelled"])
def test_an_error_takes_its_row_back_also_from_the_same_batch(status: str) -> None:
    batch = rows_of(observation(72), observation(72, status=status)).batch("")
    assert batch.observations.empty and list(batch.withdrawn["code"]) == ["8867-4"]


def test_a_correction_takes_the_row_back_and_gives_it_anew_whatever_zone_its_time_is_in() -> None:
    corrected = observation(80, status="corrected", effectiveDateTime="2024-03-01T09:00:00Z")
    batch = rows_of(observation(72), corrected, observation(60, subject={"reference": "Patient/p2"})).batch(
        ""
    )
    assert list(batch.observations["value"]) == [80, 60]
    assert list(batch.withdrawn["patient"]) == ["p1"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"status": "registered"}, "observation without a result yet"),
        ({"subject": {"reference": "Device/d"}}, "subject is no patient"),
        ({"subject": None}, "no patient"),
        ({"code": {"text": "pulse of Ms Miller"}}, "observation without a code"),
        ({"valueQuantity": {"value": 40, "comparator": "<"}}, "a bound, no value"),
        ({"valueQuantity": None, "valueString": "ok"}, "value is no number"),
        ({"valueQuantity": {"value": "fast"}}, "invalid resource: Observation"),
        ({"status": None}, "invalid resource: Observation"),
    ],
)
def test_what_is_no_row_is_counted_by_its_reason(change: dict[str, Any], reason: str) -> None:
    rows = rows_of(observation(**change))
    assert not rows.observed and rows.rejected == {reason: 1}


def test_what_the_fast_way_refuses_and_the_library_reads_is_read() -> None:
    rows = rows_of(observation(valueQuantity={"value": "72.5", "unit": "/min"}))
    assert [row[4] for row in rows.observed] == [72.5]


def test_no_words_of_a_resource_reach_a_batch() -> None:
    words: dict[str, Any] = {
        "text": {"status": "generated", "div": "<div>Miller</div>"},
        "note": [{"text": "Miller"}],
        "device": {"display": "Miller's watch"},
        "performer": [{"display": "Dr Miller"}],
    }
    patient = {"resourceType": "Patient", "id": "p1", "name": [{"family": "Miller"}], "gender": "male"}
    broken = observation(status=7, valueString="Miller")
    batch = rows_of(observation(**words), patient, broken).batch("")
    shown = batch.observations.to_csv() + batch.facts.to_csv() + str(batch.rejected)
    assert "Miller" not in shown and "p1" in shown


def test_insulin_given_is_a_dose_or_a_rate_and_a_regimen_is_neither() -> None:
    aspart = {"coding": [{"system": "http://www.nlm.nih.gov/research/umls/rxnorm", "code": "51428"}]}
    base = {"subject": {"reference": "Patient/p"}, "status": "completed"}
    units = {"value": 4, "unit": "U", "system": UCUM, "code": "[iU]"}
    hour = {"value": 2, "unit": "h", "system": UCUM, "code": "h"}
    span = {"start": "2024-03-01T10:00:00Z", "end": "2024-03-01T12:00:00Z"}
    bolus = base | {
        "resourceType": "MedicationAdministration",
        "medicationReference": {"reference": "#m"},
        "contained": [{"resourceType": "Medication", "id": "m", "code": aspart}],
        "effectiveDateTime": "2024-03-01T09:00:00Z",
        "dosage": {"dose": units},
    }
    drip = bolus | {
        "effectivePeriod": span,
        "dosage": {"rateRatio": {"numerator": units, "denominator": hour}},
    }
    del drip["effectiveDateTime"]
    regimen = base | {
        "resourceType": "MedicationStatement",
        "medicationCodeableConcept": aspart,
        "effectivePeriod": {"start": "2020-01-01"},
        "dosage": [{"doseAndRate": [{"doseQuantity": units}]}],
    }
    rows = rows_of(bolus, drip, regimen)
    assert [(row[1][11:16], *row[2:6]) for row in rows.observed] == [
        ("09:00", "rxnorm", "51428", 4.0, "[iU]"),
        ("10:00", "twinward", "insulin_basal", 2.0, "[iU]/h"),
        ("12:00", "twinward", "insulin_basal", 0.0, "[iU]/h"),
    ]
    assert rows.rejected == {"a regimen, no dose": 1}
    taken_back = rows_of(bolus | {"status": "entered-in-error"}).batch("")
    assert len(taken_back.withdrawn) == 1 and taken_back.observations.empty


def test_a_bulk_export_gives_every_row_once_wherever_it_is_interrupted(tmp_path: Path) -> None:
    _export(tmp_path)
    feed = FhirFiles(name="t", path=tmp_path, identifier="urn:mrn", rows_per_batch=7)
    whole = [tuple(row) for batch in feed.batches("") for row in batch.observations.itertuples(index=False)]
    assert len(whole) == len(set(whole)) == 40 and {row[0] for row in whole} == {"MRN-0", "MRN-1", "MRN-2"}
    for committed in range(1, 6):
        rows, position = [], ""
        for number, batch in enumerate(feed.batches("")):
            if number == committed:
                break
            rows += [tuple(row) for row in batch.observations.itertuples(index=False)]
            position = batch.position
        for batch in feed.batches(position):
            rows += [tuple(row) for row in batch.observations.itertuples(index=False)]
        assert rows == whole
    last = list(feed.batches(""))[-1].position
    assert list(feed.batches(last)) == [] and "Observation" not in last
    (tmp_path / "late.ndjson").write_text(json.dumps(observation(50, subject={"reference": "Patient/p2"})))
    assert [len(batch.observations) for batch in feed.batches(last)] == [1]


def _export(folder: Path) -> None:
    people = [
        {"resourceType": "Patient", "id": f"p{k}", "identifier": [{"system": "urn:mrn", "value": f"MRN-{k}"}]}
        for k in range(3)
    ]
    (folder / "Patient.ndjson").write_text("\n".join(map(json.dumps, people)))
    lines = [
        json.dumps(observation(60 + k, subject={"reference": f"Patient/p{k % 3}"}, note=[{"text": "é" * k}]))
        for k in range(40)
    ]
    (folder / "1.Observation.ndjson").write_text("\n".join([*lines[:20], "{broken", *lines[20:]]) + "\n")


def test_a_damaged_archive_or_file_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.ndjson.gz").write_bytes(b"\x1f\x8b\x08\x00 no archive")
    (tmp_path / "b.json").write_bytes(b'{"resourceType": "Bundle", "entry": [')
    entries = [
        None,
        {},
        {"resource": 5},
        {"resource": observation(66)},
        {"resource": {"resourceType": "Claim"}},
        {"resource": {"resourceType": "Featherstone"}},
    ]
    (tmp_path / "c.json").write_text(json.dumps({"resourceType": "Bundle", "entry": entries}))
    observations, _, rejected = read_all(tmp_path)
    assert list(observations["value"]) == [66]
    assert rejected == {
        "file cannot be read": 1,
        "not JSON": 1,
        "no FHIR resource": 2,
        "entry without a resource": 1,
        "resource not used: Claim": 1,
        "resource not used: of another type": 1,
    }


def test_a_path_that_is_not_there_and_a_damaged_position_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="option path"):
        list(FhirFiles(name="t", path=tmp_path / "none").batches(""))
    with pytest.raises(DataError, match="position"):
        list(FhirFiles(name="t", path=tmp_path).batches("[1]"))


SAMPLE = json.dumps(observation(61)).encode()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.binary(max_size=4)), min_size=1, max_size=6))
def test_fuzz_a_mutated_resource_never_costs_its_neighbours(changes: list[tuple[int, bytes]]) -> None:
    mutated = bytearray(SAMPLE)
    for place, put in changes:
        mutated[place : place + len(put)] = put
    rows = rows_of(observation(1), bytes(mutated), observation(2))
    values = [row[4] for row in rows.observed]
    assert values[0] == 1 and values[-1] == 2
    assert len(values) - 2 + len(rows.taken_back) + sum(rows.rejected.values()) >= 1
    rows.batch("")


JUNK = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(observation())), JUNK, st.sampled_from(sorted(TYPES)))
def test_fuzz_any_shape_of_any_field_is_read_or_counted(name: str, junk: Any, kind: str) -> None:
    resource = observation(**{name: junk}) | {"resourceType": kind, "id": "x", "period": junk, "class": junk}
    rows_of(resource).batch("")


XML = (
    b'<Observation xmlns="http://hl7.org/fhir"><status value="final"/><code><coding><system '
    b'value="http://loinc.org"/><code value="8867-4"/></coding></code><subject><reference '
    b'value="Patient/p"/></subject><effectiveDateTime value="2024-01-01T00:00:00Z"/><valueQuantity>'
    b'<value value="72"/><unit value="/min"/></valueQuantity></Observation>'
)


def test_a_bundle_in_xml_gives_the_rows_of_its_entries() -> None:
    patient = b'<Patient><id value="p"/><resourceType><x/></resourceType><gender value="female"/></Patient>'
    contained = (
        b'<MedicationAdministration><contained><Medication><id value="m"/><code><coding><system value='
        b'"http://www.nlm.nih.gov/research/umls/rxnorm"/><code value="51428"/></coding></code></Medication>'
        b'</contained><status value="completed"/><medicationReference><reference value="#m"/>'
        b'</medicationReference><subject><reference value="urn:uuid:1"/></subject><effectiveDateTime value='
        b'"2024-01-01T00:00:00Z"/><dosage><dose><value value="4"/><unit value="U"/></dose></dosage>'
        b"</MedicationAdministration>"
    )
    entries = [
        b'<entry><fullUrl value="urn:uuid:1"/><resource>%s</resource></entry>' % one
        for one in (contained, patient, XML)
    ]
    bundle = b'<Bundle xmlns="http://hl7.org/fhir">' + b"".join(entries) + b"<entry/></Bundle>"
    reader, rows = Reader(), Rows()
    reader.take_bundle(read_xml(bundle), rows)
    assert [(row[0], row[3], row[4]) for row in rows.observed] == [("p", "51428", 4.0), ("p", "8867-4", 72.0)]
    assert rows.facts == [("p", "sex", "female")]
    assert rows.rejected == {"entry without a resource": 1}


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(XML) - 1), st.binary(min_size=1, max_size=6))
def test_fuzz_mutated_xml_is_read_or_refused(place: int, put: bytes) -> None:
    reader, rows = Reader(), Rows()
    reader.take_bundle(read_xml(XML), rows)
    assert [row[4] for row in rows.observed] == [72.0]
    with contextlib.suppress(Refused):
        reader.take_bundle(read_xml(XML[:place] + put + XML[place + len(put) :]), Rows())
