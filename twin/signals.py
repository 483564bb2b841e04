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

`glucose` is what a patient's glucose is followed by: a sensor, or a laboratory; `blood_glucose` is what a
person measures in capillary blood, by which sensors are judged. `pulse_rate` is counted by an oximeter or a
cuff and may differ from the heart's rate, which needs an electrocardiogram. What a laboratory or a blood
gas analyser gives stands in `twin.laboratory`.
"""

from __future__ import annotations

from collections.abc import Mapping

from twin.laboratory import LABORATORY
from twin.signal import MG_DL_PER_MMOL_L, Kind, Signal, Units, fold, row

__all__ = ["MG_DL_PER_MMOL_L", "SIGNALS", "Kind", "Signal", "conversion"]


def conversion(signal: str, unit: str) -> tuple[float, float] | None:
    """(factor, offset) from `unit` to the canonical unit of `signal`; None if either is unknown.

    >>> conversion("glucose", "mmol/L")
    (18.016, 0.0)
    """
    entry = SIGNALS.get(signal)
    return entry.units.get(fold(unit)) if entry else None


_PER_MIN: Units = {
    ("/min", "1/min", "bpm", "beats/min", "breaths/min", "min-1", "{beats}/min", "{breaths}/min"): 1.0,
}
_PERCENT: Units = {("%", "percent"): 1.0, ("1", "fraction"): 100.0}
_MMHG: Units = {("mmHg", "mm[Hg]"): 1.0, ("kPa",): 7.50062}
_INSULIN: Units = {("U", "[iU]", "IU", "units", "unit"): 1.0, ("mU",): 0.001}
_ENERGY: Units = {("kcal", "Cal_th", "kilocalories"): 1.0, ("kJ",): 1 / 4.184}

_CATALOGUE = (
    row(
        "glucose",
        "level",
        "mg/dL",
        (10, 2000),
        units={("mg/dL",): 1.0, ("mmol/L",): MG_DL_PER_MMOL_L, ("g/L",): 100.0},
        usual=(36, 600),
        step_min=5,
        loinc=(
            *("99504-3", "2339-0", "2345-7", "105272-9", "2344-0", "14745-4"),
            *("15074-8", "14749-6", "1558-6", "6749-6"),
        ),
        g_per_mol=180.16,
    ),
    row(
        "blood_glucose",
        "level",
        "mg/dL",
        (10, 2000),
        units={("mg/dL",): 1.0, ("mmol/L",): MG_DL_PER_MMOL_L, ("g/L",): 100.0},
        usual=(36, 600),
        loinc=("41653-7", "32016-8", "14743-9", "2340-8", "2341-6"),
        g_per_mol=180.16,
    ),
    row(
        "heart_rate",
        "level",
        "/min",
        (10, 350),
        units={**_PER_MIN, ("Hz",): 60.0},
        usual=(30, 250),
        step_min=5,
        loinc=("8867-4", "76282-3"),
    ),
    row(
        "pulse_rate",
        "level",
        "/min",
        (10, 350),
        units={**_PER_MIN, ("Hz",): 60.0},
        usual=(30, 250),
        step_min=5,
        loinc=("8889-8", "8893-0", "8890-6"),
    ),
    row(
        "spo2",
        "level",
        "%",
        (10, 100),
        units=_PERCENT,
        usual=(50, 100),
        step_min=5,
        loinc=("59408-5", "2708-6"),
    ),
    row(
        "perfusion_index",
        "level",
        "%",
        (0, 100),
        units=_PERCENT,
        step_min=5,
        loinc=("61006-3",),
    ),
    row(
        "fio2",
        "level",
        "%",
        (5, 100),
        units=_PERCENT,
        usual=(8, 100),
        step_min=60,
        loinc=("3150-0", "19994-3", "19996-8", "71835-3"),
    ),
    row(
        "etco2",
        "level",
        "mmHg",
        (1, 200),
        ucum="mm[Hg]",
        units=_MMHG,
        usual=(10, 80),
        step_min=5,
        loinc=("19891-1",),
    ),
    row(
        "peep",
        "level",
        "cmH2O",
        (0, 60),
        ucum="cm[H2O]",
        units={("cmH2O", "cm[H2O]", "cm H2O"): 1.0, ("mbar",): 1.01972, ("mmHg", "mm[Hg]"): 1.35951},
        step_min=60,
        loinc=("76248-4", "20077-4"),
    ),
    row(
        "tidal_volume",
        "level",
        "mL",
        (0, 4000),
        units={("mL",): 1.0, ("L",): 1000.0},
        step_min=5,
        loinc=("75958-9", "76222-9", "20112-9"),
    ),
    row(
        "respiratory_rate",
        "level",
        "/min",
        (0, 150),
        units={**_PER_MIN, ("Hz",): 60.0},
        step_min=5,
        loinc=("9279-1",),
    ),
    row(
        "systolic_bp",
        "level",
        "mmHg",
        (20, 375),
        ucum="mm[Hg]",
        units=_MMHG,
        usual=(50, 250),
        step_min=60,
        loinc=("8480-6", "76215-3"),
    ),
    row(
        "diastolic_bp",
        "level",
        "mmHg",
        (5, 375),
        ucum="mm[Hg]",
        units=_MMHG,
        usual=(20, 160),
        step_min=60,
        loinc=("8462-4", "76213-8"),
    ),
    row(
        "mean_bp",
        "level",
        "mmHg",
        (10, 330),
        ucum="mm[Hg]",
        units=_MMHG,
        usual=(30, 200),
        step_min=60,
        loinc=("8478-0", "76214-6"),
    ),
    row(
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
        loinc=("8310-5", "8331-1", "8332-9", "8333-7", "8328-7", "8329-5"),
    ),
    row("insulin_bolus", "dose", "U", (0, 320), ucum="[iU]", units=_INSULIN),
    row(
        "insulin_basal",
        "rate",
        "U/h",
        (0, 40),
        ucum="[iU]/h",
        units={("U/h", "U/hr", "[iU]/h", "IU/h", "units/h"): 1.0, ("mU/min",): 0.06, ("U/min",): 60.0},
    ),
    row("insulin_long_acting", "dose", "U", (0, 320), ucum="[iU]", units=_INSULIN),
    row(
        "carbohydrates",
        "dose",
        "g",
        (0, 1000),
        units={("g", "grams", "gram"): 1.0, ("kg",): 1000.0, ("mg",): 0.001},
        loinc=("9059-7",),
    ),
    row("energy_intake", "dose", "kcal", (0, 20_000), units=_ENERGY, loinc=("9052-2",)),
    row(
        "energy_expenditure",
        "count",
        "kcal",
        (0, 10_000),
        units=_ENERGY,
        step_min=15,
        loinc=("41981-2", "55424-6"),
    ),
    row(
        "steps",
        "count",
        "count",
        (0, 100_000),
        ucum="{steps}",
        units={("count", "steps", "step", "{steps}", "1"): 1.0},
        step_min=15,
        loinc=("55423-8",),
    ),
    row(
        "weight",
        "level",
        "kg",
        (0.2, 650),
        units={("kg",): 1.0, ("g",): 0.001, ("lb", "lbs", "[lb_av]"): 0.45359237},
        loinc=("29463-7", "3141-9", "8335-2"),
    ),
    row(
        "height",
        "level",
        "cm",
        (20, 280),
        units={("cm",): 1.0, ("m",): 100.0, ("mm",): 0.1, ("in", "[in_i]"): 2.54},
        loinc=("8302-2", "8306-3", "8308-9"),
    ),
    *LABORATORY,
)

SIGNALS: Mapping[str, Signal] = {entry.name: entry for entry in _CATALOGUE}
