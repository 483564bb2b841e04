"""Print what the ward finds of planted faults and illnesses, and how often it rings where nothing is planted.

Run it from the root:  PYTHONPATH=. .venv/bin/python benchmarks/watch.py ../shared/data

Sensors: CGM records of Hall et al. (57 people, their first six days), set to begin on one day (the time of
day stays) and fed into a ward every five minutes. From the second day on one fault is planted for each
person, at a random time; a second ward gets the records as they are. An alarm within the fault, or the hour
after it, found it. People: hourly vital signs of PhysioNet 2019 (1,500 stays of 30 h and more); from hour 24
to 30 a change is planted. What rings in the untouched records is called false, though some of it, and all
gaps, will have been real.

Letters: N rows, P patients.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from twin.alerts.rules import DEFAULT_RULES, Rule
from twin.connectors.convert import CONVERTERS
from twin.ward.ward import Ward

MIN = pd.Timedelta(minutes=1)
START = pd.Timestamp("2020-01-01", tz="UTC")
SEED = 20260101
DAYS = 6
STAYS, STAY_HOURS = 1500, 30
VITALS = {
    "HR": "heart_rate",
    "O2Sat": "spo2",
    "Temp": "temperature",
    "SBP": "systolic_bp",
    "MAP": "mean_bp",
    "DBP": "diastolic_bp",
    "Resp": "respiratory_rate",
}

Plant = Callable[[pd.DataFrame, np.random.Generator], pd.DataFrame]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One kind of fault: the rule that should find it, how long it lasts, what it does to a table of rows."""

    name: str
    rule: str
    minutes: float
    plant: Plant


def main() -> None:
    """Both tables."""
    root = Path(sys.argv[1])
    _sensors(root)
    _people(root)


def _flat(rows: pd.DataFrame, _: np.random.Generator) -> pd.DataFrame:
    return rows.assign(value=rows["value"].iloc[0])


def _noisy(rows: pd.DataFrame, draws: np.random.Generator) -> pd.DataFrame:
    return rows.assign(value=(rows["value"] + draws.normal(0, 15, len(rows))).clip(40, 400))


def _silent(rows: pd.DataFrame, _: np.random.Generator) -> pd.DataFrame:
    return rows.iloc[:0]


def _pressed(rows: pd.DataFrame, _: np.random.Generator) -> pd.DataFrame:
    """Falls by 40 mg/dL within ten minutes, stays there, and is back within ten (the middle of the fault)."""
    age = (rows["time"] - rows["time"].iloc[0]) / MIN
    depth = np.interp(age, [0, 10, 25, 35], [0, 40, 40, 0])
    return rows.assign(value=(rows["value"] - depth).clip(lower=40))


def _biased(rows: pd.DataFrame, _: np.random.Generator) -> pd.DataFrame:
    """Loses 15 % of its value a day."""
    days = (rows["time"] - rows["time"].iloc[0]) / pd.Timedelta(days=1)
    return rows.assign(value=(rows["value"] * np.maximum(1 - 0.15 * days, 0.4)).clip(lower=40))


FAULTS = (
    Fault(name="one value for 2 h", rule="glucose-sensor-flat", minutes=120, plant=_flat),
    Fault(name="noise of 15 mg/dL for 3 h", rule="glucose-sensor-noisy", minutes=180, plant=_noisy),
    Fault(name="no values for 90 min", rule="glucose-sensor-silent", minutes=90, plant=_silent),
    Fault(name="lain upon, 35 min", rule="glucose-sensor-pressed", minutes=40, plant=_pressed),
    Fault(name="loses 15 % a day, 2 days", rule="glucose-sensor-drift", minutes=2880, plant=_biased),
)


def _sensors(root: Path) -> None:
    records = _records(root)
    draws = np.random.default_rng(SEED)
    blood = _fingersticks(records, draws)
    rules = tuple(rule for rule in DEFAULT_RULES if rule.name in {fault.rule for fault in FAULTS})
    quiet = _watch(pd.concat([records, blood]), rules, 5 * MIN)
    days = len(records) * 5 / 1440
    say(f"sensors: {records['patient_id'].nunique()} people, {days:.0f} days")
    say(f"{'planted':<28} {'found, %':>9} {'median min':>11} {'false/day':>10}")
    for fault in FAULTS:
        begun, spoilt = _planted(records, fault, draws)
        heard = _watch(pd.concat([spoilt, blood]), rules, 5 * MIN)
        _tell(fault.name, begun, _of(heard, fault.rule), _of(quiet, fault.rule), fault.minutes + 60, days)


def _people(root: Path) -> None:
    stays = _stays(root)
    begun = pd.Series(START + pd.Timedelta(hours=24), index=stays["patient_id"].unique())
    days = len(begun) * (STAY_HOURS - 12) / 24
    ways: dict[str, tuple[Rule, ...]] = {
        **{f"heart rate, {on:g} sd from own norm": (_unusual("unusual", on),) for on in (2.0, 2.5, 3.0, 4.0)},
        **{f"signs together, {on:g} sd": (_unusual("joint", on),) for on in (2.0, 3.0, 4.0, 5.0)},
        "heart rate beyond 50, 130": (_limit("below", 50, 55), _limit("above", 130, 125)),
        "heart rate beyond 55, 120": (_limit("below", 55, 60), _limit("above", 120, 115)),
        "heart rate beyond 60, 110": (_limit("below", 60, 65), _limit("above", 110, 105)),
    }
    names = {
        way: [f"{number}-{n}" for n in range(len(rules))] for number, (way, rules) in enumerate(ways.items())
    }
    rules = tuple(
        replace(rule, name=name) for way in ways for rule, name in zip(ways[way], names[way], strict=True)
    )
    plants: tuple[dict[str, float], ...] = (
        {"heart_rate": 40},
        {"heart_rate": -25},
        {"heart_rate": 15, "respiratory_rate": 6, "temperature": 0.8},
        {"heart_rate": 25, "mean_bp": -20, "systolic_bp": -30},
    )
    quiet = _watch(stays, rules, 60 * MIN)
    heard = [_watch(_ill(stays, changes), rules, 60 * MIN) for changes in plants]
    say(f"\npeople: {len(begun)} stays, {days:.0f} watched days; found within the six hours, %")
    for number, changes in enumerate(plants, 1):
        say(f"  {number}: " + ", ".join(f"{signal} {by:+g}" for signal, by in changes.items()))
    say(f"{'':<34} {'1':>5} {'2':>5} {'3':>5} {'4':>5} {'false/day':>10}")
    for way in ways:
        shares = [_found(begun, _of(each, *names[way]), 360) for each in heard]
        told = " ".join(f"{100 * len(found) / len(begun):5.0f}" for found in shares)
        say(f"{way:<34} {told} {len(_of(quiet, *names[way])) / days:10.2f}")


def _ill(stays: pd.DataFrame, changes: dict[str, float]) -> pd.DataFrame:
    ill = stays["time"] >= START + pd.Timedelta(hours=24)
    by = stays["signal"].map(changes).fillna(0.0)
    return stays.assign(value=stays["value"] + by.where(ill, 0.0))


def _unusual(quantity: str, on: float) -> Rule:
    rule = next(rule for rule in DEFAULT_RULES if rule.name == "unusual-heart-rate")
    side: Literal["outside", "above"] = "outside" if quantity == "unusual" else "above"
    return replace(
        rule,
        quantity=quantity,
        side=side,
        on=on,
        off=on - 0.5,
        on_for_min=0.0,
        off_for_min=0.0,
        silent_min=60.0,
    )


def _limit(side: Literal["below", "above"], on: float, off: float) -> Rule:
    rule = replace(_unusual("unusual", 4.0), kind="value", quantity="last")
    return replace(rule, side=side, on=on, off=off)


def _records(root: Path) -> pd.DataFrame:
    frame = CONVERTERS["hall"](root / "hall")[0].observations
    if frame is None:
        raise SystemExit("no recordings of Hall et al. there")
    first = frame.groupby("patient_id")["time"].transform("min").dt.floor("D")
    moved = frame.assign(time=(frame["time"] - first + START).dt.floor("5min"), source="", quality="")
    early: pd.DataFrame = moved.loc[moved["time"] < START + pd.Timedelta(days=DAYS)]
    return early


def _stays(root: Path) -> pd.DataFrame:
    table = pd.read_csv(root / "physionet2019b" / "hourly.csv.gz")
    size = table.groupby("id")["ICULOS"].transform("max")
    table = table[(size >= STAY_HOURS) & (table["ICULOS"] <= STAY_HOURS)]
    chosen = table["id"].drop_duplicates().head(STAYS)
    table = table[table["id"].isin(chosen)]
    long = table.melt(id_vars=["id", "ICULOS"], value_vars=list(VITALS), var_name="signal").dropna()
    return pd.DataFrame(
        {
            "patient_id": long["id"].astype(str),
            "signal": long["signal"].map(VITALS),
            "time": START + pd.to_timedelta(long["ICULOS"] - 1, unit="h"),
            "value": long["value"].astype(float),
            "source": "",
            "quality": "",
        }
    )


def _fingersticks(records: pd.DataFrame, draws: np.random.Generator) -> pd.DataFrame:
    """Four a day, 7 % about what the untouched sensor read: with a meter's error alone."""
    mine: pd.DataFrame = records.loc[
        records["time"].dt.hour.isin([7, 12, 18, 22]) & (records["time"].dt.minute < 5)
    ]
    value = mine["value"] * draws.normal(1.0, 0.07, len(mine))
    moved: pd.DataFrame = mine.assign(signal="blood_glucose", value=value, time=mine["time"] + MIN)
    return moved


def _planted(
    records: pd.DataFrame, fault: Fault, draws: np.random.Generator
) -> tuple[pd.Series, pd.DataFrame]:
    """(when the fault begins, by patient; the records with it)."""
    begun: dict[str, pd.Timestamp] = {}
    parts = []
    for patient, rows in records.groupby("patient_id"):
        first = rows["time"].iloc[0] + pd.Timedelta(days=1)
        last = rows["time"].iloc[-1] - (fault.minutes + 60) * MIN
        free = rows[(rows["time"] >= first) & (rows["time"] <= last)]
        if not len(free):
            parts.append(rows)
            continue
        since = free["time"].iloc[int(draws.integers(len(free)))]
        struck = (rows["time"] >= since) & (rows["time"] < since + fault.minutes * MIN)
        begun[str(patient)] = since
        parts.append(pd.concat([rows[~struck], fault.plant(rows[struck], draws)]))
    return pd.Series(begun), pd.concat(parts)


def _watch(feed: pd.DataFrame, rules: tuple[Rule, ...], step: pd.Timedelta) -> pd.DataFrame:
    """Alarms (rule, patient, at) of a ward that reads a feed in steps."""
    ward, heard = Ward(rules=rules), []
    feed = feed.sort_values("time", kind="stable")
    slot = ((feed["time"] - START) // step).to_numpy()
    edges = np.searchsorted(slot, np.arange(int(slot[-1]) + 2))
    for turn in range(len(edges) - 1):
        ward.update(feed.iloc[edges[turn] : edges[turn + 1]])
        heard += [
            (notice.alert.rule, notice.alert.patient_id, notice.at)
            for notice in ward.check(START + turn * step + (2 * MIN if step < 60 * MIN else 0 * MIN))
            if notice.event == "raised"
        ]
    return pd.DataFrame(heard, columns=["rule", "patient", "at"])


def _of(heard: pd.DataFrame, *rules: str) -> pd.DataFrame:
    return heard[heard["rule"].isin(rules)]


def _tell(
    name: str, begun: pd.Series, heard: pd.DataFrame, quiet: pd.DataFrame, within_min: float, days: float
) -> None:
    found = _found(begun, heard, within_min)
    say(f"{name:<42} {100 * len(found) / len(begun):6.0f} {found.median():11.0f} {len(quiet) / days:10.2f}")


def _found(begun: pd.Series, heard: pd.DataFrame, within_min: float) -> pd.Series:
    """Minutes until the first alarm of each patient who has one within so many."""
    since = pd.to_datetime(heard["patient"].map(begun), utc=True)
    late = (pd.to_datetime(heard["at"], utc=True) - since) / MIN
    inside = heard.assign(late=late)[(late >= 0) & (late <= within_min)]
    return inside.groupby("patient")["late"].min()


def say(text: str) -> None:
    """Prints at once, also into a file."""
    print(text, flush=True)


if __name__ == "__main__":
    main()
