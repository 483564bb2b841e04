"""One outgoing call of a hospital as gRPC has it: its stream, and why it ended."""

from __future__ import annotations

import asyncio
import logging

from link import tls  # noqa: F401  first: see link/__init__.py

import grpc  # isort: skip

from link.errors import code_of
from link.greeting import Stream
from link.member import lost_is_the_end

logger = logging.getLogger(f"twinward.{__name__}")


class ClientStream(Stream):
    """The stream of a call; what gRPC raises when it is lost, `SessionEnded` here."""

    def __init__(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        self._call = call

    async def read(self) -> bytes | None:
        with lost_is_the_end():
            data = await self._call.read()
            return None if data is grpc.aio.EOF else bytes(data)

    async def write(self, frame: bytes) -> None:
        with lost_is_the_end():
            await self._call.write(frame)


async def reason(call: grpc.aio.StreamStreamCall[bytes, bytes], ended: str) -> str:
    """Why the coordinator closed, if it was the coordinator; else why this side did."""
    if ended != "closed":
        return ended
    try:
        status = await asyncio.wait_for(call.code(), 1.0)
        return ended if status == grpc.StatusCode.OK else _known(str(await call.details()))
    except TimeoutError:
        return ended


def code_of_error(error: grpc.RpcError) -> str:
    """The code of what gRPC raised: `unreachable`, one of the coordinator's, or `lost`."""
    details = error.details() if isinstance(error, grpc.aio.AioRpcError) else ""
    if isinstance(error, grpc.aio.AioRpcError) and error.code() == grpc.StatusCode.UNAVAILABLE:
        logger.info("the coordinator cannot be reached: %r", str(details)[:500])
        return "unreachable"
    return _known(str(details))


def _known(details: str) -> str:
    """The coordinator's code; any other text of gRPC goes to the log alone."""
    code = code_of(details, "")
    if not code:
        logger.info("the connection ended: %r", details[:500])
    return code or "lost"
