"""The hospital's end: one outbound connection, kept up for as long as the process lives.

The hospital opens no port. It connects, greets, answers requests one after the other in a thread of
its own, and after any break connects again, with waits that grow to a limit and are spread at random.
Whatever was under way goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import random
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from link import tls  # first: see link/__init__.py

import grpc  # isort: skip
from flwr.app import Message

from link.dialled import ClientStream, code_of_error, reason
from link.errors import CallRefused, LinkError, code_of
from link.frames import CALL_ROOM, Limits, Manifest, Packer, Parcel, open_payload, open_request
from link.generated import link_pb2 as pb
from link.greeting import PROTOCOL, SessionEnded, Stream, read_hello
from link.listener import METHOD, NOT_ADMITTED, SERVICE, channel_options
from link.loop import event_loop, submit
from link.mailbox import Mailbox
from link.member import REPLACED, REVOKED, SOFTWARE
from link.session import Pace, Session
from link.tls import Credentials
from link.transfers import Body, Shelf

ENVIRONMENT = "environment"
PATIENT = frozenset({NOT_ADMITTED, REPLACED, REVOKED, "protocol_version"})
"""Ends after which it waits the longest at once: trying soon again would change nothing."""

Handle = Callable[[Message], Message]

logger = logging.getLogger(f"twinward.{__name__}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HospitalSettings:
    """Where the coordinator is and how this hospital reaches it.

    Attributes:
        address: `host:port`.
        credentials: asked at every connection, so that a renewed certificate is used.
        transfers: folder of bodies that are on their way in.
        proxy: `http://host:port` of an HTTP CONNECT proxy; empty for none; `environment` takes
            https_proxy and no_proxy as gRPC reads them.
        server_name: the name that the coordinator's certificate must bear, if not that of `address`.
        first_wait_s, most_wait_s: before the second attempt, and the most.
        greet_s: how long connecting and greeting may take.
    """

    address: str
    credentials: Callable[[], Credentials]
    transfers: Path
    proxy: str = ""
    server_name: str = ""
    first_wait_s: float = 0.5
    most_wait_s: float = 60.0
    greet_s: float = 20.0
    limits: Limits = field(default_factory=Limits)
    pace: Pace = field(default_factory=Pace)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How the connection stands.

    Attributes:
        connected: whether it is up; since_s: since when it stands as it does, seconds since 1970.
        ended: code of the last end, empty if there was none.
        attempts: failed ones in a row.
        clock_ahead_s: this machine's clock less the coordinator's, at the last greeting.
    """

    connected: bool = False
    since_s: float = 0.0
    ended: str = ""
    attempts: int = 0
    clock_ahead_s: float = 0.0


class HospitalLink:
    """The connection to the coordinator. Its methods may be called from any thread but the loop's.

    Args:
        handle: makes the reply to a message; called in one thread, always the same, one at a time. If
            it raises, the coordinator learns no more than that.
        head: head of the site's audit log, sent along; heard: told of the coordinator's.
        on_state: told of every change; runs on the loop, so it must be quick.
        spread: source of the random part of the waits.
    """

    def __init__(
        self,
        settings: HospitalSettings,
        handle: Handle,
        *,
        head: Callable[[], bytes] = bytes,
        heard: Callable[[bytes], None] | None = None,
        on_state: Callable[[State], None] | None = None,
        spread: random.Random | None = None,
    ) -> None:
        self.settings = settings
        self._handle = handle
        self._head = head
        self._heard = heard
        self._on_state = on_state
        self._spread = spread or random.Random()  # noqa: S311  spreads load; no secret
        self._instance = secrets.token_hex(8)
        self._state = State(since_s=time.time())
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="site")
        self._shelf = Shelf(settings.transfers, settings.limits)
        self._calls: dict[str, concurrent.futures.Future[bytes]] = {}
        self._ending = False
        self._running: concurrent.futures.Future[None] | None = None
        self._mailbox = Mailbox(
            asks=pb.Header.REQUEST,
            answers=pb.Header.RESULT,
            limits=settings.limits,
            on_question=self._take_request,
            on_answer=self._take_result,
            on_failed=self._fail_call,
            accepts=lambda _: None,  # the app judges what it is asked
        )

    @property
    def state(self) -> State:
        return self._state

    def start(self) -> None:
        """Connects, and goes on until `stop`.

        Raises:
            LinkError: TLS 1.2 could be spoken.
        """
        tls.check_ready(self.settings.credentials())
        self._running = submit(self._keep_connected())

    def stop(self, *, wait: bool = True) -> None:
        """Ends the connection. With `wait`, a message that is being handled is finished first."""
        if self._running is not None:
            self._running.cancel()
            with suppress(concurrent.futures.CancelledError):
                self._running.result()
        self._pool.shutdown(wait=wait, cancel_futures=True)
        self.end_calls()

    def end_calls(self) -> None:
        """Refuses the calls that wait for an answer, and every later one, as `stopped`."""
        self._ending = True
        for id_ in list(self._calls):
            self._fail_call(id_, "stopped")

    def wait_until_connected(self, timeout_s: float) -> bool:
        """Whether the connection is up, after at most that time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._state.connected, timeout_s)

    def call(
        self, kind: str, payload: bytes, timeout_s: float = 60.0, *, answer_bytes: int | None = CALL_ROOM
    ) -> bytes:
        """The coordinator's answer to a call, over as many connections as it takes.

        Args:
            answer_bytes: most that it may be; None for a model.

        Raises:
            CallRefused: it said no (its code), did not answer in time (`no_answer`), or this side
                ends (`stopped`).
        """
        id_ = f"{self._instance}-{secrets.token_hex(8)}"
        future: concurrent.futures.Future[bytes] = concurrent.futures.Future()
        self._calls[id_] = future
        if self._ending:  # looked at after the call is listed, so that none slips through
            self._fail_call(id_, "stopped")
        loop = event_loop()
        loop.call_soon_threadsafe(self._mailbox.ask, Packer().call(id_, kind, payload, answer_bytes))
        try:
            return future.result(timeout_s)
        except TimeoutError:
            loop.call_soon_threadsafe(self._mailbox.withdraw, id_)
            raise CallRefused("no_answer", f"No answer to {kind!r} within {timeout_s:g} s.") from None
        finally:
            self._calls.pop(id_, None)

    # On the loop.

    async def _keep_connected(self) -> None:
        attempts = 0
        while True:
            code, greeted = await self._attempt()
            attempts = 1 if greeted else attempts + 1
            self._become(State(ended=code, attempts=attempts, clock_ahead_s=self._state.clock_ahead_s))
            wait_s = self._wait_s(attempts, code)
            logger.info("connection to the coordinator ended (%s); next attempt in %.1f s", code, wait_s)
            await asyncio.sleep(wait_s)

    def _wait_s(self, attempts: int, code: str) -> float:
        settings = self.settings
        longest = settings.first_wait_s * 2.0 ** min(attempts - 1, 30)
        most = settings.most_wait_s if code in PATIENT else min(longest, settings.most_wait_s)
        return most * self._spread.uniform(0.5, 1.0)

    async def _attempt(self) -> tuple[str, bool]:
        """As `_connect`, whatever comes up there: gRPC also cancels the task that waits for a lost call."""
        attempt = asyncio.ensure_future(self._connect())
        try:
            await asyncio.wait([attempt])
        except asyncio.CancelledError:
            attempt.cancel()
            await asyncio.wait([attempt])
            raise
        if attempt.cancelled():
            return "lost", False
        if (error := attempt.exception()) is not None:
            logger.error("the connection failed", exc_info=error)
            return "internal_error", False
        return attempt.result()

    async def _connect(self) -> tuple[str, bool]:
        """One connection to its end: why it ended, and whether it had come to greetings."""
        greeted = False
        channel = None
        try:
            channel = self._channel()
            call = channel.stream_stream(f"/{SERVICE}/{METHOD}")(wait_for_ready=False)
            stream = ClientStream(call)
            try:
                hello = await self._greet(stream)
                greeted = True
                await self._serve(stream, hello)
                code = "closed"
            except SessionEnded as ended:
                code = await reason(call, ended.code)
            finally:
                call.cancel()
        except grpc.RpcError as error:
            code = code_of_error(error)
        except LinkError as error:
            logger.warning("%s", error)
            code = "credentials"
        except OSError:
            code = "unreadable"
        finally:
            if channel is not None:
                await channel.close()
        return code, greeted

    async def _greet(self, stream: Stream) -> pb.Hello:
        hello = pb.Hello(
            protocol=PROTOCOL,
            software=SOFTWARE,
            instance=self._instance,
            held=self._mailbox.held,
            head=self._head(),
            time_s=time.time(),
        )
        write = stream.write(pb.Frame(hello=hello).SerializeToString())
        try:
            await asyncio.wait_for(write, self.settings.greet_s)
        except TimeoutError:
            raise SessionEnded("silent", "The coordinator was not reached in time.") from None
        return await read_hello(stream.read, self.settings.greet_s)

    async def _serve(self, stream: Stream, hello: pb.Hello) -> None:
        ahead_s = time.time() - hello.time_s
        self._become(State(connected=True, clock_ahead_s=ahead_s))
        session = Session(stream, self, self._shelf, self.settings.limits, self.settings.pace)
        try:
            self.heard(hello.head, hello.time_s)
            self._mailbox.attach(session, hello.held)
            await session.run()
        finally:
            self._mailbox.detach(session)

    def _channel(self) -> grpc.aio.Channel:
        settings = self.settings
        options: list[tuple[str, int | str]] = [
            *channel_options(settings.limits),
            ("grpc.use_local_subchannel_pool", 1),  # an attempt begins anew, with no wait of its own
            ("grpc.enable_http_proxy", int(bool(settings.proxy))),
        ]
        if settings.proxy not in ("", ENVIRONMENT):
            options.append(("grpc.http_proxy", settings.proxy))
        if settings.server_name:
            options.append(("grpc.ssl_target_name_override", settings.server_name))
        credentials = tls.channel_credentials(settings.credentials())
        return grpc.aio.secure_channel(settings.address, credentials, options=options)

    def _become(self, state: State) -> None:
        with self._changed:
            self._state = replace(state, since_s=time.time())
            self._changed.notify_all()
        if self._on_state is not None:
            self._on_state(self._state)

    # What the session asks: link.session.Owner.

    def refusal(self, header: pb.Header) -> str | None:
        return self._mailbox.refusal(header)

    def deliver(self, manifest: Manifest, body: Body) -> None:
        self._mailbox.deliver(manifest, body)

    def rejected(self, header: pb.Header, code: str) -> None:
        self._mailbox.rejected(header, code)

    def settled(self, parcel: str, code: str) -> None:
        self._mailbox.settled(parcel, code)

    def head(self) -> bytes:
        return self._head()

    def heard(self, head: bytes, time_s: float) -> None:  # noqa: ARG002  the greeting's clock is enough
        if self._heard is not None and head:
            self._heard(head)

    def still(self) -> str:
        return ""

    # Questions and answers.

    def _take_request(self, manifest: Manifest, body: Body) -> None:
        loop = asyncio.get_running_loop()
        id_ = manifest.header.id

        def work() -> None:
            parcel = self._reply(manifest, body)
            loop.call_soon_threadsafe(self._mailbox.answer, id_, parcel)

        self._pool.submit(work)

    def _reply(self, manifest: Manifest, body: Body) -> Parcel:
        """Works in the thread of `handle`."""
        id_, question = f"{self._instance}-{secrets.token_hex(8)}", manifest.header.id
        try:
            with body:
                message = open_request(manifest, body)
            return Packer().reply(id_, question, self._handle(message))
        except Exception:  # what Flower's own nodes do: one that fails answers with an error
            logger.exception("a request could not be answered")
            return Packer().reply(id_, question, None)

    def _take_result(self, id_: str, manifest: Manifest, body: Body) -> None:
        future = self._calls.get(id_)
        with body:
            if future is None or future.done():
                return
            if manifest.header.error:
                future.set_exception(CallRefused(code_of(manifest.header.error, "unknown")))
            else:
                future.set_result(open_payload(manifest, body))

    def _fail_call(self, id_: str, code: str) -> None:
        future = self._calls.get(id_)
        if future is not None and not future.done():
            future.set_exception(CallRefused(code))
