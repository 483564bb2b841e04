"""The catalogue of signals: name, code, unit, accepted spellings of units, limits, typical step, kind.

A new signal is one more entry of `SIGNALS`. Limits tell a faulty value from a rare one, they are no
normal ranges: real lows and highs stay. Upper limits of vital signs are those of the published
MIMIC-III benchmark (Harutyunyan et al. 2019, `resources/variable_ranges.csv`: heart rate 350, blood
pressure 375, mean 330, temperature 45, glucose 2000). Deviations: its lower limit of glucose, 33 mg/dL,
would remove real hypoglycaemia, so 10 mg/dL, the lowest that hospital point-of-care meters report;
its 0 for heart rate, SpO2 and pressures is what monitors write when nothing is attached, so these start
above 0; respiratory rate ends at 150 /min and temperature starts at 13 Cel (the deepest accidental
hypothermia that was survived is 13.7). Doses end above the largest single injection of a marketed pen
(U-500 insulin, 300 U) and the greatest rate of a marketed pump (35 U/h).

1 mmol/L of glucose is 18.016 mg/dL (molar mass 180.16 g/mol).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

MG_DL_PER_MMOL_L = 18.016

Kind = Literal["level", "rate", "dose", "count"]
Units = Mapping[tuple[str, ...], float | tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One row of the catalogue.

    Attributes:
        name: as it stands in the column `signal`.
        kind: level is measured, rate holds until the next row, dose happens at its moment, count
            covers an interval and is stamped at its end, when it is known.
        unit: canonical unit, as it is printed.
        ucum: the same in UCUM.
        units: accepted unit, casefolded, to (factor, offset): canonical = factor * value + offset.
        shown: the accepted units as a person writes them, for messages.
        low, high: inclusive limits in the canonical unit; a value outside is a fault.
        usual: between these lies the median of any site; elsewhere the unit is wrong. None: not checked.
        step_min: typical minutes between two values; None where there is none.
        loinc: codes, the preferred one first; empty where LOINC has no fitting term.
    """

    name: str
    kind: Kind
    unit: str
    ucum: str
    units: Mapping[str, tuple[float, float]]
    shown: tuple[str, ...]
    low: float
    high: float
    usual: tuple[float, float] | None = None
    step_min: float | None = None
    loinc: tuple[str, ...] = ()


def conversion(signal: str, unit: str) -> tuple[float, float] | None:
    """(factor, offset) from `unit` to the canonical unit of `signal`; None if either is unknown.

    >>> conversion("glucose", "mmol/L")
    (18.016, 0.0)
    """
    entry = SIGNALS.get(signal)
    return entry.units.get(_fold(unit)) if entry else None


def _fold(unit: str) -> str:
    return "".join(unit.split()).casefold()


def _signal(
    name: str,
    kind: Kind,
    unit: str,
    limits: tuple[float, float],
    *,
    ucum: str | None = None,
    units: Units,
    usual: tuple[float, float] | None = None,
    step_min: float | None = None,
    loinc: tuple[str, ...] = (),
) -> Signal:
    table: dict[str, tuple[float, float]] = {}
    for spellings, scale in units.items():
        pair = scale if isinstance(scale, tuple) else (scale, 0.0)
        table |= {_fold(spelling): pair for spelling in spellings}
    return Signal(
        name=name,
        kind=kind,
        unit=unit,
        ucum=ucum or unit,
        units=table,
        shown=tuple(spelling for spellings in units for spelling in spellings),
        low=limits[0],
        high=limits[1],
        usual=usual,
        step_min=step_min,
        loinc=loinc,
    )


_PER_MIN: Units = {
    ("/min", "1/min", "bpm", "beats/min", "breaths/min", "min-1", "{beats}/min", "{breaths}/min"): 1.0
}
_MMHG: Units = {("mmHg", "mm[Hg]"): 1.0, ("kPa",): 7.50062}
_INSULIN: Units = {("U", "[iU]", "IU", "units", "unit"): 1.0, ("mU",): 0.001}
_ENERGY: Units = {("kcal", "Cal_th", "kilocalories"): 1.0, ("kJ",): 1 / 4.184}

_CATALOGUE = (
    _signal(
        "glucose",
        "level",
        "mg/dL",
        (10, 2000),
        units={("mg/dL",): 1.0, ("mmol/L",): MG_DL_PER_MMOL_L, ("g/L",): 100.0},
        usual=(36, 600),
        step_min=5,
        loinc=("99504-3", "2339-0", "2345-7", "41653-7"),
    ),
    _signal(
        "heart_rate",
        "level",
        "/min",
        (10, 350),
        units={**_PER_MIN, ("Hz",): 60.0},
        usual=(30, 250),
        step_min=5,
        loinc=("8867-4",),
    ),
    _signal(
        "spo2",
        "level",
        "%",
        (10, 100),
        units={("%", "percent"): 1.0, ("1", "fraction"): 100.0},
        usual=(50, 100),
        step_min=5,
        loinc=("59408-5", "2708-6"),
    ),
    _signal(
        "respiratory_rate",
        "level",
        "/min",
        (0, 150),
        units={**_PER_MIN, ("Hz",): 60.0},
        step_min=5,
        loinc=("9279-1",),
    ),
    _signal(
        "pulse_rate",
        "level",
        "/min",
        (10, 350),
        units={**_PER_MIN, ("Hz",): 60.0},
        usual=(30, 250),
        step_min=5,
        loinc=("8889-8",),
    ),
    _signal(
        "fio2",
        "level",
        "%",
        (5, 100),
        units={("%", "percent"): 1.0, ("1", "fraction"): 100.0},
        usual=(8, 100),
        step_min=60,
        loinc=("3150-6",),
    ),
    _signal(
        "etco2",
        "level",
        "mmHg",
        (1, 150),
        ucum="mm[Hg]",
        units=_MMHG,
        usual=(10, 80),
        step_min=5,
        loinc=("19891-1",),
    ),
    _signal(
        "systolic_bp",
        "level",
        "mmHg",
        (20, 375),
        ucum="mm[Hg]",
        units=_MMHG,
        usual=(50, 250),
        step_min=60,
        loinc=("8480-6",),
    ),
    _signal(
        "diastolic_bp",
        "level",
        "mmHg",
        (5, 375),
        ucum="mm[Hg]",
        units=_MMHG,
        usual=(20, 160),
        step_min=60,
        loinc=("8462-4",),
    ),
    _signal(
        "mean_bp",
        "level",
        "mmHg",
        (10, 330),
        ucum="mm[Hg]",
        units=_MMHG,
        usual=(30, 200),
        step_min=60,
        loinc=("8478-0",),
    ),
    _signal(
        "temperature",
        "level",
        "Cel",
        (13, 45),
        units={
            ("Cel", "degC", "°C", "C"): 1.0,
            ("degF", "[degF]", "°F", "F"): (5 / 9, -160 / 9),
            ("K",): (1.0, -273.15),
        },
        usual=(30, 42),
        step_min=60,
        loinc=("8310-5",),
    ),
    _signal("insulin_bolus", "dose", "U", (0, 320), ucum="[iU]", units=_INSULIN),
    _signal(
        "insulin_basal",
        "rate",
        "U/h",
        (0, 40),
        ucum="[iU]/h",
        units={("U/h", "U/hr", "[iU]/h", "IU/h", "units/h"): 1.0, ("mU/min",): 0.06, ("U/min",): 60.0},
    ),
    _signal("insulin_long_acting", "dose", "U", (0, 320), ucum="[iU]", units=_INSULIN),
    _signal(
        "carbohydrates",
        "dose",
        "g",
        (0, 1000),
        units={("g", "grams", "gram"): 1.0, ("kg",): 1000.0, ("mg",): 0.001},
    ),
    _signal("energy_intake", "dose", "kcal", (0, 20_000), units=_ENERGY, loinc=("9052-2",)),
    _signal(
        "energy_expenditure",
        "count",
        "kcal",
        (0, 10_000),
        units=_ENERGY,
        step_min=15,
        loinc=("41981-2", "55424-6"),
    ),
    _signal(
        "steps",
        "count",
        "count",
        (0, 100_000),
        ucum="{steps}",
        units={("count", "steps", "step", "{steps}", "1"): 1.0},
        step_min=15,
        loinc=("55423-8",),
    ),
)

SIGNALS: Mapping[str, Signal] = {entry.name: entry for entry in _CATALOGUE}
