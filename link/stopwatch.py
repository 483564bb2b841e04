"""Where the time of a round goes: phases that measure themselves while somebody watches.

A phase within another is taken out of the outer one, so that the phases add up to what was watched.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

__all__ = ["Stopwatch", "phase", "watched"]


@dataclass(slots=True)
class Stopwatch:
    """Seconds of wall time by phase, without what phases within it took, and how often each began."""

    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    _inner_s: list[float] = field(default_factory=list)

    def begin(self) -> float:
        self._inner_s.append(0.0)
        return time.perf_counter()

    def end(self, name: str, began_s: float) -> None:
        took_s = time.perf_counter() - began_s
        own_s = took_s - self._inner_s.pop()
        self.seconds[name] = self.seconds.get(name, 0.0) + own_s
        self.calls[name] = self.calls.get(name, 0) + 1
        if self._inner_s:
            self._inner_s[-1] += took_s


_WATCH: ContextVar[Stopwatch | None] = ContextVar("stopwatch", default=None)


@contextmanager
def watched(watch: Stopwatch | None) -> Iterator[None]:
    """Within it, phases of this thread are measured; None measures nothing."""
    token = _WATCH.set(watch)
    try:
        yield
    finally:
        _WATCH.reset(token)


class phase:
    """One phase of a round; each takes one of its own."""

    __slots__ = ("_began_s", "_name", "_watch")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._watch = _WATCH.get()
        if self._watch is not None:
            self._began_s = self._watch.begin()

    def __exit__(self, *_: object) -> None:
        if self._watch is not None:
            self._watch.end(self._name, self._began_s)
