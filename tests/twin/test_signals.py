"""The catalogue of signals."""

from __future__ import annotations

import pytest

from twin.signals import MG_DL_PER_MMOL_L, SIGNALS, conversion

DESIGNED = {
    "glucose": "mg/dL",
    "heart_rate": "/min",
    "spo2": "%",
    "respiratory_rate": "/min",
    "pulse_rate": "/min",
    "fio2": "%",
    "etco2": "mmHg",
    "systolic_bp": "mmHg",
    "diastolic_bp": "mmHg",
    "mean_bp": "mmHg",
    "temperature": "Cel",
    "insulin_bolus": "U",
    "insulin_basal": "U/h",
    "insulin_long_acting": "U",
    "carbohydrates": "g",
    "energy_intake": "kcal",
    "energy_expenditure": "kcal",
    "steps": "count",
}


def test_the_catalogue_holds_the_designed_signals_in_their_units() -> None:
    units = {name: entry.unit for name, entry in SIGNALS.items()}
    assert {name: units.get(name) for name in DESIGNED} == DESIGNED


def test_every_loinc_code_has_its_check_digit_and_names_one_signal() -> None:
    codes = [code for entry in SIGNALS.values() for code in entry.loinc]
    assert len(set(codes)) == len(codes)
    for code in codes:
        body, check = code.split("-")
        digits = [int(digit) for digit in reversed(body)]
        total = sum(sum(divmod(2 * d, 10)) if place % 2 == 0 else d for place, d in enumerate(digits))
        assert (10 - total % 10) % 10 == int(check), code


@pytest.mark.parametrize("name", SIGNALS)
def test_the_canonical_unit_and_its_ucum_spelling_convert_to_themselves(name: str) -> None:
    entry = SIGNALS[name]
    assert conversion(name, entry.unit) == (1.0, 0.0)
    assert conversion(name, entry.ucum) == (1.0, 0.0)
    assert entry.low < entry.high
    assert entry.usual is None or entry.low <= entry.usual[0] < entry.usual[1] <= entry.high


@pytest.mark.parametrize(
    ("signal", "unit", "value", "canonical"),
    [
        ("glucose", "mmol/L", 5.5, 5.5 * MG_DL_PER_MMOL_L),
        ("glucose", " MMOL / l ", 1.0, 18.016),
        ("temperature", "degF", 98.6, 37.0),
        ("temperature", "[degF]", 212.0, 100.0),
        ("temperature", "K", 310.15, 37.0),
        ("spo2", "1", 0.97, 97.0),
        ("systolic_bp", "kPa", 16.0, 120.01),
        ("energy_intake", "kJ", 4184.0, 1000.0),
        ("insulin_basal", "mU/min", 10.0, 0.6),
        ("hba1c", "mmol/mol", 53.0, 7.0),
        ("lactate", "mg/dL", 18.0, 2.0),
        ("creatinine", "umol/L", 88.4, 1.0),
        ("pao2", "kPa", 13.3, 99.8),
        ("peep", "mbar", 10.0, 10.2),
    ],
)
def test_units_convert_as_a_textbook_says(signal: str, unit: str, value: float, canonical: float) -> None:
    scale = conversion(signal, unit)
    assert scale is not None
    assert scale[0] * value + scale[1] == pytest.approx(canonical, rel=1e-3)


def test_a_unit_of_another_signal_is_unknown() -> None:
    assert conversion("heart_rate", "mg/dL") is None
    assert conversion("no such signal", "mg/dL") is None


def test_real_extremes_lie_within_limits() -> None:
    glucose, spo2, heart_rate = SIGNALS["glucose"], SIGNALS["spo2"], SIGNALS["heart_rate"]
    assert glucose.low < 20 and glucose.high > 1200
    assert spo2.low < 61
    assert heart_rate.low < 25 and heart_rate.high > 250
