"""The one event loop of this process, in a thread of its own, on which all connections live.

grpc.aio shares its poller between the loops of a process, and more than one of them get in each
other's way; so a process has one, however many links it opens.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loops: list[asyncio.AbstractEventLoop] = []


def event_loop() -> asyncio.AbstractEventLoop:
    """The running loop, started on first use; its thread ends with the process."""
    with _lock:
        if not _loops:
            loop = asyncio.new_event_loop()
            threading.Thread(target=_run, args=(loop,), name="link", daemon=True).start()
            _loops.append(loop)
        return _loops[0]


def submit(work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Starts `work` on the loop; not to be waited for on the loop itself."""
    return asyncio.run_coroutine_threadsafe(work, event_loop())


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
