"""Print what the ward finds of planted faults and illnesses, and how often it rings where nothing was planted.

Run it from the root:  PYTHONPATH=. .venv/bin/python benchmarks/watch.py ../shared/data

Sensors: CGM records of Hall et al. (57 people), set to begin on one day (the time of day stays) and fed into a
ward every five minutes. From the second day on one fault is planted for each person, at a random time; a second ward
gets the records as they are. People: hourly vital signs of PhysioNet 2019 (1,500 stays of 30 h and more); from hour 24
on a change is planted for six hours. The same rules watch both; an alarm within the fault, or the hour after it, found
it. What rings in the untouched records is called false, though some of it will have been real.

Letters: N rows, P patients.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from twin.alerts.rules import DEFAULT_RULES, Rule
from twin.connectors.convert import CONVERTERS
from twin.ward.ward import Ward

MIN = pd.Timedelta(minutes=1)
START = pd.Timestamp("2020-01-01", tz="UTC")
SEED = 20260101
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
    quiet = _watched([pd.concat([records, blood])], rules, 5 * MIN)[0]
    days = float((records.groupby("patient_id")["time"].agg(np.ptp) / pd.Timedelta(days=1)).sum())
    say(f"sensors: {records['patient_id'].nunique()} people, {days:.0f} days")
    say(f"{'planted':<28} {'found, %':>9} {'median min':>11} {'false/day':>10}")
    for fault in FAULTS:
        begun, spoilt = _planted(records, fault, draws)
        heard = _watched([pd.concat([spoilt, blood])], rules, 5 * MIN)[0]
        _tell(fault.name, begun, _of(heard, fault.rule), _of(quiet, fault.rule), fault.minutes + 60, days)


def _people(root: Path) -> None:
    stays = _stays(root)
    begun = pd.Series(START + pd.Timedelta(hours=24), index=stays["patient_id"].unique())
    days = len(begun) * (STAY_HOURS - 12) / 24
    rules = tuple(
        replace(rule, on_for_min=0.0, off_for_min=0.0, silent_min=60.0)
        for rule in DEFAULT_RULES
        if rule.kind == "anomaly"
    )
    fixed = (_limit("fast", "above", 130.0, 120.0), _limit("slow", "below", 50.0, 55.0))
    quiet = _watched([stays], (*rules, *fixed), 60 * MIN)[0]
    say(f"\npeople: {len(begun)} stays, {days:.0f} watched days; limits 50 and 130 /min beside the own norm")
    say(f"{'planted for 6 h':<28} {'found, %':>9} {'median min':>11} {'false/day':>10}")
    illnesses: tuple[tuple[str, dict[str, float]], ...] = (
        ("heart rate +40 /min", {"heart_rate": 40}),
        ("heart rate -25 /min", {"heart_rate": -25}),
        ("HR +15, resp +6, temp +0.8", {"heart_rate": 15, "respiratory_rate": 6, "temperature": 0.8}),
        ("HR +25, MAP -20, SBP -30", {"heart_rate": 25, "mean_bp": -20, "systolic_bp": -30}),
    )
    for name, changes in illnesses:
        spoilt = stays.copy()
        ill = spoilt["time"] >= START + pd.Timedelta(hours=24)
        for signal, by in changes.items():
            spoilt.loc[ill & (spoilt["signal"] == signal), "value"] += by
        heard = _watched([spoilt], (*rules, *fixed), 60 * MIN)[0]
        for way, chosen in (
            ("own norm", ["unusual-heart-rate"]),
            ("signs together", ["unusual-signs"]),
            ("limits", ["fast", "slow"]),
        ):
            _tell(f"{name}, {way}", begun, _of(heard, *chosen), _of(quiet, *chosen), 360, days)


def _limit(name: str, side: str, on: float, off: float) -> Rule:
    rule = next(rule for rule in DEFAULT_RULES if rule.name == "unusual-heart-rate")
    return replace(
        rule, name=name, kind="value", quantity="last", side=side, on=on, off=off,  # type: ignore[arg-type]  # one of two
        on_for_min=0.0, off_for_min=0.0, silent_min=60.0,
    )  # fmt: skip


def _records(root: Path) -> pd.DataFrame:
    frame = CONVERTERS["hall"](root / "hall")[0].observations
    if frame is None:
        raise SystemExit("no recordings of Hall et al. there")
    first = frame.groupby("patient_id")["time"].transform("min").dt.floor("D")
    return frame.assign(time=(frame["time"] - first + START).dt.floor("5min"), source="", quality="")


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
    mine = records[records["time"].dt.hour.isin([7, 12, 18, 22]) & (records["time"].dt.minute < 5)]
    value = mine["value"] * draws.normal(1.0, 0.07, len(mine))
    return mine.assign(signal="blood_glucose", value=value, time=mine["time"] + MIN)


def _planted(records: pd.DataFrame, fault: Fault, draws: np.random.Generator) -> tuple[pd.Series, pd.DataFrame]:
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


def _watched(feeds: list[pd.DataFrame], rules: tuple[Rule, ...], step: pd.Timedelta) -> list[pd.DataFrame]:
    """Alarms (rule, patient, at) of a ward that reads each feed in steps."""
    return [_watch(feed, rules, step) for feed in feeds]


def _watch(feed: pd.DataFrame, rules: tuple[Rule, ...], step: pd.Timedelta) -> pd.DataFrame:
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
    since = heard["patient"].map(begun)
    late = pd.to_datetime(heard["at"], utc=True) - pd.to_datetime(since, utc=True)
    found = heard.assign(late=late / MIN)
    found = found[(found["late"] >= 0) & (found["late"] <= within_min)].groupby("patient")["late"].min()
    say(f"{name:<42} {100 * len(found) / len(begun):6.0f} {found.median():11.0f} {len(quiet) / days:10.2f}")


def say(text: str) -> None:
    """Prints at once, also into a file."""
    print(text, flush=True)


if __name__ == "__main__":
    main()
