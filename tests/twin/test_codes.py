"""Codes mean signals; a site's own go first."""

from __future__ import annotations

from pathlib import Path

import pytest

from twin.codes import Codes, signal_of
from twin.errors import DataError
from twin.signals import SIGNALS


@pytest.mark.parametrize(
    ("system", "code", "signal"),
    [
        ("mdc", "150456", "spo2"),
        ("urn:iso:std:iso:11073:10101", "MDC_PULS_OXIM_SAT_O2", "spo2"),
        ("mdc", "149530", "pulse_rate"),
        ("mdc", "160184", "blood_glucose"),
        ("mdc", "MDC_CONC_GLU_ISF", "glucose"),
        ("mdc", "151708", "etco2"),
        ("http://loinc.org", "2708-6", "spo2"),
        ("LN", "2345-7", "glucose"),
        ("loinc", "41653-7", "blood_glucose"),
        ("loinc", "3150-6", "fio2"),
        ("snomed", "364075005", "heart_rate"),
        ("loinc", "19891-1", "etco2"),
        ("twinward", "steps", "steps"),
        ("carelink", "Sensor Glucose (mg/dL)", "glucose"),
        ("mdc", "150320", None),
        ("loinc", "150456", None),
        ("mdc", "19384", None),
    ],
)
def test_a_code_means_what_its_nomenclature_says(system: str, code: str, signal: str | None) -> None:
    assert signal_of(system, code) == signal


def test_every_preferred_loinc_code_leads_back_to_its_signal() -> None:
    assert {e.name: signal_of("loinc", c) for e in SIGNALS.values() for c in e.loinc} == {
        e.name: e.name for e in SIGNALS.values() if e.loinc
    }


def test_what_a_site_adds_goes_before_the_catalogue(tmp_path: Path) -> None:
    path = tmp_path / "codes.toml"
    path.write_text('[loinc]\n"2345-7" = "blood_glucose"\n[monitor]\n"HR SpO2" = "pulse_rate"\n')
    codes = Codes.read(path)
    assert codes.signal_of("http://loinc.org", "2345-7") == "blood_glucose"
    assert codes.signal_of("Monitor", "hr  spo2") == "pulse_rate"
    assert codes.signal_of("loinc", "8867-4") == "heart_rate"
    assert Codes.read(tmp_path / "none.toml").signal_of("monitor", "HR SpO2") is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[loinc]\n"1-8" = "hart_rate"\n"2-6" = 5\n', ["'heart_rate' meant", "names 5"]),
        ('monitor = "spo2"\n', ["must be a table"]),
        ("[loinc\n", ["is no TOML"]),
        ("\udcff", ["cannot be read as text"]),
    ],
)
def test_a_wrong_file_of_codes_is_refused_with_all_its_faults(
    text: str, told: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "codes.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError) as error:
        Codes.read(path)
    assert all(part in str(error.value) for part in told)
