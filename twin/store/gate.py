"""Who may use a store: one process at a time, and in it many readers or one who replaces the file."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twin.store.errors import StoreError


class ProcessLock:
    """A lock file that is held until `release` or the process's end, however it ends."""

    def __init__(self, path: Path) -> None:
        """Takes the lock.

        Raises:
            StoreError: another process, or another store of this one, holds it.
        """
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise StoreError(
                f"Expected nobody else to use the store at {path.with_suffix('')}; it is open already, here"
                " or in another process. One process owns a store: `twinward site up`, which others ask."
            ) from None

    def release(self) -> None:
        """Gives the lock up; again is fine."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Gate:
    """Lets many threads in, or one alone."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._inside = 0
        self._alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Waits until nobody is alone inside."""
        with self._free:
            self._free.wait_for(lambda: not self._alone)
            self._inside += 1
        try:
            yield
        finally:
            with self._free:
                self._inside -= 1
                self._free.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps newcomers out and waits until everybody inside has left."""
        with self._free:
            self._free.wait_for(lambda: not self._alone)
            self._alone = True
            self._free.wait_for(lambda: self._inside == 0)
        try:
            yield
        finally:
            with self._free:
                self._alone = False
                self._free.notify_all()
