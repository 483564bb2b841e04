"""The first frame of a connection, the stream that frames come over, and the reasons why it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

from google.protobuf.message import DecodeError

from link.errors import LinkError
from link.generated import link_pb2 as pb

PROTOCOL = 1
PROTOCOL_VIOLATED, SILENT, CLOSED = "protocol_violated", "silent", "closed"


class SessionEnded(LinkError):
    """A connection that is over; `code` says why."""

    def __init__(self, code: str, text: str = "") -> None:
        super().__init__(f"{text or 'The connection ended.'} [{code}]")
        self.code = code


class Stream(Protocol):
    """Whole frames as bytes, however they travel."""

    async def read(self) -> bytes | None:
        """The next frame; None once the peer has closed."""

    async def write(self, frame: bytes) -> None:
        """Sends a frame; returns when there is room for the next."""


def parse_frame(data: bytes) -> pb.Frame:
    """The frame in some bytes, whose number gRPC has limited.

    Raises:
        SessionEnded: protocol_violated.
    """
    frame = pb.Frame()
    try:
        frame.ParseFromString(data)
    except DecodeError:
        raise SessionEnded(PROTOCOL_VIOLATED, "Expected a frame in the form of link.proto.") from None
    return frame


async def read_hello(read: Callable[[], Awaitable[bytes | None]], timeout_s: float) -> pb.Hello:
    """The peer's greeting.

    Raises:
        SessionEnded: it does not come in time, is not the first frame, or is of another protocol.
    """
    with suppress(TimeoutError):
        data = await asyncio.wait_for(read(), timeout_s)
        if data is None:
            raise SessionEnded(CLOSED, "The peer closed before it greeted.")
        frame = parse_frame(data)
        if frame.WhichOneof("kind") != "hello":
            raise SessionEnded(PROTOCOL_VIOLATED, "Expected a greeting as the first frame.")
        if frame.hello.protocol != PROTOCOL:
            raise SessionEnded(
                "protocol_version",
                f"Expected protocol {PROTOCOL}; the peer speaks {frame.hello.protocol}."
                " Bring both sides to one release.",
            )
        return frame.hello
    raise SessionEnded(SILENT, f"The peer did not greet within {timeout_s:g} s.")
