"""The same bytes over a bare gRPC stream between two processes: what the link is compared with.

Python at both ends, grpc.aio, chunks of the link's size, with and without the same mutual TLS. A model
is `whole` where each end puts the chunks of each array together, as whoever wants arrays must; else they
are dropped as they come.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.connection
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.link_parts import FEDERATION, credentials
from link.frames import Limits
from link.loop import submit
from link.tls import Credentials, channel_credentials, server_credentials

import grpc  # isort: skip  (link must come first)
from trust.authority import Authority

CHUNK = Limits().chunk_bytes
CHUNKS_PER_ARRAY = 4
OPTIONS = [("grpc.max_receive_message_length", 2 * CHUNK), ("grpc.max_send_message_length", 2 * CHUNK)]
PATIENCE_S = 120.0


class BareServer:
    """A listener to which the other process has one stream open."""

    def __init__(self) -> None:
        self._context: grpc.aio.ServicerContext[bytes, bytes] | None = None
        self._there, self._over = threading.Event(), asyncio.Event()
        self._server: grpc.aio.Server | None = None

    def start(self, mine: Credentials | None) -> int:
        return submit(self._start(mine)).result(PATIENCE_S)

    def there_and_back(self, data: memoryview, *, whole: bool) -> float:
        """Seconds until all of it has come back."""
        self._there.wait(PATIENCE_S)
        return submit(self._turn(data, whole=whole)).result(PATIENCE_S)

    def stop(self) -> None:
        submit(self._stop()).result(PATIENCE_S)

    async def _start(self, mine: Credentials | None) -> int:
        self._server = grpc.aio.server(options=OPTIONS)
        handler = grpc.stream_stream_rpc_method_handler(self._serve)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("bare", {"Stream": handler}),)
        )
        if mine is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", server_credentials(lambda: mine))
        await self._server.start()
        return int(port)

    async def _serve(self, _: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.read()
        self._context = context
        self._there.set()
        await self._over.wait()

    async def _turn(self, data: memoryview, *, whole: bool) -> float:
        if self._context is None:
            raise TimeoutError("Expected the other process to connect.")
        started = time.perf_counter()
        for offset in range(0, data.nbytes, CHUNK):
            await self._context.write(bytes(data[offset : offset + CHUNK]))
        await self._context.write(b"whole" if whole else b"drop")
        got, kept = 0, []
        while got < data.nbytes:
            chunk = await self._context.read()
            got += len(chunk)
            if whole:
                kept.append(chunk)
        if whole and sum(map(len, put_together(kept))) != data.nbytes:
            raise RuntimeError("the model came back cut")
        return time.perf_counter() - started

    async def _stop(self) -> None:
        self._over.set()
        if self._server is not None:
            await self._server.stop(1)


def put_together(chunks: list[bytes]) -> list[bytes]:
    """Arrays of some chunks each."""
    return [
        b"".join(chunks[place : place + CHUNKS_PER_ARRAY])
        for place in range(0, len(chunks), CHUNKS_PER_ARRAY)
    ]


@contextmanager
def bare_stream(*, secure: bool) -> Iterator[BareServer]:
    """A stream that is open, with a process of its own at the other end."""
    with tempfile.TemporaryDirectory() as name:
        authority = Authority.create(Path(name) / "authority", FEDERATION, now=datetime.now(UTC))
        mine = credentials(authority, "main", coordinator=True) if secure else None
        shown = credentials(authority, "alpha") if secure else None
    server = BareServer()
    port = server.start(mine)
    process = multiprocessing.get_context("spawn").Process(target=_peer, args=(port, shown), daemon=True)
    process.start()
    try:
        yield server
    finally:
        server.stop()
        process.join(20)


def _peer(port: int, shown: Credentials | None) -> None:
    """The hospital's side: reads all chunks up to a word, sends as many; until the stream ends."""

    async def answer() -> None:
        address = f"127.0.0.1:{port}"
        if shown is None:
            channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        else:
            channel = grpc.aio.secure_channel(address, channel_credentials(shown), options=OPTIONS)
        async with channel:
            call = channel.stream_stream("/bare/Stream")()
            await call.write(b"ready")
            kept: list[bytes] = []
            while (data := await call.read()) is not grpc.aio.EOF:
                if data not in (b"whole", b"drop"):
                    kept.append(data)
                    continue
                arrays = put_together(kept) if data == b"whole" else kept
                for array in arrays:
                    for offset in range(0, len(array), CHUNK):
                        await call.write(bytes(memoryview(array)[offset : offset + CHUNK]))
                kept.clear()

    asyncio.run(answer())
