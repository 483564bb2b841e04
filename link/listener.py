"""The coordinator's end: a listener for hospitals, and a Flower Grid over their connections.

A hospital is known by its certificate and by nothing that it says. Each has one connection; a second
one replaces the first. What it is asked stays asked until it answers, over any number of
connections, or until whoever asked no longer waits. The listener has one method and does nothing else.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from link import tls  # first: see link/__init__.py

import grpc  # isort: skip
from flwr.app import Error, Message

from link.errors import LinkError
from link.flower import stamp
from link.frames import FrameError, Limits, Manifest, Parcel, open_reply
from link.loop import event_loop, submit
from link.member import REVOKED, Connected, Hospital
from link.results import Results
from link.session import Pace
from link.tls import Credentials
from link.transfers import Body
from trust.identity import Identity

if TYPE_CHECKING:
    from link.grid import Box

SERVICE, METHOD = "twinward.link.v1.Link", "Connect"
HANDSHAKE_S = 10.0
REFUSED_PARCEL = 3
NOT_ADMITTED, STOPPING = "not_admitted", "stopping"
__all__ = [
    "METHOD",
    "NOT_ADMITTED",
    "REVOKED",
    "SERVICE",
    "Admit",
    "Answered",
    "LinkServer",
    "Observe",
    "Serve",
    "ServerSettings",
    "channel_options",
]

Admit = Callable[[bytes], Identity | None]
Serve = Callable[[str, str, bytes], bytes]
Observe = Callable[[str, str, str], None]

logger = logging.getLogger(f"twinward.{__name__}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Where the listener is and what it takes.

    Attributes:
        address: `host:port` to listen at; port 0 takes a free one.
        credentials: asked at every handshake, so that a certificate can be renewed and an authority
            added while the listener runs.
        transfers: folder of bodies that are on their way in.
        greet_s: how long a hospital may take to greet.
    """

    address: str
    credentials: Callable[[], Credentials]
    transfers: Path
    limits: Limits = Limits()  # noqa: RUF009  frozen, so that one default serves all
    pace: Pace = Pace()  # noqa: RUF009  as limits
    greet_s: float = 20.0


@dataclass(slots=True, kw_only=True)
class Asked:
    """A message that a hospital has not answered, and the box into which its answer goes."""

    site: str
    request: Message
    box: Box


class LinkServer:
    """The listener. Its methods may be called from any thread but the loop's.

    Args:
        admit: the identity that a certificate (PEM) stands for, or None; asked on connecting and
            again at every parcel and every `pace.check_s`, so it must be quick.
        members: names of the sites of the federation, connected or not; a message to one that is not
            connected waits for it.
        serve: answers a hospital's call (kind, site, payload); raises CallRefused to say no. Runs in
            threads of its own.
        head: what to say of audit logs to a site, sent along; heard: told what a site says of them.
        observe: told (event, site, code) of what happens: connected, disconnected, refused,
            call, repeated_answer. Runs on the loop, so it must be quick.
    """

    def __init__(
        self,
        settings: ServerSettings,
        admit: Admit,
        *,
        members: Callable[[], Iterable[str]] = tuple,
        serve: Serve | None = None,
        head: Callable[[str], bytes] = lambda _: b"",
        heard: Callable[[str, bytes], None] | None = None,
        observe: Observe | None = None,
    ) -> None:
        self.settings = settings
        self.admit = admit
        self.members = members
        self.serve = serve
        self.head = head
        self.heard = heard
        self.observe = observe
        self.instance = secrets.token_hex(8)
        self.port = 0
        self.results = Results()
        self.pool = ThreadPoolExecutor(8, thread_name_prefix="link-call")
        self._sites: dict[str, Hospital] = {}
        self._asked: dict[str, Asked] = {}
        self._boxes: set[Box] = set()
        self._lock = threading.Lock()
        self._server: grpc.aio.Server | None = None

    def start(self) -> int:
        """Listens; the port.

        Raises:
            LinkError: the address is taken, or TLS 1.2 would be spoken.
        """
        self.port = submit(self._start()).result()
        host = self.settings.address.rpartition(":")[0].strip("[]")
        try:
            tls.refuse_old_tls(_reachable(host), self.port, self.settings.credentials())
        except LinkError:
            self.stop()
            raise
        logger.info("listening for hospitals on port %d", self.port)
        return self.port

    def stop(self, grace_s: float = 1.0) -> None:
        """Ends all connections and the listener; whoever waits for answers is told by a LinkError."""
        submit(self._stop(grace_s)).result()
        self.pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            boxes = list(self._boxes)
        for box in boxes:
            box.close()

    def connected(self) -> dict[str, Connected]:
        """The hospitals that are connected now, by name."""
        return {name: site.info for name, site in list(self._sites.items()) if site.info is not None}

    def cut(self, site: str, code: str = REVOKED) -> None:
        """Ends a hospital's connection at once."""
        event_loop().call_soon_threadsafe(self._cut, site, code)

    def training_sites(self) -> list[str]:
        """Names of members and connected hospitals that train, sorted."""
        there = {name for name, info in self.connected().items() if info.identity.role == "site"}
        return sorted(there | set(self.members()))

    def post(self, entries: list[tuple[str, Message, Parcel]], box: Box) -> None:
        """Asks each site its message; answers go into the box.

        Raises:
            LinkError: the server is stopped, or a site has too many unanswered messages; none is sent.
        """
        with self._lock:
            if self._server is None:
                raise LinkError("Expected a listener that runs; it is stopped.")
            self._check_room(entries)
            self._boxes.add(box)
            for site, message, _ in entries:
                self._asked[message.metadata.message_id] = Asked(site=site, request=message, box=box)
        event_loop().call_soon_threadsafe(self._post, [(site, parcel) for site, _, parcel in entries])

    def withdraw(self, ids: Iterable[str]) -> None:
        """Waits no longer for the answers to these messages."""
        with self._lock:
            gone = [(asked.site, id_) for id_ in ids if (asked := self._asked.pop(id_, None)) is not None]
        if gone:
            event_loop().call_soon_threadsafe(self._withdraw, gone)

    def forget(self, box: Box) -> None:
        """The owner of a box has gone."""
        with self._lock:
            self._boxes.discard(box)
            ids = [id_ for id_, asked in self._asked.items() if asked.box is box]
        self.withdraw(ids)

    def _check_room(self, entries: list[tuple[str, Message, Parcel]]) -> None:
        waiting: dict[str, int] = {}
        for site in [asked.site for asked in self._asked.values()] + [site for site, _, _ in entries]:
            waiting[site] = waiting.get(site, 0) + 1
        most = self.settings.limits.pending
        full = sorted(site for site, _, _ in entries if waiting[site] > most)
        if full:
            raise LinkError(f"Expected at most {most} unanswered messages per site; {full} have more.")

    # On the loop.

    async def _start(self) -> int:
        limits = self.settings.limits
        server = grpc.aio.server(options=channel_options(limits) + _LISTENER_OPTIONS)
        handler = grpc.stream_stream_rpc_method_handler(self._connect)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
        credentials = tls.server_credentials(self.settings.credentials)
        try:
            port = server.add_secure_port(self.settings.address, credentials)
        except RuntimeError:
            port = 0
        if not port:
            raise LinkError(f"Expected to listen at {self.settings.address}; the address cannot be taken.")
        await server.start()
        self._server = server
        return int(port)

    async def _stop(self, grace_s: float) -> None:
        server = self._server
        with self._lock:
            self._server = None
        for site in list(self._sites.values()):
            site.end(STOPPING)
        if server is not None:
            await server.stop(grace_s)

    def _cut(self, name: str, code: str) -> None:
        if name in self._sites:
            self._sites[name].end(code)

    def _post(self, entries: list[tuple[str, Parcel]]) -> None:
        for site, parcel in entries:
            if parcel.id in self._asked:  # else withdrawn since
                self._site(site).mailbox.ask(parcel)

    def _withdraw(self, gone: list[tuple[str, str]]) -> None:
        for site, id_ in gone:
            self._site(site).mailbox.withdraw(id_)

    def answered(self, id_: str, manifest: Manifest | None, body: Body | None, code: str) -> None:
        """Puts an answer, or the code of a failure, where it is waited for."""
        with self._lock:
            asked = self._asked.pop(id_, None)
        if asked is not None:
            asked.box.put(id_, Answered(asked.request, manifest, body, code))
        elif body is not None:
            body.close()

    def note(self, event: str, site: str, code: str = "") -> None:
        """Tells the observer."""
        logger.info("%s: %s%s", event, site, f" ({code})" if code else "")
        if self.observe is not None:
            self.observe(event, site, code)

    def _site(self, name: str) -> Hospital:
        if name not in self._sites:
            self._sites[name] = Hospital(name, self)
        return self._sites[name]

    async def _connect(
        self,
        _: object,
        context: grpc.aio.ServicerContext[bytes, bytes],
    ) -> None:
        certificate, identity = self._identify(context)
        if identity is None:
            self.note("refused", "", NOT_ADMITTED)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, NOT_ADMITTED)
            return
        code = await self._site(identity.name).connect(context, identity, certificate)
        status = grpc.StatusCode.ABORTED
        if code in (NOT_ADMITTED, REVOKED):
            status = grpc.StatusCode.PERMISSION_DENIED
        await context.abort(status, code)

    def _identify(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> tuple[bytes, Identity | None]:
        shown = context.auth_context()
        certificates = list(shown.get("x509_pem_cert", ()))
        # The second line of defence: the first is that only 1.3's ciphers are offered at all.
        if list(shown.get("ssl_tls_version", ())) != [b"TLSv1.3"] or len(certificates) != 1:
            return b"", None
        identity = self.admit(certificates[0])
        if identity is None or identity.role not in ("site", "receiver"):
            return b"", None
        return certificates[0], identity


class Answered:
    """An answer as it came; it takes memory for its arrays only when it is opened."""

    def __init__(self, request: Message, manifest: Manifest | None, body: Body | None, code: str) -> None:
        self._request, self._manifest, self._body, self._code = request, manifest, body, code

    def open(self) -> Message:
        """The reply; a failure is an Error. Its file is removed."""
        reply = Message(Error(code=REFUSED_PARCEL, reason=self._code), reply_to=self._request)
        if self._manifest is not None and self._body is not None:
            with self._body as body, suppress(FrameError):
                reply = open_reply(self._manifest, body, self._request)
        stamp(reply, f"{self._request.metadata.message_id}-reply")
        return reply

    def close(self) -> None:
        if self._body is not None:
            self._body.close()


_LISTENER_OPTIONS: list[tuple[str, int]] = [
    ("grpc.so_reuseport", 0),  # a second coordinator on the port shall fail, not share it
    ("grpc.max_concurrent_streams", 4),
    ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_S * 1000)),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
]


def channel_options(limits: Limits) -> list[tuple[str, int]]:
    """What both ends tell gRPC: the longest frame, and pings that notice a dead line."""
    return [
        ("grpc.max_receive_message_length", limits.frame_bytes),
        ("grpc.max_send_message_length", limits.frame_bytes),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _reachable(host: str) -> str:
    wildcard = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  compared, not bound
    return wildcard.get(host, host)
