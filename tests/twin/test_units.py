"""Units become the canonical ones, or nobody knows them; never a wrong number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.signals import SIGNALS, conversion
from twin.units import scale


@pytest.mark.parametrize(
    ("signal", "unit", "value", "canonical"),
    [
        ("glucose", "umol/mL", 5.0, 90.08),
        ("glucose", "mg/mL", 1.0, 100.0),
        ("glucose", "264274", 90.0, 90.0),
        ("lactate", "g/L", 0.18016, 2.0),
        ("creatinine", "nmol/mL", 88.4, 1.0),
        ("temperature", "mK", 310_150.0, 37.0),
        ("temperature", "degrees Fahrenheit", 98.6, 37.0),
        ("temperature", "MDC_DIM_DEGC", 37.0, 37.0),
        ("heart_rate", "{beat}/min}", 61.0, 61.0),
        ("heart_rate", "beats/minute", 61.0, 61.0),
        ("spo2", "%{saturation}", 97.0, 97.0),
        ("systolic_bp", "Pa", 16_000.0, 120.01),
        ("weight", "[oz_av]", 100.0, 2.835),
        ("height", "[ft_i]", 6.0, 182.88),
        ("white_cells", "10*6/uL", 0.005, 5.0),
        ("ph", "", 7.4, 7.4),
    ],
)
def test_units_convert_as_physics_says(signal: str, unit: str, value: float, canonical: float) -> None:
    pair = scale(signal, unit)
    assert pair is not None
    assert pair[0] * value + pair[1] == pytest.approx(canonical, rel=1e-3)


@pytest.mark.parametrize(
    ("signal", "unit"),
    [
        ("spo2", "mmol/mol"),  # both without dimension
        ("spo2", ""),
        ("spo2", "{whatever}"),
        ("glucose", ""),
        ("glucose", "1"),
        ("glucose", "mmol/L; DROP"),
        ("insulin_bolus", "/min"),
        ("insulin_bolus", "mg"),
        ("white_cells", "[iU]/L"),
        ("potassium", "mg/dL"),  # no molar mass in the catalogue
        ("heart_rate", "mm[Hg]"),
        ("glucose", "x" * 100_000),
        ("glucose", "(" * 60),
        ("no such signal", "mg/dL"),
    ],
)
def test_a_unit_that_does_not_fit_is_unknown(signal: str, unit: str) -> None:
    assert scale(signal, unit) is None


def test_the_spellings_of_the_catalogue_agree_with_ucum() -> None:
    """Two independent tables: ours, and UCUM's as ucumvert and pint have it."""
    from twin.units import _by_ucum

    compared = 0
    for entry in SIGNALS.values():
        for unit in entry.shown:
            ours = conversion(entry.name, unit)
            theirs = _by_ucum(unit, entry.ucum, entry.g_per_mol)
            if theirs is not None:
                assert ours == pytest.approx(theirs, rel=2e-3), (entry.name, unit)
                compared += 1
    assert compared > 40


@given(unit=st.text(max_size=30), signal=st.sampled_from(sorted(SIGNALS)))
def test_no_text_makes_a_crash(unit: str, signal: str) -> None:
    pair = scale(signal, unit)
    assert pair is None or pair[0] > 0
