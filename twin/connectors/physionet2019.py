"""PhysioNet/CinC Challenge 2019: hourly vital signs of intensive care, two kinds of unit of one hospital.

Three sites: `micu` (Unit1, medical), `sicu` (Unit2, surgical) and `icu_unknown`, patients of whom the source
does not say the unit. Three parts of one hospital are less different than three hospitals.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from twin.connectors.published import Converted, Entries, open_table

LICENCE = """\
Source: Reyna MA, Josef CS, Jeter R, Shashikumar SP, Westover MB, Nemati S, Clifford GD, Sharma A. Early
prediction of sepsis from clinical data: the PhysioNet/Computing in Cardiology Challenge 2019. Critical Care
Medicine 48(2): 210-217, 2020. https://doi.org/10.1097/CCM.0000000000004145 - data:
https://doi.org/10.13026/v64v-d857
Licence: Creative Commons Attribution 4.0 International (CC BY 4.0),
https://creativecommons.org/licenses/by/4.0/
Changed: an extract; split by kind of unit; brought into one long table with UTC times from a nominal date;
vital signs and oxygen alone, other laboratory values left out.
"""

START = pd.Timestamp("2000-01-01T00:00:00Z")
SITES = ("micu", "sicu", "icu_unknown")
_COLUMNS = (
    ("HR", "heart_rate", "/min"),
    ("O2Sat", "spo2", "%"),
    ("Temp", "temperature", "Cel"),
    ("SBP", "systolic_bp", "mmHg"),
    ("MAP", "mean_bp", "mmHg"),
    ("DBP", "diastolic_bp", "mmHg"),
    ("Resp", "respiratory_rate", "/min"),
    ("EtCO2", "etco2", "mmHg"),
    ("FiO2", "fio2", "fraction"),
    ("Glucose", "glucose", "mg/dL"),
)
_STATIC = ("Age", "Gender", "Unit1", "Unit2", "ICULOS", "SepsisLabel")


def convert(source: Path) -> tuple[Converted, ...]:
    """Three sites of the folder with hourly.csv[.gz]; one without a patient is left out."""
    table = open_table(source, "hourly", ("id", *_STATIC, *(column for column, _, _ in _COLUMNS)))
    hour = pd.to_numeric(table["ICULOS"], errors="coerce")
    table = table.assign(time=START + pd.to_timedelta(hour, unit="h"), site=_site(table))
    parts = dict(list(table.groupby("site", sort=False)))
    return tuple(_convert(name, parts[name]) for name in SITES if name in parts)


def _site(table: pd.DataFrame) -> np.ndarray:
    """The site of each row, the same for all rows of a patient."""
    first = table.groupby("id", sort=False)[["Unit1", "Unit2"]].transform("first").astype("float64")
    return np.select([first["Unit1"].eq(1), first["Unit2"].eq(1)], SITES[:2], SITES[2])


def _convert(site: str, table: pd.DataFrame) -> Converted:
    entries = Entries()
    entries.leave_out("row without an hour", table["time"].isna().sum() * len(_COLUMNS))
    table = table[table["time"].notna()]
    empty = 0
    for column, signal, unit in _COLUMNS:
        there = table[column].notna()
        empty += int((~there).sum())
        entries.add(table[there], signal, column, unit)
    observations, quality = entries.cleaned("UTC")
    notes = (
        f"There is no date in the source; hour 0 of a stay is the nominal {START:%Y-%m-%d %H:%M} UTC.",
        "One row is one hour of a stay and is stamped at its end, when it is known.",
        f"{empty:,} empty cells give no row. Not converted: laboratory values but glucose.",
        *(
            ("The source does not say in which kind of unit these patients were.",)
            if site == SITES[2]
            else ()
        ),
    )
    return Converted(
        site=site,
        observations=observations,
        patients=_patients(table),
        quality=quality,
        notes=notes,
        licence=LICENCE,
    )


def _patients(table: pd.DataFrame) -> pd.DataFrame:
    """Age (years, 90 and more as the source has them), sex and whether sepsis came, by patient."""
    each = table.groupby("id", sort=True)
    patients = pd.DataFrame(
        {
            "age_years": pd.to_numeric(each["Age"].first(), errors="coerce"),
            "sex": each["Gender"].first().map({"0": "female", "1": "male", "0.0": "female", "1.0": "male"}),
            "sepsis": pd.to_numeric(each["SepsisLabel"].max(), errors="coerce"),
        }
    )
    patients.index = pd.Index(patients.index, dtype="str", name="patient_id")
    return patients
