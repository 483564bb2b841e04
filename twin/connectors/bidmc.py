"""BIDMC PPG and Respiration (Pimentel et al. 2017): eight minutes of 53 patients in intensive care, 1 Hz."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from twin.connectors.published import Converted, Entries, open_table

LICENCE = """\
Source: Pimentel MAF, Johnson AEW, Charlton PH, Birrenkott D, Watkinson PJ, Tarassenko L, Clifton DA. Toward a
robust estimation of respiratory rate from pulse oximeters. IEEE Transactions on Biomedical Engineering
64(8): 1914-1923, 2017. https://doi.org/10.1109/TBME.2016.2613124 - from MIMIC-II, published on PhysioNet,
https://physionet.org/content/bidmc/
Licence: Open Data Commons Attribution License v1.0 (ODC-By 1.0),
https://opendatacommons.org/licenses/by/1-0/
Changed: brought into one long table with UTC times from a nominal date; empty cells left out.
"""

START = pd.Timestamp("2000-01-01T00:00:00Z")
_COLUMNS = (
    ("HR", "heart_rate", "/min"),
    ("PULSE", "pulse_rate", "/min"),
    ("RESP", "respiratory_rate", "/min"),
    ("SpO2", "spo2", "%"),
)


def convert(source: Path) -> tuple[Converted, ...]:
    """One site, `bidmc`, of the folder with numerics_1hz.csv[.gz]."""
    table = open_table(source, "numerics_1hz", ("id", "Time [s]", *(column for column, _, _ in _COLUMNS)))
    entries = Entries()
    second = pd.to_numeric(table["Time [s]"], errors="coerce")
    entries.leave_out("row without a time", second.isna().sum() * len(_COLUMNS))
    table = table[second.notna()]
    table = table.assign(time=START + pd.to_timedelta(second.dropna(), unit="s"))
    for column, signal, unit in _COLUMNS:
        there = table[column].notna()
        entries.leave_out(f"no {signal}", (~there).sum())
        entries.add(table[there], signal, column, unit)
    observations, quality = entries.cleaned("UTC")
    notes = (
        f"There is no date in the source; every record starts at the nominal {START:%Y-%m-%d %H:%M} UTC.",
        "Records last eight minutes: a forecast of five minutes can be judged in the first three alone.",
    )
    return (
        Converted(site="bidmc", observations=observations, quality=quality, notes=notes, licence=LICENCE),
    )
