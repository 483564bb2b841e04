"""Batches for a store, and a store that commits them until it is killed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from twin import ingested as form
from twin.ingested import Ingested
from twin.store import Store

KEY = bytes(range(32))
START = pd.Timestamp("2024-03-01T08:00:00Z")


def minutes(number: float) -> pd.Timestamp:
    """A time, so many minutes after the start."""
    return START + pd.Timedelta(minutes=number)


def frame(columns: Sequence[str], rows: Sequence[tuple[object, ...]] = ()) -> pd.DataFrame:
    """The rows; text columns if there are none."""
    made = pd.DataFrame(list(rows), columns=list(columns))
    if "time" in columns and rows and isinstance(rows[0][list(columns).index("time")], pd.Timestamp):
        made["time"] = pd.to_datetime(made["time"], utc=True).dt.as_unit("us")
    return made if rows else made.astype("str")


def batch(
    *rows: tuple[object, ...],
    feed: str = "cgm",
    position: str = "",
    facts: Sequence[tuple[object, ...]] = (),
    quarantine: Sequence[tuple[object, ...]] = (),
    withdrawn: Sequence[tuple[object, ...]] = (),
    remarked: Sequence[tuple[object, ...]] = (),
) -> Ingested:
    """A batch of (patient, signal, minute, value[, source[, quality]]), counted as an ingest counts it."""
    full = [(p, s, minutes(m), float(v), *rest, *(feed, "")[len(rest) :]) for p, s, m, v, *rest in rows]
    observations = frame(form.OBSERVATIONS, full)
    kept = [(p, s, "kept", "", 1) for p, s, *_ in full]
    kept += [(p, s, "marked", mark, 1) for p, s, *_, mark in full if mark]
    aside = [(row[0], "", "quarantined", row[-1], 1) for row in quarantine]
    return Ingested(
        feed=feed,
        position=position,
        observations=observations,
        facts=frame(form.FACTS, facts),
        counts=frame(form.COUNTS, kept + aside),
        quarantine=frame(form.QUARANTINE, quarantine),
        withdrawn=frame(form.WITHDRAWN, [(p, s, minutes(m)) for p, s, m in withdrawn]),
        remarked=frame(form.REMARKED, [(p, s, minutes(m), *rest) for p, s, m, *rest in remarked]),
    )


def commit_forever(path: Path) -> None:
    """Commits batch after batch, saying the number of each once it is acknowledged; rows as `numbered`."""
    with Store.open(path, KEY) as store:
        number = int(store.position("cgm") or 0)
        print("open", flush=True)
        while True:
            number += 1
            store.commit(numbered(number))
            print(number, flush=True)


def numbered(number: int) -> Ingested:
    """The batch of this number: ten rows of its own, and one that was in the batch before."""
    rows = [(f"secret-patient-{number % 3}", "glucose", 10 * number + k, 100 + k) for k in range(-1, 10)]
    rows[0] = (f"secret-patient-{(number - 1) % 3}", *rows[0][1:3], 109) if number > 1 else rows[1]
    return batch(*rows, position=str(number))


if __name__ == "__main__":
    commit_forever(Path(sys.argv[1]))
