"""varFiO2: volunteers who breathe ever less oxygen, watched by several pulse oximeters side by side, 1 Hz.

The names of the last columns are shifted against their contents by three: what stands under `Insp TV 3`
is the inspired oxygen in percent (21 at the start, lowered in steps to 10), under `Exp TV 3` the end-tidal
CO2 in percent and under `Rig FiO2` the same in mmHg (their ratio is one constant, the dry pressure of the
air), under `RR ECG 3` the heart rate of an ECG, which follows the oximeters' pulse. They are read so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from twin.connectors.published import Converted, Entries, open_table
from twin.errors import DataError

LICENCE = """\
Source: varFiO2, pulse oximetry of volunteers while the inspired oxygen is lowered, as its publisher gave it.
Licence: MIT. Permission is granted, free of charge, to use, copy, modify, merge, publish and distribute it,
provided that this notice is kept; it is provided as is, without warranty of any kind.
Changed: brought into one long table with UTC times from a nominal date; the median of the oximeters that were
attached; columns of drives and gains left out; inspired oxygen, end-tidal CO2 and heart rate taken from the
columns that hold them, which is not where their names stand.
"""

START = pd.Timestamp("2000-01-01T00:00:00Z")
_OXIMETERS = (1, 2, 3, 4, 5)
_SHIFTED = (
    ("RR ECG 3", "heart_rate", "/min"),
    ("Insp TV 3", "fio2", "%"),
    ("Rig FiO2", "etco2", "mmHg"),
)
# Where the shifted columns hold what they are taken for: inspired oxygen of room air, in percent.
_ROOM_AIR_PCT = (18.0, 23.0)


def convert(source: Path) -> tuple[Converted, ...]:
    """One site, `varfio2`, of the folder with oximetry_1hz.csv[.gz].

    Raises:
        DataError: not the recording that this was written for.
    """
    columns = [f"{kind} {number}" for kind in ("SpO2", "Pulse") for number in _OXIMETERS]
    table = open_table(source, "oximetry_1hz", ("id", "Time", *columns, *(name for name, _, _ in _SHIFTED)))
    entries = Entries()
    halted = table["Time"].astype("str").str.strip().eq("Collection Halted")
    entries.leave_out("closing line of a record", halted.sum() * (2 + len(_SHIFTED)))
    table = _timed(table[~halted])
    _check(table)
    for kind, signal, unit in (("SpO2", "spo2", "%"), ("Pulse", "pulse_rate", "/min")):
        value = _median(table, [f"{kind} {number}" for number in _OXIMETERS])
        _add(entries, table.assign(value=value), signal, unit)
    for column, signal, unit in _SHIFTED:
        number = pd.to_numeric(table[column], errors="coerce")
        _add(entries, table.assign(value=number.where(number > 0)), signal, unit)
    observations, quality = entries.cleaned("UTC")
    notes = (
        f"Times of day without a date; records are put on the nominal {START:%Y-%m-%d}, as if UTC.",
        "One record has no clock; its rows count as seconds from midnight.",
        "SpO2 and pulse are the medians of the oximeters that were attached (0 is: not attached).",
        "Inspired oxygen, end-tidal CO2 and heart rate stand under other columns' names in the source.",
        "Oxygen is lowered by a plan that is the same for all: who knows it needs no physiology.",
    )
    return (
        Converted(site="varfio2", observations=observations, quality=quality, notes=notes, licence=LICENCE),
    )


def _timed(table: pd.DataFrame) -> pd.DataFrame:
    clock = pd.to_timedelta(table["Time"].str.strip(), errors="coerce")
    place = pd.to_timedelta(table.groupby("id").cumcount(), unit="s")
    no_clock = clock.isna().groupby(table["id"]).transform("all")
    return table.assign(time=START + clock.where(~no_clock, place))


def _median(table: pd.DataFrame, columns: list[str]) -> pd.Series:
    values = table[columns].apply(pd.to_numeric, errors="coerce")
    middle: pd.Series = values.where(values > 0).median(axis=1)
    return middle


def _add(entries: Entries, table: pd.DataFrame, signal: str, unit: str) -> None:
    there = table["value"].notna() & table["time"].notna()
    entries.leave_out(f"no {signal}", (~there).sum())
    entries.add(table[there], signal, "value", unit)


def _check(table: pd.DataFrame) -> None:
    start = table.groupby("id", sort=False).head(30)
    oxygen = float(np.nanmedian(pd.to_numeric(start["Insp TV 3"], errors="coerce")))
    if not _ROOM_AIR_PCT[0] <= oxygen <= _ROOM_AIR_PCT[1]:
        raise DataError(
            "varfio2: expected the inspired oxygen (21 % at the start of a record) in the column "
            "'Insp TV 3', where the known publication has it; this file has something else there."
        )
