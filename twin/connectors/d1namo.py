"""D1NAMO (Dubosson et al. 2018): CGM, insulin, meals and a chest belt of 9 people with type 1 diabetes.

The source is a dense table, one row in 5 minutes: a dose or a meal of 0 is none, and where the belt was
not worn its columns are empty or, all of them, 0.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from twin.connectors.published import Converted, Entries, open_table

LICENCE = """\
Source: Dubosson F, Ranvier J-E, Bromuri S, Calbimonte J-P, Ruiz J, Schumacher M. The open D1NAMO dataset:
A multi-modal dataset for research on non-invasive type 1 diabetes management. Informatics in Medicine
Unlocked 13: 92-100, 2018. https://doi.org/10.1016/j.imu.2018.09.003
Licence: Creative Commons Attribution-ShareAlike 4.0 International (CC BY-SA 4.0),
https://creativecommons.org/licenses/by-sa/4.0/ - what is made of this file and passed on must be under the
same licence; keep it in its own folder and do not merge it into other files.
Changed: brought into one long table with UTC times and canonical units; values that stand for absence left
out; columns that have no signal in the catalogue left out.
"""

_DOSES = (
    ("fast_insulin", "insulin_bolus", "U"),
    ("slow_insulin", "insulin_long_acting", "U"),
    ("calories", "energy_intake", "kcal"),
)
_BELT = (("HR", "heart_rate", "/min"), ("BR", "respiratory_rate", "/min"))


def convert(source: Path) -> tuple[Converted, ...]:
    """One site, `d1namo`, of the folder with events.csv[.gz]."""
    columns = ("id", "time", "gl", *(column for column, _, _ in _DOSES + _BELT))
    table = open_table(source, "events", columns)
    entries = Entries()
    entries.add(table, "glucose", "gl", "mg/dL")
    no_dose = 0
    for column, signal, unit in _DOSES:
        none = pd.to_numeric(table[column], errors="coerce").eq(0)
        no_dose += int(none.sum())
        entries.add(table[~none], signal, column, unit)
    worn = pd.to_numeric(table["HR"], errors="coerce").ne(0)
    for column, signal, unit in _BELT:
        there = table[column].notna()
        entries.leave_out(f"{signal} 0 where the belt gave none", (there & ~worn).sum())
        entries.add(table[there & worn], signal, column, unit)
    observations, quality = entries.cleaned("UTC")
    notes = (
        "Times carry no zone in the source; the local clock is written as if it were UTC.",
        f"{no_dose:,} cells that say 0 U or 0 kcal are no dose and give no row.",
        "Meals are given in kcal (energy_intake); grams of carbohydrates are not known.",
        "Not converted: balance, quality (of meals), Posture, Activity, HRV, CoreTemp (an estimate).",
    )
    return (
        Converted(site="d1namo", observations=observations, quality=quality, notes=notes, licence=LICENCE),
    )
