"""How many changes a process made to a file, and waiting for the next one."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Changes:
    """Changes that this process makes; threads share it."""

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        """Args:
        on_change: called after each change, by whoever made it.
        """
        self._on_change = on_change
        self._changed = threading.Condition()
        self._changes = 0

    def changes(self) -> int:
        """Counts up with each change that this process makes."""
        return self._changes

    def touch(self) -> None:
        """Wakes whoever waits for a change."""
        with self._changed:
            self._changes += 1
            self._changed.notify_all()
        self._on_change()

    def wait(self, seen: int, timeout_s: float) -> int:
        """Waits until `changes` is no longer `seen`, or the time is over; gives it as it is then."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes != seen, timeout_s)
            return self._changes
