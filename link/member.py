"""One hospital at the coordinator, over all its connections: what it is asked, what it answers and calls."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from link import tls  # noqa: F401  first: see link/__init__.py

import grpc  # isort: skip

from link.errors import CallRefused, code_of
from link.frames import TOO_LARGE, Manifest, Packer, Parcel, open_payload
from link.generated import link_pb2 as pb
from link.greeting import PROTOCOL, SessionEnded, Stream, read_hello
from link.mailbox import TOO_MANY, Mailbox
from link.session import Session
from link.transfers import Body, Shelf
from trust.identity import Identity

if TYPE_CHECKING:
    from link.listener import LinkServer

SOFTWARE = "twinward"
REPLACED, REVOKED = "replaced", "revoked"

logger = logging.getLogger(f"twinward.{__name__}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """A hospital that is connected now; `since_s` in seconds since 1970, `clock_ahead_s` its clock's."""

    identity: Identity
    peer: str
    software: str
    since_s: float
    clock_ahead_s: float


class Hospital:
    """One hospital over all its connections; on the loop only."""

    def __init__(self, name: str, server: LinkServer) -> None:
        self.name = name
        self.info: Connected | None = None
        self._server = server
        self._certificate = b""
        self._shelf = Shelf(server.settings.transfers / name, server.settings.limits)
        self._session: Session | None = None
        self._newest = 0
        self._one_at_a_time = asyncio.Lock()
        self.mailbox = Mailbox(
            asks=pb.Header.CALL,
            answers=pb.Header.REPLY,
            limits=server.settings.limits,
            on_question=self._take_call,
            on_answer=lambda id_, manifest, body: server.answered(id_, manifest, body, ""),
            on_failed=lambda id_, code: server.answered(id_, None, None, code),
            accepts=self._call_fault,
        )

    def end(self, code: str) -> None:
        if self._session is not None:
            self._session.end(code)

    async def connect(
        self, context: grpc.aio.ServicerContext[bytes, bytes], identity: Identity, certificate: bytes
    ) -> str:
        """Serves a connection to its end; the code of the end."""
        self._newest += 1
        ticket = self._newest
        try:
            hello = await read_hello(_ServerStream(context).read, self._server.settings.greet_s)
        except SessionEnded as ended:
            self._server.note("refused", self.name, ended.code)
            return ended.code
        self.end(REPLACED)
        async with self._one_at_a_time:
            if ticket != self._newest:
                return REPLACED
            return await self._serve(context, identity, certificate, hello)

    async def _serve(
        self,
        context: grpc.aio.ServicerContext[bytes, bytes],
        identity: Identity,
        certificate: bytes,
        hello: pb.Hello,
    ) -> str:
        settings = self._server.settings
        stream = _ServerStream(context)
        self._certificate = certificate
        self._session = session = Session(stream, self, self._shelf, settings.limits, settings.pace)
        self.info = Connected(
            identity=identity,
            peer=str(context.peer()),
            software=hello.software[:64],
            since_s=time.time(),
            clock_ahead_s=hello.time_s - time.time(),
        )
        self._server.note("connected", self.name)
        code = "closed"
        try:
            session.greet(self._greeting())
            self.heard(hello.head, hello.time_s)
            self.mailbox.attach(session, hello.held)
            await session.run()
        except SessionEnded as ended:
            code = ended.code
        except Exception:
            logger.exception("the connection of %s failed", self.name)
            code = "internal_error"
        finally:
            self.mailbox.detach(session)
            self._session, self.info = None, None
            self._server.note("disconnected", self.name, code)
        return code

    def _greeting(self) -> pb.Hello:
        return pb.Hello(
            protocol=PROTOCOL,
            software=SOFTWARE,
            instance=self._server.instance,
            held=self.mailbox.held,
            head=self._server.head(self.name),
            time_s=time.time(),
        )

    # What the session asks: link.session.Owner.

    def refusal(self, header: pb.Header) -> str | None:
        code = self.mailbox.refusal(header)
        if code == "" and header.kind == pb.Header.REPLY:
            self._server.note("repeated_answer", self.name)
        return code

    def deliver(self, manifest: Manifest, body: Body) -> None:
        self.mailbox.deliver(manifest, body)

    def rejected(self, header: pb.Header, code: str) -> None:
        self._server.note("refused", self.name, code)
        self.mailbox.rejected(header, code)

    def settled(self, parcel: str, code: str) -> None:
        self.mailbox.settled(parcel, code)

    def head(self) -> bytes:
        return self._server.head(self.name)

    def heard(self, head: bytes, time_s: float) -> None:  # noqa: ARG002  the greeting's clock is enough
        if self._server.heard is not None and head:
            self._server.heard(self.name, head)

    def still(self) -> str:
        identity = self._server.admit(self._certificate)
        return "" if identity is not None and identity.name == self.name else REVOKED

    def _call_fault(self, header: pb.Header) -> str | None:
        """A call is short: its body is held in memory, and a site may have many under way."""
        if self._server.serve is None:
            return "no_service"
        if len(self.mailbox.held) >= self._server.settings.limits.calls:
            return TOO_MANY
        return TOO_LARGE if header.total > self._server.settings.limits.inline_bytes else None

    def _take_call(self, manifest: Manifest, body: Body) -> None:
        with body:
            payload = open_payload(manifest, body)
        header = manifest.header
        self._server.note("call", self.name, code_of(header.type, "unknown"))
        loop = asyncio.get_running_loop()

        def work() -> None:
            parcel = self._result(header.id, header.type, payload)
            loop.call_soon_threadsafe(self.mailbox.answer, header.id, parcel)

        self._server.pool.submit(work)

    def _result(self, id_: str, kind: str, payload: bytes) -> Parcel:
        serve, answer = self._server.serve, f"{id_}-result"
        try:
            if serve is None:
                raise CallRefused("no_service")
            return self._server.results.result(answer, id_, serve(kind, self.name, payload))
        except CallRefused as refused:
            return Packer().result(answer, id_, None, refused.code)
        except Exception:  # its text must not leave
            logger.exception("the call %s of %s failed", kind[:64], self.name)
            return Packer().result(answer, id_, None, "internal_error")


class _ServerStream(Stream):
    def __init__(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        self._context = context

    async def read(self) -> bytes | None:
        with lost_is_the_end():
            data = await self._context.read()
            return None if data is grpc.aio.EOF else bytes(data)

    async def write(self, frame: bytes) -> None:
        with lost_is_the_end():
            await self._context.write(frame)


@contextmanager
def lost_is_the_end() -> Iterator[None]:
    """Makes one error of what gRPC raises, or asyncio for it, on a call that is over.

    Raises:
        SessionEnded: lost.
    """
    try:
        yield
    except (asyncio.InvalidStateError, grpc.aio.BaseError):
        raise SessionEnded("lost") from None
