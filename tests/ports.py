"""Ports for tests: each worker has its own, so that a server that starts again finds its port free."""

from __future__ import annotations

import os

from link import ports

_FIRST, _EACH, _WORKERS = 20_000, 1_500, 8
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
AMONG = range(_FIRST + _worker * _EACH, _FIRST + (_worker + 1) * _EACH)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    return ports.free_ports(count, AMONG)


def free_port() -> int:
    """A port that nobody listens on now."""
    return free_ports(1)[0]
