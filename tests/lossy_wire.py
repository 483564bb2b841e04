"""A TCP line on loopback that cuts, delays, stops one way or speaks HTTP CONNECT; for tests."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

UP, DOWN = "up", "down"


class LossyWire:
    """Listens on a free port and forwards to `target`. Up is away from whoever connects.

    Attributes:
        passed: bytes forwarded so far, by direction.
        connections: how many were opened.
        delay_s: before each piece is forwarded.
        asked: the lines of CONNECT requests.
    """

    def __init__(self, target: int, *, connect_proxy: bool = False) -> None:
        self.target = target
        self.passed = {UP: 0, DOWN: 0}
        self.connections = 0
        self.delay_s = 0.0
        self.asked: list[str] = []
        self.on_pass: Callable[[str, int], None] = lambda direction, passed: None
        self._connect_proxy = connect_proxy
        self._open: dict[str, threading.Event] = {UP: threading.Event(), DOWN: threading.Event()}
        for gate in self._open.values():
            gate.set()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._refusing = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._refusing = True
        self._listener.close()
        self.cut()
        for gate in self._open.values():
            gate.set()

    def cut(self) -> None:
        """Breaks every connection with a reset."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def down(self) -> None:
        """Cuts, and takes no new connection until `up`."""
        self._refusing = True
        self.cut()

    def up(self) -> None:
        self._refusing = False

    def swallow(self, *directions: str) -> None:
        """Forwards nothing that way any more, without a word to anybody."""
        for direction in directions:
            self._open[direction].clear()

    def heal(self) -> None:
        for gate in self._open.values():
            gate.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._refusing:
                    near.close()
                    continue
                threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        try:
            if self._connect_proxy and not self._answer_connect(near):
                near.close()
                return
            far = socket.create_connection(("127.0.0.1", self.target), 5)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        with self._lock:
            self.connections += 1
            self._sockets |= {near, far}
        for source, sink, direction in ((near, far, UP), (far, near, DOWN)):
            threading.Thread(target=self._pump, args=(source, sink, direction), daemon=True).start()

    def _answer_connect(self, near: socket.socket) -> bool:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            if not (piece := near.recv(1)):
                return False
            request += piece
        self.asked.append(request.decode().splitlines()[0])
        near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        return True

    def _pump(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65_536):
                self._open[direction].wait()
                if self.delay_s:
                    time.sleep(self.delay_s)
                sink.sendall(piece)
                self.passed[direction] += len(piece)
                self.on_pass(direction, self.passed[direction])
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        with self._lock:
            self._sockets -= {source, sink}
