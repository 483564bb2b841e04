"""Bodies on their way in: a partial file per content, so that a transfer that broke off goes on.

A partial file is found by the hash of what it will contain, so it serves whichever message brings
the same content again, after a reconnect or a restart of this process. Its bytes count for nothing
until all hashes are right: a damaged one is thrown away and asked for anew.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from link.checking import Checker
from link.frames import BAD_BODY, TOO_LARGE, FrameError, InMemory, Limits, Manifest

NO_SPACE = "no_space"
KEEP_S = 14 * 86_400.0
READ_BYTES = 1 << 20


class Body:
    """A whole, checked body: in memory if it came inline, else in a file that `close` removes."""

    def __init__(self, data: bytes = b"", path: Path | None = None) -> None:
        self._data = InMemory(data)
        self._path = path

    def read_into(self, offset: int, place: memoryview) -> None:
        """Copies the bytes from `offset` on into `place`."""
        if self._path is None:
            self._data.read_into(offset, place)
            return
        with self._path.open("rb", buffering=0) as file:
            file.seek(offset)
            while place.nbytes and (size := file.readinto(place)):
                place = place[size:]
        if place.nbytes:
            raise FrameError(BAD_BODY, "Expected the whole body; its file has been cut off.")

    def close(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(slots=True, kw_only=True)
class Incoming:
    """A body that is being received; bytes are taken in order only.

    The loop puts chunks into a short queue (`put`), and one thread at a time writes and hashes what is
    there (`drain`), so that neither waits for the other at every chunk.

    Attributes:
        offset: of the byte that is written next.
        expected: of the byte that the peer sends next; `offset` and the bytes in the queue.
        resumed: whether the first bytes are of an earlier connection.
        skipping: after a restart, until the peer begins again as well.
    """

    manifest: Manifest
    path: Path
    offset: int = 0
    resumed: bool = False
    skipping: bool = False
    expected: int = 0
    _queue: deque[memoryview] = field(default_factory=deque)
    _checker: Checker = field(init=False)
    _file: int = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._checker = Checker(self.manifest)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def rewind(self) -> None:
        """Reads again what an earlier connection left; wrong bytes are cut off from the start."""
        size = min(self.path.stat().st_size, self.manifest.total)
        self.resumed = size > 0
        try:
            while self.offset < size:
                self._reread(min(READ_BYTES, size - self.offset))
        except FrameError:
            self.restart()
            self.skipping = False
        with self._lock:
            if self._file >= 0:
                os.ftruncate(self._file, self.offset)
        self.expected = self.offset

    @property
    def queued(self) -> int:
        """Bytes that wait to be written."""
        return self.expected - self.offset

    def put(self, data: memoryview) -> None:
        """Takes the next bytes into the queue."""
        self._queue.append(data)
        self.expected += data.nbytes

    def drain(self) -> None:
        """Writes what is in the queue.

        Raises:
            FrameError: as `write`.
        """
        while self._queue:
            self.write(self._queue.popleft())

    def write(self, data: bytes | memoryview) -> None:
        """Takes the next bytes.

        Raises:
            FrameError: bad_body if a hash is wrong, no_space if they cannot be written.
        """
        view = memoryview(data)
        try:
            with self._lock:
                while view:
                    done = os.pwrite(self._file, view, self.offset)
                    self._checker.update(view[:done])
                    self.offset += done
                    view = view[done:]
        except OSError:
            raise FrameError(NO_SPACE, "Expected to write a body; the disk would not take it.") from None

    def restart(self) -> None:
        """Begins again at byte 0: what was here is not what was promised."""
        with self._lock:
            if self._file >= 0:
                os.ftruncate(self._file, 0)
        self._queue.clear()
        self.offset, self.expected, self.resumed, self._checker = 0, 0, False, Checker(self.manifest)
        self.skipping = True

    def finish(self) -> Body:
        """The whole body, which leaves the partial files.

        Raises:
            FrameError: bad_body.
        """
        self._checker.finish()
        self.close()
        whole = self.path.with_name(f"{secrets.token_hex(16)}.whole")
        self.path.rename(whole)
        return Body(path=whole)

    def close(self) -> None:
        """Lets go of the file and leaves it for the next connection; a write that is under way ends first."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def _reread(self, size: int) -> None:
        with self._lock:
            part = os.pread(self._file, size, self.offset) if self._file >= 0 else b""
        if not part:
            raise FrameError(BAD_BODY, "Expected the bytes that an earlier connection left.")
        self._checker.update(part)
        self.offset += len(part)

    def discard(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)


class Shelf:
    """The partial files of one peer; another peer's are in another folder."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        self._directory = directory
        self._limits = limits
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in directory.iterdir():
            if path.suffix == ".whole" or time.time() - path.stat().st_mtime > KEEP_S:
                path.unlink(missing_ok=True)

    def open(self, manifest: Manifest) -> Incoming:
        """Where the body of a manifest goes on; read it again with `rewind` before use.

        Raises:
            FrameError: no_space or too_large.
        """
        if manifest.total > self._limits.body_bytes:
            raise FrameError(TOO_LARGE, f"Expected a body of at most {self._limits.body_bytes} bytes.")
        path = self._directory / f"{manifest.content}.part"
        self._make_room(manifest.total, path)
        try:
            return Incoming(manifest=manifest, path=path)
        except OSError:
            raise FrameError(NO_SPACE, "Expected to open a partial file; the disk would not.") from None

    def _make_room(self, size: int, wanted: Path) -> None:
        """Removes the oldest partial files where this one would carry the peer over its share."""
        parts = [path for path in self._directory.glob("*.part") if path != wanted]
        parts.sort(key=lambda path: path.stat().st_mtime)
        held = sum(path.stat().st_size for path in parts)
        while parts and held + size > self._limits.body_bytes:
            held -= parts[0].stat().st_size
            parts.pop(0).unlink(missing_ok=True)
