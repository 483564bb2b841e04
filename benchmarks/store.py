"""Print how fast the encrypted store takes and gives observations, beside SQLite and Parquet in plain text.

Run it from the root: PYTHONPATH=. .venv/bin/python benchmarks/store.py [--patients 116] [--large] [FOLDER]

The same rows (patients × 30 days at 5 min; 116 are a million) go into each in batches, each batch durable
and safe to be delivered again before the next: the store, with its counts and position; SQLite with a
primary key (patient, signal, time) in WAL mode with synchronous=FULL; a folder of Parquet files, one per
batch, synced, duplicates dropped when it is read. Then everything is read as one sorted frame. Ratios are
of one run, in turn. --large reads 1,000 patients and erases one, and prints the peak of the memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from twin import ingested as form
from twin.ingested import Ingested
from twin.store import Store

DAYS = 30
SMALL_ROWS = 100_000
KEY = bytes(range(32))
SQLITE = (
    "patient TEXT, signal TEXT, time INT, value REAL, source TEXT, quality TEXT,"
    " PRIMARY KEY (patient, signal, time)"
)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--patients", type=int, default=116)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("folder", nargs="?")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.large:
            large(Path(folder))
            return
        rows = people(options.patients)
        print(f"{len(rows):,} observations; {SMALL_ROWS:,} of them in batches of 200\n")
        print(f"{'':<26} {'10,000 a batch':>16} {'200 a batch':>14} {'read all':>10} {'file':>9}")
        ways: dict[str, Callable[[Path], Way]] = {
            "encrypted store": StoreWay, "SQLite, plain": SqliteWay, "pandas + Parquet, plain": ParquetWay,
        }  # fmt: skip
        first: tuple[float, ...] = ()
        for name, make in ways.items():
            figures = measure(make, Path(folder) / name, rows)
            first = first or figures
            print(
                f"{name:<26} {figures[0]:>12,.0f} /s {figures[1]:>10,.0f} /s {figures[2]:>8.2f} s"
                f" {figures[3] / 1e6:>6.1f} MB"
            )
            if figures is not first:
                ratios = [ours / theirs for ours, theirs in zip(first, figures, strict=True)]
                print(f"{'  store / this':<26} {ratios[0]:>14.2f}x {ratios[1]:>12.2f}x {ratios[2]:>9.2f}x")


class Way:
    """A place for observations."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder

    def commit(self, rows: pd.DataFrame, number: int) -> None:
        """Keeps the rows, durably."""
        raise NotImplementedError

    def read(self) -> pd.DataFrame:
        """All rows, sorted, each once."""
        raise NotImplementedError


class StoreWay(Way):
    """Twinward's."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.store = Store.create(folder / "store.duckdb", KEY)

    def commit(self, rows: pd.DataFrame, number: int) -> None:
        """A batch as an ingest gives it."""
        self.store.commit(batch(rows, number))

    def read(self) -> pd.DataFrame:
        """For care."""
        return self.store.site("s", purpose="care").observations


class SqliteWay(Way):
    """A table with a primary key."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.connection = sqlite3.connect(folder / "store.sqlite", isolation_level=None)
        for statement in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            f"CREATE TABLE o ({SQLITE}) WITHOUT ROWID",
            "CREATE TABLE positions (feed TEXT PRIMARY KEY, position TEXT)",
        ):
            self.connection.execute(statement)

    def commit(self, rows: pd.DataFrame, number: int) -> None:
        """INSERT OR REPLACE, and the position."""
        values = rows.assign(time=rows["time"].astype("int64")).itertuples(index=False, name=None)
        self.connection.execute("BEGIN")
        self.connection.executemany("INSERT OR REPLACE INTO o VALUES (?, ?, ?, ?, ?, ?)", values)
        self.connection.execute("INSERT OR REPLACE INTO positions VALUES ('f', ?)", [str(number)])
        self.connection.execute("COMMIT")

    def read(self) -> pd.DataFrame:
        """In the order of the key."""
        frame = pd.read_sql_query("SELECT * FROM o ORDER BY patient, signal, time", self.connection)
        return frame.assign(time=pd.to_datetime(frame["time"], unit="us", utc=True))


class ParquetWay(Way):
    """A file per batch."""

    def commit(self, rows: pd.DataFrame, number: int) -> None:
        """One more file."""
        path = self.folder / f"{number:07d}.parquet"
        rows.to_parquet(path, index=False)
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def read(self) -> pd.DataFrame:
        """All files, the last row of each key, sorted."""
        key = ["patient_id", "signal", "time"]
        frame = pd.concat(pd.read_parquet(path) for path in sorted(self.folder.glob("*.parquet")))
        return frame.drop_duplicates(key, keep="last").sort_values(key, ignore_index=True)


def measure(make: Callable[[Path], Way], folder: Path, rows: pd.DataFrame) -> tuple[float, ...]:
    """(rows a second in large batches, in small ones, seconds to read, bytes)."""
    small = make(folder / "small")
    began = time.perf_counter()
    for number, part in parts(rows.iloc[:SMALL_ROWS], 200):
        small.commit(part, number)
    small_rate = min(SMALL_ROWS, len(rows)) / (time.perf_counter() - began)
    way = make(folder / "large")
    began = time.perf_counter()
    for number, part in parts(rows, 10_000):
        way.commit(part, number)
    rate = len(rows) / (time.perf_counter() - began)
    began = time.perf_counter()
    found = len(way.read())
    seconds = time.perf_counter() - began
    if found != len(rows):
        raise SystemExit(f"expected {len(rows)} rows, read {found}")
    size = sum(file.stat().st_size for file in (folder / "large").rglob("*") if file.is_file())
    return rate, small_rate, seconds, size


def large(folder: Path) -> None:
    """1,000 patients: writes, reads, erases one."""
    with Store.create(folder / "store.duckdb", KEY) as store:
        began = time.perf_counter()
        for number in range(100):
            store.commit(batch(people(10, first=10 * number), number))
        print(f"1,000 patients made and written in {time.perf_counter() - began:.1f} s")
        before = peak_gb()
        began = time.perf_counter()
        site = store.site("s", purpose="care")
        seconds = time.perf_counter() - began
        print(f"read as a site in {seconds:.2f} s ({len(site.observations):,} rows)")
        print(f"peak memory {peak_gb():.2f} GB (before reading: {before:.2f} GB)")
        patient = site.patients.index[500]
        del site
        for what, act in (
            ("one patient read", lambda: store.site("s", purpose="care", patients=[patient])),
            ("one patient erased, the file written anew", lambda: store.erase(patient)),
            ("the key rotated", lambda: store.rotate(bytes(reversed(KEY)))),
        ):
            began = time.perf_counter()
            act()
            print(f"{what} in {time.perf_counter() - began:.2f} s")


def people(patients: int, first: int = 0) -> pd.DataFrame:
    """Glucose of so many patients every 5 minutes for `DAYS` days, one patient after the other."""
    times = pd.date_range("2024-01-01", periods=DAYS * 288, freq="5min", tz="UTC").as_unit("us")
    n = patients * len(times)
    return pd.DataFrame(
        {
            "patient_id": pd.Series(
                np.repeat([f"{k:032x}" for k in range(first, first + patients)], len(times)), dtype="str"
            ),
            "signal": pd.Series("glucose", index=range(n), dtype="str"),
            "time": np.tile(times, patients),
            "value": np.random.default_rng(0).normal(140, 40, n).round(1),
            "source": pd.Series("cgm", index=range(n), dtype="str"),
            "quality": pd.Series("", index=range(n), dtype="str"),
        }
    )


def batch(rows: pd.DataFrame, number: int) -> Ingested:
    """The rows with their counts."""
    counts = rows.groupby(["patient_id", "signal"], sort=False).size().rename("rows").reset_index()

    def none(columns: tuple[str, ...]) -> pd.DataFrame:
        return pd.DataFrame(columns=list(columns))

    return Ingested(
        feed="cgm",
        position=str(number),
        observations=rows,
        facts=none(form.FACTS),
        counts=counts.assign(fate="kept", reason=""),
        quarantine=none(form.QUARANTINE),
        withdrawn=none(form.WITHDRAWN),
    )


def parts(rows: pd.DataFrame, size: int) -> Iterator[tuple[int, pd.DataFrame]]:
    """The rows in batches, numbered."""
    for number, start in enumerate(range(0, len(rows), size)):
        yield number, rows.iloc[start : start + size]


def peak_gb() -> float:
    """Most memory that the process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
