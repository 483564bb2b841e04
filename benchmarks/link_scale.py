"""One coordinator process with 1,000 connected hospitals, and the throughput of a large model.

    python -m benchmarks.link_scale [--sites 1000] [--rounds 5] [--megabytes 100] [--repeats 9]

Memory is the coordinator's resident memory per connected hospital; a round sends a small model to
each and takes it back. Throughput is a model's one way to a hospital in another process and back,
beside the same bytes over bare gRPC streams, in turns; the figures are medians. Processor time is that
of both processes: other work on the machine changes it less than the time that passes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.bare_stream import CHUNK, CHUNKS_PER_ARRAY, bare_stream
from benchmarks.link_parts import connected
from link.coordinator import LinkGrid

from flwr.app import Array, ArrayRecord, Message, RecordDict  # isort: skip  (link must come first)

LINK = "link"


def scale(sites: int, rounds: int) -> None:
    """Prints memory per hospital and seconds per round."""
    with tempfile.TemporaryDirectory() as name:
        before = _resident()
        with connected(Path(name), sites, 4) as server:
            per_site = (_resident() - before) / sites
            grid, took_s = LinkGrid(server), []
            for number in range(rounds):
                started = time.perf_counter()
                model = RecordDict({"m": ArrayRecord({"w": Array(np.full(1000, number, np.float32))})})
                messages = [Message(model, node, "train") for node in grid.get_node_ids()]
                replies = list(grid.send_and_receive(messages, timeout=300))
                if len(replies) != sites:
                    raise RuntimeError(f"{len(replies)} of {sites} answered")
                took_s.append(time.perf_counter() - started)
            after = (_resident() - before) / sites
    print(
        f"{sites} hospitals: {per_site / 1024:.0f} KiB each when connected, {after / 1024:.0f} after", end=" "
    )
    print(f"{rounds} rounds; a round takes {statistics.median(took_s):.2f} s")


def throughput(megabytes: int, repeats: int) -> None:
    """Prints the seconds of a model's way there and back over the link and over bare streams, in turns."""
    values = np.random.default_rng(0).standard_normal(megabytes << 18).astype(np.float32)
    raw, size = values.data.cast("B"), CHUNKS_PER_ARRAY * CHUNK // 4
    arrays = {f"w{place:09d}": Array(values[place : place + size]) for place in range(0, values.size, size)}
    content = RecordDict({"m": ArrayRecord(arrays)})
    took_s: dict[str, list[tuple[float, float]]] = {}
    with (
        tempfile.TemporaryDirectory() as name,
        connected(Path(name), 1, 1) as server,
        bare_stream(secure=True) as tls,
        bare_stream(secure=False) as plain,
    ):
        grid = LinkGrid(server)
        for turn in range(repeats + 1):
            ways: dict[str, Callable[[], float]] = {
                LINK: lambda: _over_link(grid, content),
                "bare gRPC, same TLS, arrays put together": lambda: tls.there_and_back(raw, whole=True),
                "bare gRPC, same TLS, dropped as it comes": lambda: tls.there_and_back(raw, whole=False),
                "bare gRPC, no TLS, dropped as it comes": lambda: plain.there_and_back(raw, whole=False),
            }
            for what, way in ways.items():
                before_s = _processor_s()
                found = way(), _processor_s() - before_s
                if turn:  # the first warms up
                    took_s.setdefault(what, []).append(found)
    for what, each in took_s.items():
        passed_s, worked_s = (statistics.median(values) for values in zip(*each, strict=True))
        ratios = [
            [ours[place] / theirs[place] for ours, theirs in zip(took_s[LINK], each, strict=True)]
            for place in (0, 1)
        ]
        print(
            f"{what}: {megabytes} MB there and back in {passed_s:.2f} s, {worked_s:.2f} s of processor",
            end="",
        )
        print("; the link takes {:.2f} and {:.2f} times as much".format(*map(statistics.median, ratios)))


def _processor_s() -> float:
    """Of this process and those that it has started."""
    ticks = 0
    for process in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _over_link(grid: LinkGrid, content: RecordDict) -> float:
    (node,) = grid.get_node_ids()
    started = time.perf_counter()
    (reply,) = grid.send_and_receive([Message(content, node, "train")], timeout=300)
    if not reply.has_content():
        raise RuntimeError("the site did not answer")
    return time.perf_counter() - started


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    throughput(options.megabytes, options.repeats)
    if options.sites:
        scale(options.sites, options.rounds)


if __name__ == "__main__":
    main()
