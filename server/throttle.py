"""How many attempts a minute an address, and everybody together, may make."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque

_WINDOW_S = 60.0
_MOST_PEERS = 4096


class Throttle:
    """Counts attempts over the last minute. Refused ones count too: hammering does not help.

    Args:
        per_peer, in_all: attempts a minute.
    """

    def __init__(self, *, per_peer: int = 10, in_all: int = 120) -> None:
        self._per_peer = per_peer
        self._in_all = in_all
        self._all: deque[float] = deque(maxlen=in_all + 1)
        self._peers: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def allow(self, peer: str, time_s: float) -> bool:
        """Whether this attempt may go on.

        Args:
            peer: address without its port.
            time_s: of a clock that never goes back.
        """
        with self._lock:
            times = self._peers.setdefault(peer, deque(maxlen=self._per_peer + 1))
            self._peers.move_to_end(peer)
            if len(self._peers) > _MOST_PEERS:
                self._peers.popitem(last=False)
            mine = _recent(times, time_s, self._per_peer)
            # Whoever is over his own limit must not use up that of the others.
            return mine and _recent(self._all, time_s, self._in_all)


def _recent(times: deque[float], time_s: float, most: int) -> bool:
    times.append(time_s)
    while times and times[0] <= time_s - _WINDOW_S:
        times.popleft()
    return len(times) <= most
