"""The part of the catalogue that a laboratory or a blood gas analyser measures.

Limits part a fault from a rare value, as in `twin.signals`. Those of PaO2, PaCO2, pH and lactate follow
the published MIMIC-III benchmark (Harutyunyan et al. 2019, `resources/variable_ranges.csv`: pH 6.3 to 10,
where 8.5 is kept here as no patient has lived above it; PaO2 up to 770, the pressure of pure oxygen). HbA1c
in mmol/mol (IFCC) becomes percent (NGSP) by the master equation of the IFCC network:
NGSP = 0.09148 IFCC + 2.152 (Weykamp et al. 2008).
"""

from __future__ import annotations

from typing import Final

from twin.signal import Signal, Units, row

_MMHG: Units = {("mmHg", "mm[Hg]"): 1.0, ("kPa",): 7.50062}
_MMOL_L: Units = {("mmol/L", "mEq/L"): 1.0}
_PERCENT: Units = {("%", "percent"): 1.0, ("1", "fraction"): 100.0}
_CELLS: Units = {("10*9/L", "10^9/L", "10*3/uL", "10^3/uL", "K/uL", "G/L"): 1.0, ("/uL",): 0.001}


def _level(
    name: str,
    unit: str,
    limits: tuple[float, float],
    units: Units,
    loinc: tuple[str, ...],
    ucum: str | None = None,
    g_per_mol: float | None = None,
) -> Signal:
    return row(name, "level", unit, limits, units=units, loinc=loinc, ucum=ucum, g_per_mol=g_per_mol)


LABORATORY: Final = (
    _level("sao2", "%", (10, 100), _PERCENT, ("2713-6", "51733-4")),
    _level("pao2", "mmHg", (10, 800), _MMHG, ("2703-7", "19255-9"), "mm[Hg]"),
    _level("paco2", "mmHg", (5, 250), _MMHG, ("2019-8", "32771-8"), "mm[Hg]"),
    _level(
        "ph", "pH", (6.3, 8.5), {("pH", "[pH]", "1", "unitless", "units"): 1.0}, ("2744-1", "11558-4"), "[pH]"
    ),
    _level("bicarbonate", "mmol/L", (1, 80), _MMOL_L, ("1960-4", "1959-6", "2028-9", "20565-8")),
    _level("base_excess", "mmol/L", (-60, 60), _MMOL_L, ("1925-7", "11555-0")),
    _level(
        "lactate",
        "mmol/L",
        (0.1, 50),
        {("mmol/L", "mEq/L"): 1.0, ("mg/dL",): 1 / 9.008},
        ("2524-7", "32693-4", "2518-9", "2519-7"),
        g_per_mol=90.08,
    ),
    _level(
        "ketones",
        "mmol/L",
        (0, 30),
        {("mmol/L",): 1.0, ("mg/dL",): 1 / 10.41},
        ("104816-4", "6873-4"),
        g_per_mol=104.1,
    ),
    _level(
        "hba1c",
        "%",
        (2.5, 25),
        {("%", "percent"): 1.0, ("mmol/mol",): (0.09148, 2.152)},
        ("4548-4", "17856-6", "59261-8"),
    ),
    _level("sodium", "mmol/L", (80, 220), _MMOL_L, ("2951-2", "2947-0")),
    _level("potassium", "mmol/L", (0.5, 15), _MMOL_L, ("2823-3", "6298-4")),
    _level("chloride", "mmol/L", (50, 200), _MMOL_L, ("2075-0", "2069-3")),
    _level(
        "creatinine",
        "mg/dL",
        (0.05, 60),
        {("mg/dL",): 1.0, ("umol/L", "µmol/L"): 1 / 88.42},
        ("2160-0", "38483-4", "14682-9"),
        g_per_mol=113.12,
    ),
    _level(
        "urea_nitrogen",
        "mg/dL",
        (0.5, 400),
        {("mg/dL",): 1.0, ("mmol/L",): 2.801},
        ("3094-0", "6299-2"),
    ),
    _level(
        "bilirubin",
        "mg/dL",
        (0, 100),
        {("mg/dL",): 1.0, ("umol/L", "µmol/L"): 1 / 17.10},
        ("1975-2", "42719-5", "14631-6"),
        g_per_mol=584.7,
    ),
    _level("hemoglobin", "g/dL", (1, 30), {("g/dL",): 1.0, ("g/L",): 0.1, ("mmol/L",): 1.6114}, ("718-7",)),
    _level("hematocrit", "%", (5, 90), {**_PERCENT, ("L/L",): 100.0}, ("4544-3", "20570-8")),
    _level("white_cells", "10*9/L", (0, 1000), _CELLS, ("6690-2", "26464-8")),
    _level("platelets", "10*9/L", (0, 3000), _CELLS, ("777-3", "26515-7")),
)
