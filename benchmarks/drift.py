"""Print whether a drifting glucose sensor shows without blood samples: the last day against the days before.

Run it from the root:  .venv/bin/python -m benchmarks.drift ../shared/data

The fault is that of `benchmarks.watch`: from a random time on, after the first day, the sensor loses 15 % of
its value a day for two days, once for each person. The measure is the logarithm of the mean of the last 24
hours over the mean of everything before, once an hour. Every limit is judged on the records as they are
(false) and on those with the fault (found within it or the hour after).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.watch import FAULTS, MIN, SEED, START, _planted, say
from twin.connectors.convert import CONVERTERS

DAY_MIN, STEP_MIN, LEAST_READINGS = 1440, 60, 144
DAYS = {"hall": 6, "t1d_uom": 14}
FALLS = (0.08, 0.12, 0.16, 0.2, 0.22, 0.25, 0.3, 0.4, 0.5)


def main() -> None:
    """A table for each study."""
    for study, days in DAYS.items():
        records = _records(Path(sys.argv[1]) / study, study, days)
        fault = next(fault for fault in FAULTS if fault.rule == "glucose-sensor-drift")
        begun, spoilt = _planted(records, fault, np.random.default_rng(SEED))
        quiet, heard = dict(_measures(records)), dict(_measures(spoilt))
        watched = sum(len(table) for table in quiet.values()) * STEP_MIN / DAY_MIN
        first = records.groupby("patient_id")["time"].min()
        say(f"\n{study}: {len(begun)} people with a fault, {watched:.0f} days")
        for fall in FALLS:
            false = sum(_begins(table[:, 1] < -fall).sum() for table in quiet.values())
            late = [
                _first(heard[name], -fall, (since - first[name]) / MIN, fault.minutes + 60)
                for name, since in begun.items()
                if name in heard
            ]
            found = np.array([minutes for minutes in late if minutes is not None])
            told = f"found {100 * len(found) / len(begun):4.0f} %, false a day {false / watched:.2f}"
            say(f"lower by {1 - np.exp(-fall):4.0%}: {told}")


def _records(folder: Path, study: str, days: int) -> pd.DataFrame:
    parts = [part.observations for part in CONVERTERS[study](folder) if part.observations is not None]
    frame = pd.concat(parts)
    frame = frame[frame["signal"] == "glucose"]
    first = frame.groupby("patient_id")["time"].transform("min").dt.floor("D")
    moved = frame.assign(time=(frame["time"] - first + START).dt.floor("5min"), source="", quality="")
    early = moved[moved["time"] < START + pd.Timedelta(days=days)]
    ordered: pd.DataFrame = early.drop_duplicates(["patient_id", "time"]).sort_values(["patient_id", "time"])
    return ordered


def _measures(records: pd.DataFrame) -> Iterator[tuple[str, np.ndarray]]:
    """Of each patient: (minutes since the first reading, measure) once an hour, from the third day on."""
    for name, rows in records.groupby("patient_id"):
        minute = ((rows["time"] - rows["time"].iloc[0]) / MIN).to_numpy()
        total = np.concatenate([[0.0], np.cumsum(rows["value"].to_numpy(np.float64))])
        now = np.arange(2.0 * DAY_MIN, minute[-1], STEP_MIN)
        end, begin = (np.searchsorted(minute, at, side="right") for at in (now, now - DAY_MIN))
        enough = (end - begin >= LEAST_READINGS) & (begin >= LEAST_READINGS)
        end, begin = end[enough], begin[enough]
        measure = np.log((total[end] - total[begin]) / (end - begin)) - np.log(total[begin] / begin)
        if len(measure):
            yield str(name), np.stack([now[enough], measure], axis=1)


def _begins(beyond: np.ndarray) -> np.ndarray:
    return np.asarray(beyond & ~np.append(False, beyond[:-1]))


def _first(table: np.ndarray, limit: float, since_min: float, within_min: float) -> float | None:
    """Minutes from the fault to the first moment beyond the limit."""
    late = table[:, 0] - since_min
    hits = late[(table[:, 1] < limit) & (late > 0) & (late <= within_min)]
    return float(hits[0]) if len(hits) else None


if __name__ == "__main__":
    main()
