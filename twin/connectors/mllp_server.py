"""The sockets of MLLP: connections that bring messages to an inbox and wait for each one's answer."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import queue
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from twin.connectors.mllp_frames import Frames, TooLarge, framed
from twin.errors import DataError

_log = logging.getLogger(f"twinward.{__name__}")
_TURN_S: Final = 0.5
_HANDSHAKE_S: Final = 10.0
_STALLED_TURNS: Final = 60  # a frame that does not go on for half a minute
_WAITING: Final = 1000

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """PEM files of the server's certificate chain and key, and of the authorities of its clients."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None

    def context(self) -> ssl.SSLContext:
        """What wraps a connection.

        Raises:
            DataError: a file cannot be used.
        """
        try:
            made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            made.minimum_version = ssl.TLSVersion.TLSv1_2
            made.load_cert_chain(self.cert_file, self.key_file)
            if self.client_ca_file is not None:
                made.load_verify_locations(self.client_ca_file)
                made.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise DataError(
                f"cert_file, key_file or client_ca_file of an MLLP feed is of no use: {type(error).__name__}."
            ) from None
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A message, and where its answer is awaited."""

    message: bytes
    answer: queue.SimpleQueue[bytes] = field(default_factory=queue.SimpleQueue)


class Server:
    """Listens while its context lasts; closing it leaves unanswered what was not answered."""

    def __init__(
        self,
        *,
        address: tuple[str, int],
        networks: Sequence[Network],
        tls: Tls | None,
        most_bytes: int,
        most_connections: int,
    ) -> None:
        self.inbox: queue.Queue[Arrived] = queue.Queue(_WAITING)
        self._networks, self._most_bytes = networks, most_bytes
        self._context = tls.context() if tls else None
        self._places = threading.Semaphore(most_connections)
        self._closing = threading.Event()
        self._faults: Counter[str] = Counter()
        self._lock = threading.Lock()
        try:
            self._listener = socket.create_server(
                address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            )
        except OSError as error:
            raise DataError(
                f"An MLLP feed cannot listen on {address[0]}:{address[1]}: {error.strerror}; "
                "choose another port."
            ) from None
        self._listener.settimeout(_TURN_S)
        self._accepting = threading.Thread(target=self._accept, name="mllp-accept", daemon=True)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._accepting.join(timeout=10 * _TURN_S)  # while it waits for a peer, the port is not free
        self._listener.close()

    def faults(self) -> Counter[str]:
        """What was wrong with the connections since it was last asked."""
        with self._lock:
            found, self._faults = self._faults, Counter()
        return found

    def _fault(self, reason: str, count: int = 1) -> None:
        with self._lock:
            self._faults[reason] += count

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, peer = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                if self._closing.wait(_TURN_S):
                    return
                continue
            if not self._may_connect(peer[0]):
                self._fault("connection from an address that is not allowed")
                connection.close()
            elif not self._places.acquire(blocking=False):
                self._fault("connection beyond the limit")
                connection.close()
            else:
                threading.Thread(target=self._serve, args=(connection,), name="mllp", daemon=True).start()

    def _may_connect(self, host: str) -> bool:
        address = ipaddress.ip_address(host.split("%", maxsplit=1)[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return not self._networks or any(address in network for network in self._networks)

    def _serve(self, connection: socket.socket) -> None:
        frames = Frames(most_bytes=self._most_bytes)
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(connection)
                connection.settimeout(_HANDSHAKE_S)
                if self._context is not None:
                    connection = stack.enter_context(self._context.wrap_socket(connection, server_side=True))
                self._talk(connection, frames)
        except ssl.SSLError:
            self._fault("connection that failed in TLS")
        except OSError:
            self._fault("connection that broke")
        except TooLarge:
            _log.warning("an MLLP connection was closed: a message beyond most_bytes=%d", self._most_bytes)
        finally:
            self._places.release()
            for reason, count in (+frames.faults).items():
                self._fault(reason, count)

    def _talk(self, connection: socket.socket, frames: Frames) -> None:
        """Reads and answers until the peer or this server ends it."""
        connection.settimeout(_TURN_S)
        stalled = 0
        while not self._closing.is_set():
            try:
                data = connection.recv(1 << 16)
            except TimeoutError:
                stalled = stalled + 1 if frames.is_within else 0
                if stalled >= _STALLED_TURNS:
                    self._fault("frame without an end")
                    return
                continue
            if not data:
                if frames.is_within:
                    self._fault("frame without an end")
                return
            stalled = 0
            arrived = [Arrived(message=message) for message in frames.feed(data)]
            for one in arrived:
                self._put(one)
            for one in arrived:
                answer = self._answer(one)
                if answer is None:
                    return
                connection.settimeout(_HANDSHAKE_S)
                connection.sendall(framed(answer))
                connection.settimeout(_TURN_S)

    def _put(self, one: Arrived) -> None:
        while not self._closing.is_set():
            try:
                self.inbox.put(one, timeout=_TURN_S)
            except queue.Full:
                continue
            return

    def _answer(self, one: Arrived) -> bytes | None:
        """The answer once there is one; None if the server closes first."""
        while not self._closing.is_set():
            try:
                return one.answer.get(timeout=_TURN_S)
            except queue.Empty:
                continue
        return None
