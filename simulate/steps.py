"""The steps of long work: told to whoever watches, timed for the summary."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from simulate.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Tells of steps as they begin, and times them.

    Attributes:
        progress: is told of each step and part.
        timing_s: seconds by step, filled as steps end.
    """

    progress: Progress
    timing_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, total: int = 1) -> Iterator[None]:
        """A step of so many parts; one that has a single part reports it by itself."""
        self.progress.step(name, total)
        began = time.monotonic()
        yield
        if total == 1:
            self.progress.advance()
        key = name.replace(" ", "_")
        self.timing_s[key] = round(self.timing_s.get(key, 0.0) + time.monotonic() - began, 3)

    def part(self, note: str = "") -> None:
        """One part of the step is done."""
        self.progress.advance(note)
