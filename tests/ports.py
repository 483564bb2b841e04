"""Ports for tests: each worker has its own, so that a server that starts again finds its port free."""

from __future__ import annotations

import os
from collections import deque

from link import ports

_FIRST, _EACH, _WORKERS = 20_000, 1_500, 8
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
AMONG = range(_FIRST + _worker * _EACH, _FIRST + (_worker + 1) * _EACH)
_given: deque[int] = deque(maxlen=64)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, and that were not given of late: their server may yet be starting."""
    found = [port for port in ports.free_ports(count + len(_given), AMONG) if port not in _given][:count]
    _given.extend(found)
    return found


def free_port() -> int:
    """A port that nobody listens on now."""
    return free_ports(1)[0]
