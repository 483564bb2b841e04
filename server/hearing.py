"""What sites say of the logs, taken off the link's loop: one thread, and of each site its newest word alone.

A site talks as fast as it likes and the disk is slow, so what it said before is dropped, not kept: each
word says all that those before it said.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from trust.witness import LARGEST_BYTES


class Hearing:
    """Calls `hear` with site and bytes, in a thread of its own; `close` ends it."""

    def __init__(self, hear: Callable[[str, bytes], None]) -> None:
        self._hear = hear
        self._waiting: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hears")

    def heard(self, site: str, data: bytes) -> None:
        """Takes a word of a site; returns at once. One that is too long is cut, and then refused."""
        with self._lock:
            waits = site in self._waiting
            self._waiting[site] = data[: LARGEST_BYTES + 1]
        if not waits:
            self._thread.submit(self._work, site)

    def close(self) -> None:
        """Returns when what waits has been taken."""
        self._thread.shutdown()

    def _work(self, site: str) -> None:
        with self._lock:
            data = self._waiting.pop(site)
        self._hear(site, data)
