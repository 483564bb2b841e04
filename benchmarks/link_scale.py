"""One coordinator process with 1,000 connected hospitals, and the throughput of a large model.

    python -m benchmarks.link_scale [--sites 1000] [--rounds 5] [--megabytes 100]

Memory is the coordinator's resident memory per connected hospital; a round sends a small model to
each and takes it back. Throughput is a model's one way to a hospital in another process and back,
beside the same bytes as 1 MiB messages over a bare gRPC stream, plain and with the same mutual TLS.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.link_parts import FEDERATION, connected, credentials
from link.coordinator import LinkGrid
from link.tls import Credentials, channel_credentials, server_credentials

import grpc  # isort: skip  (link must come first)
from flwr.app import Array, ArrayRecord, Message, RecordDict  # isort: skip
from trust.authority import Authority

CHUNK = 1 << 20


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


def throughput(megabytes: int, repeats: int = 5) -> None:
    """Prints megabytes per second there and back, over the link and over bare gRPC."""
    values = np.random.default_rng(0).standard_normal(megabytes << 18).astype(np.float32)
    with tempfile.TemporaryDirectory() as name, connected(Path(name), 1, 1) as server:
        grid = LinkGrid(server)
        (node,) = grid.get_node_ids()
        link_s = []
        for _ in range(repeats):
            content = RecordDict({"m": ArrayRecord({"w": Array(values)})})
            started = time.perf_counter()
            (reply,) = grid.send_and_receive([Message(content, node, "train")], timeout=300)
            if not reply.has_content():
                raise RuntimeError("the site did not answer")
            link_s.append(time.perf_counter() - started)
    plain_s, tls_s = raw(megabytes, repeats, secure=False), raw(megabytes, repeats, secure=True)
    figures = {"link": min(link_s), "bare gRPC": plain_s, "bare gRPC with mutual TLS": tls_s}
    for what, took_s in figures.items():
        print(f"{what}: {megabytes} MB there and back in {took_s:.2f} s, {2 * megabytes / took_s:.0f} MB/s")
    print(f"link / bare: {min(link_s) / plain_s:.2f}; link / bare with TLS: {min(link_s) / tls_s:.2f}")


def raw(megabytes: int, repeats: int, *, secure: bool) -> float:
    """Least seconds for the bytes there and back over a bare gRPC stream between two processes."""
    with tempfile.TemporaryDirectory() as name:
        authority = Authority.create(Path(name) / "authority", FEDERATION, now=datetime.now(UTC))
        mine = credentials(authority, "main", coordinator=True) if secure else None
        shown = credentials(authority, "alpha") if secure else None
    spawn = multiprocessing.get_context("spawn")
    near, far = spawn.Pipe()
    process = spawn.Process(target=_bare_peer, args=(far, shown), daemon=True)
    process.start()
    try:
        return asyncio.run(_bare(megabytes, repeats, mine, near))
    finally:
        process.join(20)


async def _bare(
    megabytes: int, repeats: int, mine: Credentials | None, near: multiprocessing.connection.Connection
) -> float:
    """The coordinator's side: sends all chunks, reads as many."""
    took_s: list[float] = []
    over = asyncio.Event()
    data = os.urandom(CHUNK)

    async def serve(_: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.read()
        for _turn in range(repeats):
            started = time.perf_counter()
            for _chunk in range(megabytes):
                await context.write(data)
            for _chunk in range(megabytes):
                await context.read()
            took_s.append(time.perf_counter() - started)
        over.set()

    options = [("grpc.max_receive_message_length", 2 * CHUNK), ("grpc.max_send_message_length", 2 * CHUNK)]
    server = grpc.aio.server(options=options)
    handler = grpc.stream_stream_rpc_method_handler(serve)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare", {"Stream": handler}),))
    if mine is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", server_credentials(lambda: mine))
    await server.start()
    near.send((port, megabytes, repeats))
    await over.wait()
    await server.stop(1)
    return min(took_s)


def _bare_peer(far: multiprocessing.connection.Connection, shown: Credentials | None) -> None:
    """The hospital's side: reads all chunks, sends as many."""
    port, megabytes, repeats = far.recv()

    async def answer() -> None:
        options = [("grpc.max_receive_message_length", 2 * CHUNK)]
        if shown is None:
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
        else:
            channel = grpc.aio.secure_channel(
                f"127.0.0.1:{port}", channel_credentials(shown), options=options
            )
        async with channel:
            call = channel.stream_stream("/bare/Stream")()
            await call.write(b"ready")
            for _turn in range(repeats):
                kept = [await call.read() for _chunk in range(megabytes)]
                for data in kept:
                    await call.write(data)
            await call.done_writing()

    asyncio.run(answer())


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=100)
    options = parser.parse_args()
    throughput(options.megabytes)
    scale(options.sites, options.rounds)


if __name__ == "__main__":
    main()
