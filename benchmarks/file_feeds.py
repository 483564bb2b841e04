"""Print how fast feeds of files are read, and in how much memory.

Run it from the root: PYTHONPATH=. .venv/bin/python benchmarks/file_feeds.py [--rows 1000000]

Every file is made here, for one patient or a hundred, and read whole by its feed; what its batches hold is
counted and thrown away, as the store would take each and let it go. The peak of memory is that of a process
that read only this file, less that of one that read a file of a hundredth of the rows.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from tests.twin import exported
from twin.connectors.feeds import build

START: Final = datetime(2020, 1, 1, tzinfo=UTC)


def _times(rows: int) -> Iterator[tuple[int, datetime]]:
    return ((k, START + timedelta(minutes=5 * k)) for k in range(rows))


def _folder(rows: int) -> Iterator[str]:
    yield "patient_id,time,signal,value,unit\n"
    for k, at in _times(rows):
        yield f"p{k % 100},{at:%Y-%m-%dT%H:%M:%SZ},glucose,{60 + k % 200},mg/dL\n"


def _clarity(rows: int) -> Iterator[str]:
    yield exported.CLARITY.partition("\n")[0] + "\n"
    for k, at in _times(rows):
        yield f"{k},{at:%Y-%m-%dT%H:%M:%S},EGV,,,,iPhone G6,{60 + k % 200},,,,,{k},8XXXXX\n"


def _libreview(rows: int) -> Iterator[str]:
    yield "".join(line + "\n" for line in exported.LIBREVIEW.split("\n")[:2])
    for k, at in _times(rows):
        yield f"FreeStyle LibreLink,A-1,{at:%m-%d-%Y %I:%M %p},0,{60 + k % 200},,,,,,,,,,,,,,\n"


def _tidepool(rows: int) -> Iterator[str]:
    for k, at in _times(rows):
        item = {"type": "cbg", "value": 4 + k % 9, "units": "mmol/L", "time": f"{at:%Y-%m-%dT%H:%M:%SZ}"}
        yield ("[" if k == 0 else ",") + json.dumps(item | {"deviceId": "D", "uploadId": "u"})
    yield "]"


KINDS: Final[dict[str, tuple[str, Callable[[int], Iterator[str]]]]] = {
    "folder": ("observations.csv", _folder),
    "clarity": ("e.csv", _clarity),
    "libreview": ("e.csv", _libreview),
    "tidepool": ("e.json", _tidepool),
}


def _read(kind: str, folder: str) -> tuple[int, float, float]:
    """(rows, seconds, peak of memory in MiB) of one feed, in a process of its own."""
    options: dict[str, Any] = {"name": "f", "path": folder, "settle_s": 0.0}
    feed = build(kind, options)
    begin = time.perf_counter()
    rows = sum(len(batch.observations) for batch in feed.batches(""))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return rows, time.perf_counter() - begin, peak


def main() -> None:
    """Prints a line for each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows: int = parser.parse_args().rows
    print(f"{'kind':10} {'rows':>9} {'MB':>6} {'s':>6} {'rows/s':>9} {'more MiB':>9}")
    for kind, (name, made) in KINDS.items():
        peaks = []
        for size in (max(1, rows // 100), rows):
            with tempfile.TemporaryDirectory() as place:
                path = Path(place) / "p" / name
                path.parent.mkdir()
                with path.open("w", encoding="utf-8") as handle:
                    handle.writelines(made(size))
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    read, seconds, peak = pool.apply(_read, (kind, place))
                peaks.append(peak)
                megabytes = path.stat().st_size / 1e6
        more = peaks[1] - peaks[0]
        print(f"{kind:10} {read:9,} {megabytes:6.0f} {seconds:6.1f} {read / seconds:9,.0f} {more:9.0f}")


if __name__ == "__main__":
    main()
