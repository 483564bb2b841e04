"""Manchester T1D-UOM: CGM, insulin, meals and a wristband of people with type 1 diabetes.

Times of glucose, insulin and meals are local without zone and are read as Europe/London. The wristband
states the true offset of every row (also on journeys), and that is used. Steps and energy belong to an
interval of 15 minutes; they are stamped at its end, when they are known, because a forecast may use nothing
later than its moment.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from twin.connectors.published import Converted, Entries, has_table, open_table

ZONE = "Europe/London"

LICENCE = """\
Source: Manchester T1D-UOM, University of Manchester: longitudinal multimodal dataset of type 1 diabetes.
Licence: Creative Commons Attribution 4.0 International (CC BY 4.0),
https://creativecommons.org/licenses/by/4.0/
Changed: this site is made of an extract; brought into one long table with UTC times and canonical units;
repeated and impossible rows left out, parts of one interval or one meal added, columns that have no signal
in the catalogue left out.
"""

_FIRST, _LAST = "2015-01-01", "2035-01-01"
_INTERVAL_S = 900


def convert(source: Path) -> tuple[Converted, ...]:
    """One site, `t1d_uom`, of the folder with glucose.csv[.gz] and, where there, the other four tables."""
    entries = Entries()
    _plain(entries, source, "glucose", "bg_ts", "value", "glucose", "mmol/L")
    absent = [name for name in ("basal", "bolus", "meals", "activity") if not has_table(source, name)]
    if "bolus" not in absent:
        _plain(entries, source, "bolus", "bolus_ts", "bolus_dose", "insulin_bolus", "U")
    if "basal" not in absent:
        _basal(entries, source)
    if "meals" not in absent:
        _meals(entries, source)
    if "activity" not in absent:
        _activity(entries, source)
    observations, quality = entries.cleaned(ZONE)
    notes = [
        f"Local times without zone are read as {ZONE}; journeys abroad cannot be seen in them.",
        "Steps and energy are stamped at the end of their 15 minutes; energy is that of activity only.",
        "Not converted: protein, fat, fibre, tags of meals; distance, intensity and motion of the wristband.",
    ]
    if absent:
        notes.append(f"Not in the source: {', '.join(absent)}.")
    site = Converted(
        site="t1d_uom", observations=observations, quality=quality, notes=tuple(notes), licence=LICENCE
    )
    return (site,)


def _dated(entries: Entries, table: pd.DataFrame) -> pd.DataFrame:
    """Rows whose date can be one of the study."""
    impossible = table["time"].notna() & ~table["time"].between(_FIRST, _LAST)
    entries.leave_out("impossible date", impossible.sum())
    return table[~impossible]


def _plain(entries: Entries, source: Path, name: str, time: str, value: str, signal: str, unit: str) -> None:
    table = open_table(source, name, ("id", time, value)).rename(columns={time: "time"})
    entries.add(_dated(entries, table), signal, value, unit)


def _basal(entries: Entries, source: Path) -> None:
    """R is the rate of a pump, L an injection of long-acting insulin."""
    table = open_table(source, "basal", ("id", "basal_ts", "basal_dose", "insulin_kind"))
    table = _dated(entries, table.rename(columns={"basal_ts": "time"}))
    kind = table["insulin_kind"].str.strip()
    entries.add(table[kind.eq("R")], "insulin_basal", "basal_dose", "U/h")
    entries.add(table[kind.eq("L")], "insulin_long_acting", "basal_dose", "U")
    entries.leave_out("basal insulin of unknown kind", (~kind.isin(["R", "L"])).sum())


def _meals(entries: Entries, source: Path) -> None:
    """Several foods at one time are one meal."""
    table = open_table(source, "meals", ("id", "meal_ts", "carbs_g")).rename(columns={"meal_ts": "time"})
    table = _dated(entries, table)
    distinct = table.drop_duplicates()
    entries.leave_out("repeated row of meals", len(table) - len(distinct))
    grams = pd.to_numeric(distinct["carbs_g"], errors="coerce")
    entries.add(distinct[grams.isna()], "carbohydrates", "carbs_g", "g")
    eaten = distinct.assign(carbs_g=grams)[grams.notna()]
    meals = eaten.groupby(["id", "time"], as_index=False, sort=False).agg({"carbs_g": "sum"})
    entries.leave_out("food added to another of the same time", len(eaten) - len(meals))
    entries.add(meals.astype({"carbs_g": "str"}), "carbohydrates", "carbs_g", "g")


def _activity(entries: Entries, source: Path) -> None:
    """Parts of one interval (sedentary, walking …) are added; intervals of other lengths are left out."""
    columns = ("id", "activity_type", "active_Kcal", "step_count", "duration_s", "start_time_s")
    table = open_table(source, "activity", columns)
    distinct = table.drop_duplicates()
    entries.leave_out("repeated row of activity", 2 * (len(table) - len(distinct)))
    numbers = distinct[["active_Kcal", "step_count", "duration_s", "start_time_s"]].apply(
        pd.to_numeric, errors="coerce"
    )
    usual = numbers["duration_s"].eq(_INTERVAL_S) & numbers.notna().all(axis=1)
    entries.leave_out("activity over another interval than 15 min, or unreadable", 2 * (~usual).sum())
    end_s = (numbers["start_time_s"] + numbers["duration_s"])[usual].astype("int64")
    time = pd.to_datetime(end_s, unit="s", utc=True).dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    whole = numbers[usual].assign(id=distinct["id"][usual], time=time)
    sums = whole.groupby(["id", "time"], as_index=False, sort=False)[["step_count", "active_Kcal"]].sum()
    entries.leave_out("activity added to another part of its interval", 2 * (len(whole) - len(sums)))
    sums = _dated(entries, sums).astype({"step_count": "str", "active_Kcal": "str"})
    entries.add(sums, "steps", "step_count", "count")
    entries.add(sums, "energy_expenditure", "active_Kcal", "kcal")
