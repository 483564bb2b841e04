"""One connection: frames in order, one parcel at a time each way, checked before anything acts on it.

Both sides run the same machine. Whatever the peer sends that is not in its turn (a chunk out of
order or twice, an offer with an old number, a second greeting) ends the connection; what it sends in
its turn but wrong (a header too large, another hash) is refused with a code, and the connection goes on.
Control frames overtake chunks, so that a long body does not hide that the peer is alive.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from link.checking import Checker
from link.chunks import read_chunk, write_chunk
from link.errors import code_of
from link.frames import BAD_BODY, BAD_HEADER, FrameError, Limits, Manifest, Parcel, open_header
from link.generated import link_pb2 as pb
from link.greeting import CLOSED, PROTOCOL_VIOLATED, SILENT, SessionEnded, Stream, parse_frame
from link.transfers import Body, Incoming, Shelf

FIRST_CHUNK_BYTES = 64 << 10
FAST_S, SLOW_S = 0.05, 0.5
MOST_QUEUED_BYTES = 4 << 20
"""Of a body, received and not written yet; then the peer is held back."""
MOST_CONTROL = 64
"""Control frames that wait to be sent. A peer waits for word of each offer; one that does not has no end."""

logger = logging.getLogger(f"twinward.{__name__}")


class Owner(Protocol):
    """What a session asks of the side that it belongs to, always on the loop."""

    def refusal(self, header: pb.Header) -> str | None:
        """Why a parcel is not taken: a code; empty if it was taken before; None if it is taken."""

    def deliver(self, manifest: Manifest, body: Body) -> None:
        """A whole, checked parcel."""

    def rejected(self, header: pb.Header, code: str) -> None:
        """A parcel of the peer was refused after its header was read."""

    def settled(self, parcel: str, code: str) -> None:
        """The peer has a parcel of ours, or (with a code) refused it."""

    def head(self) -> bytes:
        """The head of this side's audit log; opaque here."""

    def heard(self, head: bytes, time_s: float) -> None:
        """The peer's head, and its clock."""

    def still(self) -> str:
        """Empty as long as the peer may go on; else a code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """When a connection counts as dead, seconds.

    Attributes:
        beat_s: between two beats.
        dead_after_s: without any frame; more than a chunk takes on the slowest line.
        check_s: between two looks at whether the peer may go on.
    """

    beat_s: float = 10.0
    dead_after_s: float = 60.0
    check_s: float = 1.0


class Session:
    """The frames of one connection after both greetings. `run` lasts as long as the connection."""

    def __init__(self, stream: Stream, owner: Owner, shelf: Shelf, limits: Limits, pace: Pace) -> None:
        self._stream, self._owner, self._shelf = stream, owner, shelf
        self._limits, self._pace = limits, pace
        self._control: deque[pb.Frame] = deque()
        self._waiting: deque[Parcel] = deque()
        self._wake = asyncio.Event()
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._sending: Parcel | None = None
        self._sent_number = 0
        self._offset: int | None = None
        self._chunk = FIRST_CHUNK_BYTES
        self._incoming: Incoming | None = None
        self._dropped_number = 0
        self._writing: asyncio.Future[None] | None = None
        self._taken_number = 0
        self._heard_at = time.monotonic()
        self.bytes_in = self.bytes_out = 0

    def greet(self, hello: pb.Hello) -> None:
        """Queues this side's greeting; before anything else."""
        self._say(pb.Frame(hello=hello))

    def send(self, parcel: Parcel) -> None:
        """Queues a parcel."""
        self._waiting.append(parcel)
        self._wake.set()

    def forget(self, parcel: str) -> None:
        """Takes a parcel out of the queue, unless it is on its way already."""
        self._waiting = deque(entry for entry in self._waiting if entry.id != parcel)

    def end(self, code: str) -> None:
        """Ends the connection; what is under way goes on over the next."""
        if not self._ended.done():
            self._ended.set_result(code)

    async def run(self) -> None:
        """Raises SessionEnded with the reason, always."""
        work = [asyncio.ensure_future(step()) for step in (self._read, self._write, self._watch)]
        watched: list[asyncio.Future[Any]] = [*work, self._ended]
        try:
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if self._ended.done():
                raise SessionEnded(self._ended.result())
            for task in work:
                if task.cancelled():  # gRPC cancels its calls where the connection is lost
                    raise SessionEnded("lost")
                if task.done():
                    task.result()
            raise SessionEnded(CLOSED)
        finally:
            for task in work:
                task.cancel()
            left = [*work] if self._writing is None else [*work, self._writing]
            await asyncio.gather(*left, return_exceptions=True)
            if self._incoming is not None:
                self._incoming.close()

    # Out.

    async def _write(self) -> None:
        while True:
            self._wake.clear()
            if self._control:
                await self._put(self._control.popleft())
            elif self._sending is None and self._waiting:
                await self._offer(self._waiting.popleft())
            elif self._sending is not None and self._offset is not None:
                await self._put_chunk(self._sending, self._offset)
            else:
                await self._wake.wait()

    async def _put(self, frame: pb.Frame) -> None:
        await self._put_bytes(frame.SerializeToString())

    async def _put_bytes(self, frame: bytes) -> None:
        self.bytes_out += len(frame)
        await self._stream.write(frame)

    async def _offer(self, parcel: Parcel) -> None:
        if reason := self._owner.still():
            raise SessionEnded(reason)
        self._sending, self._offset = parcel, None
        self._sent_number += 1
        body = parcel.part(0, parcel.total) if parcel.total <= self._limits.inline_bytes else b""
        offer = pb.Offer(number=self._sent_number, header=parcel.header, body=body)
        await self._put(pb.Frame(offer=offer))

    async def _put_chunk(self, parcel: Parcel, offset: int) -> None:
        size = min(self._chunk, self._limits.chunk_bytes, parcel.total - offset)
        following = offset + size
        # Set before the write, since the peer's next Want may come while it lasts.
        self._offset = following if following < parcel.total else None
        frame = write_chunk(self._sent_number, offset, parcel.views(offset, size))
        started = time.monotonic()
        await self._put_bytes(frame)
        took_s = time.monotonic() - started
        if took_s < FAST_S:
            self._chunk = min(2 * self._chunk, self._limits.chunk_bytes)
        elif took_s > SLOW_S:
            self._chunk = max(self._chunk // 2, FIRST_CHUNK_BYTES // 4)

    def _say(self, frame: pb.Frame) -> None:
        if len(self._control) >= MOST_CONTROL:
            self.end(PROTOCOL_VIOLATED)
            return
        self._control.append(frame)
        self._wake.set()

    # In.

    async def _read(self) -> None:
        while (data := await self._stream.read()) is not None:
            self._heard_at = time.monotonic()
            self.bytes_in += len(data)
            if (chunk := read_chunk(data)) is not None:
                await self._take_chunk(*chunk)
                continue
            frame = parse_frame(data)
            kind = frame.WhichOneof("kind")
            if kind == "offer":
                await self._take_offer(frame.offer)
            elif kind == "chunk":
                part = frame.chunk
                await self._take_chunk(part.number, part.offset, memoryview(part.data))
            elif kind == "want":
                self._take_want(frame.want)
            elif kind == "received":
                self._take_settled(frame.received.number, "")
            elif kind == "refused":
                self._take_settled(frame.refused.number, code_of(frame.refused.code, BAD_HEADER))
            elif kind == "beat":
                self._owner.heard(frame.beat.head, frame.beat.time_s)
            else:
                raise SessionEnded(PROTOCOL_VIOLATED, "Expected no second greeting and no unknown frame.")

    async def _take_offer(self, offer: pb.Offer) -> None:
        await self._written()
        if offer.number != self._taken_number + 1 or self._incoming is not None:
            raise SessionEnded(PROTOCOL_VIOLATED, "Expected the next offer in its turn.")
        if reason := self._owner.still():
            raise SessionEnded(reason)
        self._taken_number += 1
        try:
            manifest = open_header(offer.header, self._limits)
        except FrameError as error:
            self._refuse(None, error)
            return
        code = self._owner.refusal(manifest.header)
        if code is not None:
            self._answer(code)
            return
        try:
            if offer.body or not manifest.total:
                self._take_inline(manifest, offer.body)
            else:
                await self._begin(manifest)
        except FrameError as error:
            self._refuse(manifest.header, error)

    def _take_inline(self, manifest: Manifest, body: bytes) -> None:
        if len(body) > self._limits.inline_bytes or len(body) != manifest.total:
            raise FrameError(BAD_BODY, "Expected a body of the declared total.")
        checker = Checker(manifest)
        checker.update(body)
        checker.finish()
        self._hand_over(manifest, Body(body))

    async def _begin(self, manifest: Manifest) -> None:
        incoming = self._shelf.open(manifest)
        self._incoming = incoming
        await _off_loop(incoming.rewind)
        if incoming.offset == manifest.total:
            self._finish(incoming)
        else:
            self._say(pb.Frame(want=pb.Want(number=self._taken_number, offset=incoming.offset)))

    async def _take_chunk(self, number: int, offset: int, data: memoryview) -> None:
        """Has a chunk written while the next ones are on their way; the last is waited for at once."""
        if self._writing is not None and self._writing.done():
            await self._written()
        incoming = self._incoming
        if number == self._dropped_number:
            return  # sent before the peer read that its parcel is refused
        if incoming is not None and incoming.skipping and offset:
            return  # sent before the peer read that it shall begin again
        if incoming is None or number != self._taken_number or offset != incoming.expected:
            raise SessionEnded(PROTOCOL_VIOLATED, "Expected the next chunk of the parcel that was wanted.")
        if not 0 < data.nbytes <= min(self._limits.chunk_bytes, incoming.manifest.total - offset):
            raise SessionEnded(PROTOCOL_VIOLATED, "Expected a chunk within the declared total.")
        incoming.skipping = False
        incoming.put(data)
        if self._writing is None:
            self._writing = asyncio.get_running_loop().run_in_executor(None, incoming.drain)
        if incoming.queued >= MOST_QUEUED_BYTES or incoming.expected == incoming.manifest.total:
            await self._written()

    async def _written(self) -> None:
        """Waits for the chunks that are being written, and acts on what came of them."""
        while (incoming := self._incoming) is not None and self._writing is not None:
            writing, self._writing = self._writing, None
            try:
                await writing
            except FrameError as error:
                self._repeat_or_refuse(incoming, error)
                return
            if incoming.queued:  # put there while the thread was about to end
                self._writing = asyncio.get_running_loop().run_in_executor(None, incoming.drain)
            elif incoming.offset == incoming.manifest.total:
                self._finish(incoming)

    def _finish(self, incoming: Incoming) -> None:
        body = incoming.finish()
        self._incoming = None
        self._hand_over(incoming.manifest, body)

    def _repeat_or_refuse(self, incoming: Incoming, error: FrameError) -> None:
        """A wrong hash: once from the start where an earlier connection left bytes, else refused."""
        if error.code == BAD_BODY and incoming.resumed:
            incoming.restart()
            self._say(pb.Frame(want=pb.Want(number=self._taken_number, offset=0)))
        else:
            self._refuse(incoming.manifest.header, error)

    def _hand_over(self, manifest: Manifest, body: Body) -> None:
        self._owner.deliver(manifest, body)
        self._answer("")

    def _refuse(self, header: pb.Header | None, error: FrameError) -> None:
        logger.warning("refused a parcel: %s", error)
        if self._incoming is not None:
            self._incoming.discard()
            self._incoming = None
            self._dropped_number = self._taken_number
        if header is not None:
            self._owner.rejected(header, error.code)
        self._answer(error.code)

    def _answer(self, code: str) -> None:
        number = self._taken_number
        refused = pb.Frame(refused=pb.Refused(number=number, code=code))
        self._say(refused if code else pb.Frame(received=pb.Received(number=number)))

    def _take_want(self, want: pb.Want) -> None:
        parcel = self._sending
        if parcel is None or want.number != self._sent_number or not want.offset < parcel.total:
            raise SessionEnded(PROTOCOL_VIOLATED, "Expected a byte of the parcel that is being sent.")
        self._offset = want.offset
        self._wake.set()

    def _take_settled(self, number: int, code: str) -> None:
        if self._sending is None or number != self._sent_number:
            raise SessionEnded(PROTOCOL_VIOLATED, "Expected word of the parcel that is being sent.")
        parcel, self._sending, self._offset = self._sending, None, None
        self._wake.set()
        self._owner.settled(parcel.id, code)

    async def _watch(self) -> None:
        beat_at = time.monotonic() + self._pace.beat_s
        while True:
            await asyncio.sleep(min(self._pace.check_s, self._pace.beat_s))
            now = time.monotonic()
            if reason := self._owner.still():
                raise SessionEnded(reason)
            if now - self._heard_at > self._pace.dead_after_s:
                raise SessionEnded(SILENT, f"Nothing came for {self._pace.dead_after_s:g} s.")
            if now >= beat_at:
                beat_at = now + self._pace.beat_s
                self._say(pb.Frame(beat=pb.Beat(head=self._owner.head(), time_s=time.time())))


async def _off_loop(work: Callable[[], None]) -> None:
    await asyncio.get_running_loop().run_in_executor(None, work)
