"""Print how fast a site takes in, keeps and gives observations, beside a plain pandas pipeline.

Run it from the root: PYTHONPATH=. .venv/bin/python benchmarks/site.py [csv|ndjson|windows|one ...]

csv, ndjson: 1,000,000 observations of glucose from a federation folder, or from a bulk export of FHIR R4,
through connector, codes, units, pseudonyms, cleaning and outliers into the encrypted store, batch by batch,
each durable with the feed's position; with and without the ward beside it. The plain pipeline reads the same
file with pandas (and json), makes times UTC, drops what is beyond limits and duplicates, and writes Parquet:
no encryption, no pseudonyms, no positions, no outliers, all in memory.
windows: training windows of 1,000 patients × 30 days at 5 min out of the store, and the peak of the memory.
one: one observation for one of 10,000 patients, from batch to twin: committed, and in the ward.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from client.custodian import Custodian
from client.feeds import FeedPart
from client.research import PATIENTS as PATIENTS_AT_ONCE
from client.wardroom import WardRoom
from conf import schema
from trust.pseudonym import Pseudonyms
from twin import tasks
from twin.alerts.delivery import Delivery
from twin.alerts.rules import DEFAULT_RULES
from twin.connectors.feed import Batch
from twin.connectors.feeds import build
from twin.ingested import COUNTS, FACTS, OBSERVATIONS, QUARANTINE, WITHDRAWN, Ingested
from twin.store import Store
from twin.tasks.parts import examples_of

KEY = bytes(range(32))
DAYS, PATIENTS = 30, 116
ROWS = 1_000_000
SECRET = bytes(32)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="*", default=["csv", "ndjson", "windows", "one"])
    for what in parser.parse_args().what:
        with tempfile.TemporaryDirectory() as folder:
            {"csv": csv, "ndjson": ndjson, "windows": windows, "one": one}[what](Path(folder))


def csv(folder: Path) -> None:
    """From a federation folder."""
    path = folder / "north"
    path.mkdir()
    rows = people(PATIENTS).head(ROWS)
    table = rows.assign(time=rows["time"].dt.strftime("%Y-%m-%dT%H:%M:%SZ"), signal="glucose", unit="mg/dL")
    table[["patient_id", "time", "signal", "value", "unit"]].to_csv(path / "observations.csv", index=False)
    _compare("CSV", folder, "folder", path, lambda: pd.read_csv(path / "observations.csv"))


def ndjson(folder: Path) -> None:
    """From a bulk export."""
    path = folder / "export"
    path.mkdir()
    rows = people(PATIENTS).head(ROWS)
    times = rows["time"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    with (path / "Observation.ndjson").open("w") as file:
        for number, (who, when, value) in enumerate(
            zip(rows["patient_id"], times, rows["value"], strict=True)
        ):
            file.write(
                f'{{"resourceType":"Observation","id":"{number}","status":"final","code":{{"coding":[{{"system":'
                '"http://loinc.org","code":"99504-3"}]},'
                f'"subject":{{"reference":"Patient/{who}"}},"effectiveDateTime":"{when}","valueQuantity":'
                f'{{"value":{value},"unit":"mg/dL","system":"http://unitsofmeasure.org","code":"mg/dL"}}}}\n'
            )

    def plain() -> pd.DataFrame:
        found = []
        with (path / "Observation.ndjson").open() as file:
            for line in file:
                entry = json.loads(line)
                found.append(
                    (
                        entry["subject"]["reference"],
                        entry["effectiveDateTime"],
                        entry["valueQuantity"]["value"],
                    )
                )
        return pd.DataFrame(found, columns=["patient_id", "time", "value"])

    _compare("FHIR NDJSON", folder, "fhir_files", path, plain)


def windows(folder: Path) -> None:
    """Training windows, in a process of its own, so that the peak is theirs."""
    path = folder / "store"
    with Store.create(path, KEY) as store:
        for first in range(0, 1000, 50):
            store.commit(_ingested(people(50, first), str(first)))
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_windows, args=(path,))
    process.start()
    process.join()


def one(folder: Path) -> None:
    """One observation after the other, with 10,000 patients in store and ward."""
    with Store.create(folder / "store", KEY) as store:
        rows = people(10_000, days=0.25)
        store.commit(_ingested(rows, "begun"))
        custodian = Custodian(store, pseudonym=str, codes=folder / "codes.toml")
        room = WardRoom(custodian, Delivery(()), rules=DEFAULT_RULES, every_s=3600.0)
        stop = threading.Event()
        thread = threading.Thread(target=room.run, args=(stop,), daemon=True)
        thread.start()
        while room.counts().get("patients", 0) < 10_000:
            time.sleep(0.1)
        custodian.position("cgm")
        committed, seen, last = [], [], rows["time"].max()
        for number in range(300):
            patient = f"p{number * 33:05d}"
            when = last + pd.Timedelta(minutes=5)
            batch = Batch(
                observations=pd.DataFrame(
                    [(patient, when, "twinward", "glucose", 120.0, "mg/dL", "")],
                    columns=["patient", "time", "system", "code", "value", "unit", "device"],
                ),
                position=str(number),
            )
            begin = time.perf_counter()
            custodian.take(batch, "cgm")
            committed.append(time.perf_counter() - begin)
            assert room.twin(patient).readings[0].value == 120.0  # noqa: S101  it is in the twin
            seen.append(time.perf_counter() - begin)
        stop.set()
        thread.join()
    print(f"one observation for one of 10,000 patients, 300 times{'p50':>15}{'p99':>12}")
    for name, spans in (("batch → committed, durable", committed), ("batch → read from the twin", seen)):
        p50, p99 = np.percentile(np.array(spans) * 1e3, [50, 99])
        print(f"  {name:<48} {p50:>10.2f} ms {p99:>8.2f} ms")


def people(count: int, first: int = 0, days: float = DAYS) -> pd.DataFrame:
    """Glucose every five minutes that moves as people's does."""
    steps = int(days * 288)
    draws = np.random.default_rng(first)
    noise = draws.normal(0, 4, (count, steps))
    value_PT = np.empty((count, steps))
    value_PT[:, 0] = 120
    for t in range(1, steps):
        value_PT[:, t] = 120 + 0.97 * (value_PT[:, t - 1] - 120) + noise[:, t]
    moments = pd.date_range("2026-01-01", periods=steps, freq="5min")
    return pd.DataFrame(
        {
            "patient_id": np.repeat([f"p{first + n:05d}" for n in range(count)], steps),
            "time": pd.DatetimeIndex(np.tile(moments.to_numpy(), count)).tz_localize("UTC").as_unit("us"),
            "value": value_PT.reshape(-1).round(1).clip(40, 400),
        }
    )


def _compare(name: str, folder: Path, kind: str, path: Path, read: Callable[[], pd.DataFrame]) -> None:
    begin = time.perf_counter()
    _plain(read(), folder / "plain.parquet")
    plain_s = time.perf_counter() - begin
    alone_s = _into_store(folder / "alone", kind, path, ward=False)
    beside_s = _into_store(folder / "beside", kind, path, ward=True)
    print(f"1,000,000 observations from {name}")
    print(f"  {'into the encrypted store':<48} {alone_s:>8.1f} s  {ROWS / alone_s:>10,.0f} /s")
    print(f"  {'the same with the ward beside it':<48} {beside_s:>8.1f} s  {ROWS / beside_s:>10,.0f} /s")
    print(f"  {'plain pandas to Parquet':<48} {plain_s:>8.1f} s  {ROWS / plain_s:>10,.0f} /s")
    print(f"  {'store / plain':<48} {alone_s / plain_s:>8.2f} x", flush=True)


def _into_store(folder: Path, kind: str, path: Path, *, ward: bool) -> float:
    with Store.create(folder / "store", KEY) as store:
        custodian = Custodian(store, pseudonym=Pseudonyms(SECRET), codes=folder / "codes.toml")
        stop = threading.Event()
        room = WardRoom(custodian, Delivery(()), rules=DEFAULT_RULES, every_s=3600.0)
        thread = threading.Thread(target=room.run, args=(stop,), daemon=True)
        if ward:
            thread.start()
        begin = time.perf_counter()
        FeedPart(build(kind, {"name": "feed", "path": str(path)}), custodian).run(stop)
        if ward:
            room.alerts()  # once it has caught up
            if room.counts()["patients"] != PATIENTS:
                raise SystemExit("Expected every patient in the ward.")
        span_s = time.perf_counter() - begin
        stop.set()
        if ward:
            thread.join()
        counts = store.counts()
        kept = int(counts.loc[counts["fate"].eq("kept"), "rows"].sum())
    if kept != ROWS:
        raise SystemExit(f"Expected {ROWS} rows in the store; {kept} are there.")
    return span_s


def _plain(rows: pd.DataFrame, path: Path) -> None:
    rows["time"] = pd.to_datetime(rows["time"], utc=True, format="ISO8601")
    rows["value"] = pd.to_numeric(rows["value"], errors="coerce")
    rows = rows[rows["value"].between(20, 600)].drop_duplicates(["patient_id", "time"])
    rows.sort_values(["patient_id", "time"]).to_parquet(path, index=False)


def _windows(path: Path) -> None:
    with Store.open(path, KEY) as store:
        store.presume_consent(True)
        before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        begin, busy = time.perf_counter(), time.process_time()
        names = store.allowed("research")
        parts = (
            store.site("north", purpose="research", patients=names[first : first + PATIENTS_AT_ONCE])
            for first in range(0, len(names), PATIENTS_AT_ONCE)
        )
        examples = examples_of(tasks.build(schema.Task()), parts, series=False)
        span_s, busy_s = time.perf_counter() - begin, time.process_time() - busy
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"training windows of {len(names):,} patients × 30 days at 5 min, as their tables")
    print(f"  {len(examples):,} windows out of the store in {span_s:.1f} s ({busy_s:.1f} s of processors)")
    print(f"  peak of the memory {peak_mb:,.0f} MB (before reading {before_mb:,.0f} MB)", flush=True)


def _ingested(rows: pd.DataFrame, position: str) -> Ingested:
    table = rows.assign(signal="glucose", source="feed", quality="")
    kept = table.groupby("patient_id", as_index=False).size().rename(columns={"size": "rows"})
    counts = kept.assign(signal="glucose", fate="kept", reason="")
    return Ingested(
        feed="feed",
        position=position,
        observations=table[list(OBSERVATIONS)],
        facts=_nothing(FACTS),
        counts=counts[list(COUNTS)],
        quarantine=_nothing(QUARANTINE),
        withdrawn=_nothing(WITHDRAWN),
    )


def _nothing(columns: tuple[str, ...]) -> pd.DataFrame:
    return pd.DataFrame(columns=list(columns), dtype="str")


if __name__ == "__main__":
    main()
