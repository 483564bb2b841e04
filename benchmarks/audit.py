"""Print how many records a second an audit log takes, beside a hash chain with one fsync a record.

Run it from the root: PYTHONPATH=. .venv/bin/python benchmarks/audit.py [FOLDER]

Each record is durable before the next call returns. All ways are measured in turn, several times, on
the file system of FOLDER (default: the temporary folder); the median is printed, because an fsync takes
longer when others use the disk. Then: what a head, a proof and a verification cost.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from trust.audit import AuditLog
from trust.verification import verify

TURNS = 5
SECONDS = 1.0
FACTS = {"plan": "p" * 64, "base": "b" * 64, "update": "u" * 64}


def main() -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        ways: dict[str, Callable[[Path], int]] = {
            "hash chain in a file, fsync each": chain,
            "audit log, 1 thread": partial(log, 1),
            "audit log, 8 threads": partial(log, 8),
            "audit log, 64 threads": partial(log, 64),
            "audit log, 2 processes of 8 threads": processes,
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(TURNS):
            for name, way in ways.items():
                began = time.perf_counter()
                count = way(Path(folder) / f"{turn} {name}")
                rates[name].append(count / (time.perf_counter() - began))
        print(f"{'records a second, durable':<38} {'median':>8} {'least':>8} {'most':>8} {'ratio':>7}")
        first = statistics.median(rates["hash chain in a file, fsync each"])
        for name, found in rates.items():
            middle = statistics.median(found)
            print(f"{name:<38} {middle:8.0f} {min(found):8.0f} {max(found):8.0f} {middle / first:7.1f}")
        reading(Path(folder) / "large")


def chain(path: Path) -> int:
    """Appends hash-chained lines with one fsync each."""
    head, count, end = b"", 0, time.perf_counter() + SECONDS
    with path.open("wb") as file:
        while time.perf_counter() < end:
            text = f"{count} {FACTS}".encode()
            head = hashlib.sha256(head + text).digest()
            file.write(text + b" " + head.hex().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            count += 1
    return count


def log(threads: int, path: Path) -> int:
    """Appends from several threads."""
    counts, end = [0] * threads, time.perf_counter() + SECONDS
    with AuditLog(path) as opened:

        def work(thread: int) -> None:
            while time.perf_counter() < end:
                opened.append("released", who="north", round=counts[thread], **FACTS)
                counts[thread] += 1

        workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return sum(counts)


def processes(path: Path) -> int:
    """Appends from two processes of eight threads."""
    with AuditLog(path):
        pass
    workers = [multiprocessing.get_context("fork").Process(target=log, args=(8, path)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    with AuditLog(path) as opened:
        return opened.size


def reading(path: Path) -> None:
    """Prints what it costs to open, prove and verify a log."""
    size = 0
    while size < 50_000:
        log(64, path)
        with AuditLog(path) as opened:
            size = opened.size
    began = time.perf_counter()
    with AuditLog(path) as opened:
        middle = time.perf_counter()
        proof = opened.proof(size // 3, size)
        proved = time.perf_counter()
    print(f"\na log of {size} records, {path.stat().st_size / size:.0f} bytes each")
    print(
        f"open {1000 * (middle - began):.1f} ms; proof of growth {1000 * (proved - middle):.2f} ms, ", end=""
    )
    print(f"{32 * len(proof)} bytes", end="")
    began = time.perf_counter()
    faults = verify(path)
    print(f"; verify {time.perf_counter() - began:.2f} s, {len(faults)} faults")


if __name__ == "__main__":
    main()
