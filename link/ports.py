"""Ports of loopback for a federation or a broker on one machine.

A listener that is stopped and started again must find its port as it left it. So ports come from below
those that systems hand out for outgoing connections (32768 and up on Linux, 49152 on others): one of
these may belong to somebody's connection by the time it is asked for again.
"""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress
from typing import Final

from link.errors import LinkError

HOST: Final = "127.0.0.1"
PORTS: Final = range(10_240, 20_000)


def free_ports(count: int, among: range = PORTS) -> list[int]:
    """Ports of loopback that nobody listens on now.

    Args:
        count: how many, all different.
        among: tried in turn, from a random one on.

    Raises:
        LinkError: there are not so many.
    """
    first = random.SystemRandom().randrange(len(among))
    found: list[int] = []
    with ExitStack() as held:
        for port in (*among[first:], *among[:first]):
            if len(found) == count:
                break
            with suppress(OSError):
                held.enter_context(socket.create_server((HOST, port)))
                found.append(port)
    if len(found) < count:
        span = f"{among.start} to {among.stop - 1}"
        raise LinkError(f"Expected {count} free ports on {HOST} from {span}; found {len(found)}")
    return found
