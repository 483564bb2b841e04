"""Planted faults in real recordings: what two ways of cleaning find, and what they do to clean data.

    python -m benchmarks.cleaning ../shared/data --seeds 3

Faults are planted at known places into Hall, Colas and T1D-UOM (glucose), one kind at a time. Compared are
`twin.ingest` (rows are dropped or marked as they come, with what follows them) and what this project began
with: fill forward, then drop what lies three standard deviations off the mean, over all data at once. For
the latter a row counts as found if it is dropped.

- precision and recall: of the rows that hold a fault; rows found in the clean record are nobody's fault and
  count for neither, but stand as false marks per 100,000 rows.
- RMSE, mg/dL: of the series that a reader sees, on the grid of the true rows, against the true values: rows
  found are filled from the row before (both alike), so that finding a fault pays and losing good rows costs.
- lows: share of the true readings below 70 mg/dL that are still there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from twin.connectors.feed import Batch
from twin.ingest import Ingest

STUDIES: Final = {
    "Hall": ("hall/glucose.csv.gz", "time", "gl", 1.0),
    "Colas": ("colas/glucose.csv.gz", "time", "gl", 1.0),
    "T1D-UOM": ("t1d_uom/glucose.csv.gz", "bg_ts", "value", 18.016),
}

Plant = Callable[[pd.DataFrame, np.random.Generator], pd.DataFrame]


def read(folder: Path, study: str) -> pd.DataFrame:
    """patient, time (UTC), value (mg/dL): one row per patient and time, sorted; and `true`, the same."""
    file, time, value, factor = STUDIES[study]
    table = pd.read_csv(folder / file, dtype={"id": "str"})
    frame = pd.DataFrame(
        {
            "patient": table["id"],
            "time": pd.to_datetime(table[time]).dt.tz_localize("UTC").dt.as_unit("us"),
            "value": table[value] * factor,
        }
    )
    once = frame.groupby(["patient", "time"])["value"].median().reset_index()
    return once.assign(true=once["value"], fault=False)


def _blocks(
    frame: pd.DataFrame, rng: np.random.Generator, every: int, shortest: int, longest: int
) -> list[np.ndarray]:
    """Rows of blocks within one patient's record, that do not touch."""
    patient = frame["patient"].to_numpy()
    taken = np.zeros(len(frame), dtype=bool)
    blocks = []
    for start in rng.integers(3, len(frame) - longest - 3, len(frame) // every):
        rows = np.arange(start, start + rng.integers(shortest, longest + 1))
        edge = slice(rows[0] - 3, rows[-1] + 4)
        if patient[rows[0] - 3] == patient[rows[-1] + 3] and not taken[edge].any():
            taken[edge] = True
            blocks.append(rows)
    return blocks


def spikes(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """One row in 200 is off by 30 to 150 mg/dL."""
    rows = np.concatenate(_blocks(frame, rng, 200, 1, 1))
    off = rng.uniform(30, 150, len(rows)) * rng.choice([-1, 1], len(rows))
    return _set(frame, rows, np.clip(frame["value"].to_numpy()[rows] + off, 20, 500))


def stuck(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """A sensor repeats its last value for 2.5 to 8 hours."""
    planted = frame.copy()
    for rows in _blocks(frame, rng, 4000, 30, 96):
        planted = _set(planted, rows[1:], np.full(len(rows) - 1, frame["value"].to_numpy()[rows[0]]))
    return planted


def units(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Blocks of 1 to 12 hours in mmol/L that say mg/dL, or the other way round."""
    planted = frame.copy()
    for rows in _blocks(frame, rng, 4000, 12, 144):
        factor = 18.016 if rng.random() < 0.5 else 1 / 18.016
        planted = _set(planted, rows, frame["value"].to_numpy()[rows] * factor)
    return planted


def shifted(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Blocks of 20 to 110 minutes that lie 50 to 150 mg/dL higher or lower (another calibration)."""
    planted = frame.copy()
    for rows in _blocks(frame, rng, 2000, 4, 22):
        off = rng.uniform(50, 150) * rng.choice([-1, 1])
        planted = _set(planted, rows, np.clip(frame["value"].to_numpy()[rows] + off, 20, 500))
    return planted


def repeated(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Blocks of 1 to 4 hours that come twice."""
    rows = np.concatenate(_blocks(frame, rng, 2000, 12, 48))
    return pd.concat([frame, frame.iloc[rows].assign(fault=True)], ignore_index=True).sort_values(
        ["patient", "time"], kind="stable", ignore_index=True
    )


PLANTS: Final[dict[str, Plant]] = {
    "spikes": spikes,
    "stuck sensor": stuck,
    "unit mix-up": units,
    "shifted block": shifted,
    "block twice": repeated,
}


def _set(frame: pd.DataFrame, rows: np.ndarray, values: np.ndarray) -> pd.DataFrame:
    value, fault = frame["value"].to_numpy().copy(), frame["fault"].to_numpy().copy()
    value[rows], fault[rows] = values, True
    return frame.assign(value=value, fault=fault)


def ours(frame: pd.DataFrame) -> np.ndarray:
    """Rows that `twin.ingest` drops or marks."""
    observations = pd.DataFrame(
        {
            "patient": frame["patient"],
            "time": frame["time"],
            "system": "twinward",
            "code": "glucose",
            "value": frame["value"],
            "unit": "mg/dL",
            "device": "",
        }
    )
    taken = Ingest(pseudonym=str).take(Batch(observations=observations), "cgm").observations
    good = taken[taken["quality"] == ""]
    key = pd.MultiIndex.from_arrays([frame["patient"], frame["time"]])
    there: np.ndarray = key.isin(pd.MultiIndex.from_arrays([good["patient_id"], good["time"]]))
    found: np.ndarray = ~there | frame.duplicated(["patient", "time"]).to_numpy()
    return found


def three_sigma(frame: pd.DataFrame) -> np.ndarray:
    """Rows three standard deviations off the mean of all data."""
    value = frame["value"].ffill()
    found: np.ndarray = (abs(value - value.mean()) > 3 * value.std()).to_numpy()
    return found


def judged(frame: pd.DataFrame, found: np.ndarray, before: np.ndarray | None) -> dict[str, float]:
    """The figures of one way of cleaning on one frame.

    Args:
        found: its rows that were dropped or marked.
        before: rows of the clean record that it finds, by row of `frame`; None for a clean record.
    """
    fault, low = frame["fault"].to_numpy(), frame["true"].to_numpy() < 70
    counted = found if before is None else found & ~(before & ~fault)
    kept_low = (low & ~fault & ~found).sum() / max(1, (low & ~fault).sum())
    figures = {"lows kept": float(kept_low), "rmse": _rmse(frame, found)}
    if fault.any():
        figures["recall"] = float((found & fault).sum() / fault.sum())
        figures["precision"] = float((found & fault).sum() / max(1, counted.sum()))
    else:
        figures["false per 100,000"] = float(found.mean() * 1e5)
    return figures


def _rmse(frame: pd.DataFrame, found: np.ndarray) -> float:
    seen = frame["value"].mask(found).groupby(frame["patient"]).ffill().groupby(frame["patient"]).bfill()
    once = ~frame.duplicated(["patient", "time"]).to_numpy()
    return float(np.sqrt(((seen - frame["true"])[once] ** 2).mean()))


def clocks(frame: pd.DataFrame, rng: np.random.Generator) -> dict[str, float]:
    """A live device's clock jumps by 20 minutes to 3 hours, either way, for 2 to 12 hours, once a patient.

    Rows arrive one by one, as they are measured, up to a minute late. Returned are shares of the rows whose
    time was wrong: stored within a minute of the truth, marked, stored wrong; and false: right rows that
    were moved or marked. The other way of cleaning has nothing for this: all are stored wrong.
    """
    sums = np.zeros(5)
    for patient in rng.permutation(frame["patient"].unique())[:4]:
        mine = frame[frame["patient"] == patient].head(300).reset_index(drop=True)
        start = int(rng.integers(50, max(51, len(mine) - 100)))
        jump = pd.Timedelta(minutes=float(rng.uniform(20, 180) * rng.choice([-1, 1])))
        rows = slice(start, start + int(rng.integers(24, 144)))
        sums += _through_clock(mine, rows, jump, rng)
    wrong, right_again, marked, false, good = sums
    return {
        "put right": right_again / wrong,
        "marked": marked / wrong,
        "stored wrong": (wrong - right_again - marked) / wrong,
        "false per 100,000": false / good * 1e5,
    }


def _through_clock(
    mine: pd.DataFrame, rows: slice, jump: pd.Timedelta, rng: np.random.Generator
) -> np.ndarray:
    ingest = Ingest(pseudonym=str)
    wrong = np.zeros(len(mine), dtype=bool)
    wrong[rows] = True
    counts = np.zeros(5)
    for time, value, off in zip(mine["time"], mine["value"], wrong, strict=True):
        said = time + jump if off else time
        table = pd.DataFrame(
            [("p", said, "twinward", "glucose", value, "mg/dL", "")],
            columns=["patient", "time", "system", "code", "value", "unit", "device"],
        )
        received = time + pd.Timedelta(seconds=float(rng.uniform(0, 60)))
        taken = ingest.take(Batch(observations=table), "cgm", received).observations
        stored = taken.iloc[0] if len(taken) else None
        near = stored is not None and abs(stored["time"] - time) <= pd.Timedelta(minutes=1)
        drift = stored is not None and stored["quality"] == "drift"
        false = not off and (drift or not near)
        counts += np.array([off, off and near and not drift, off and drift, false, not off], dtype=np.float64)
    return counts


def main() -> None:
    """Prints the tables of docs/cleaning.md and writes the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}

    def tell(name: str, row: dict[str, float]) -> None:
        figures[name] = row
        print(
            f"| {name} | " + " | ".join(f"{key} {value:.3f}" for key, value in row.items()) + " |", flush=True
        )

    ways = {"ours": ours, "3 sigma": three_sigma}
    for study in STUDIES:
        clean = read(given.folder, study)
        before = {name: way(clean) for name, way in ways.items()}
        for name in ways:
            tell(f"{study} / clean / {name}", judged(clean, before[name], None))
        place = pd.Series(np.arange(len(clean)), pd.MultiIndex.from_frame(clean[["patient", "time"]]))
        for fault, plant in PLANTS.items():
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
            for seed in range(given.seeds):
                planted = plant(clean, np.random.default_rng(seed))
                row = place.reindex(pd.MultiIndex.from_frame(planted[["patient", "time"]])).to_numpy()
                for name, way in ways.items():
                    runs[name].append(judged(planted, way(planted), before[name][row]))
            for name in ways:
                tell(
                    f"{study} / {fault} / {name}",
                    {str(k): float(v) for k, v in pd.DataFrame(runs[name]).mean().items()},
                )
        tell(f"{study} / clock jump / ours", clocks(clean, np.random.default_rng(0)))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
