"""Parts of one process, each in a thread of its own, each started again alone when it fails.

A part that fails waits, longer each time and never quite as long as another, and begins anew; the others go
on. One that cannot work as it is configured (`PartBroken`) stays down and says so, since trying again
would change nothing. The text of an exception that is not ours may hold a patient's value, so only its
type is told.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

from conf.errors import TwinwardError

State = Literal["starting", "running", "waiting", "ended", "broken", "stopped"]
SOUND_AFTER_S: Final = 60.0
"""A part that worked for so long begins its waits at the shortest again."""

logger = logging.getLogger(f"twinward.{__name__}")


class PartBroken(TwinwardError):
    """A part cannot work as it is configured; somebody has to mend that."""


class Part(Protocol):
    """Something that runs until it is told to stop."""

    @property
    def name(self) -> str:
        """Of the part, unique in the process; no patient's data in it."""
        ...

    def run(self, stop: threading.Event) -> None:
        """Works until `stop` is set, or returns because there is nothing more to do.

        Raises:
            PartBroken: it cannot work as configured. Anything else is a crash, after which it is called
            again: on disk everything must be as after a SIGKILL.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a part stands: since when (seconds since 1970), how often it crashed, and why last."""

    state: State = "starting"
    since_s: float = 0.0
    crashes: int = 0
    why: str = ""


class Supervisor:
    """Runs parts until `stop`."""

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        first_wait_s: float = 0.5,
        most_wait_s: float = 60.0,
        spread: random.Random | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Args:
        first_wait_s, most_wait_s: before a part is started again the first time, and the longest.
        spread: source of the random part of waits.
        """
        self._parts = {part.name: part for part in parts}
        if len(self._parts) < len(parts):
            raise ValueError("Expected parts of different names.")
        self._first_wait_s, self._most_wait_s = first_wait_s, most_wait_s
        self._spread = spread or random.Random()  # noqa: S311  spreads load; no secret
        self._clock = clock
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._standings = {name: Standing(since_s=clock()) for name in self._parts}
        self._threads = {
            name: threading.Thread(target=self._keep, args=(part,), name=name, daemon=True)
            for name, part in self._parts.items()
        }

    def start(self) -> None:
        """Starts every part."""
        for thread in self._threads.values():
            thread.start()

    def stop(self, timeout_s: float = 10.0) -> list[str]:
        """Tells every part to stop; the names of those that did not within the time.

        What a part leaves half done is as after a SIGKILL: nothing that was committed is lost.
        """
        self._stop.set()
        ends_s = time.monotonic() + timeout_s
        for thread in self._threads.values():
            if thread.ident is not None:
                thread.join(max(0.0, ends_s - time.monotonic()))
        late = [name for name, thread in self._threads.items() if thread.is_alive()]
        if late:
            logger.warning("did not stop within %g s: %s", timeout_s, ", ".join(late))
        return late

    def standings(self) -> dict[str, Standing]:
        """How every part stands now."""
        with self._lock:
            return dict(self._standings)

    @property
    def is_sound(self) -> bool:
        """Whether every part runs or has done what it had to do."""
        return all(entry.state in ("running", "ended") for entry in self.standings().values())

    def _keep(self, part: Part) -> None:
        failures = 0
        while not self._stop.is_set():
            began_s = time.monotonic()
            self._become(part.name, "running")
            try:
                part.run(self._stop)
                self._become(part.name, "stopped" if self._stop.is_set() else "ended")
                return
            except PartBroken as error:
                logger.error("%s is down until somebody mends it: %s", part.name, error)
                self._become(part.name, "broken", str(error))
                return
            except Exception as error:  # noqa: BLE001  whatever it is, the others go on
                why = str(error) if isinstance(error, TwinwardError) else type(error).__name__
                failures = 1 if time.monotonic() - began_s > SOUND_AFTER_S else failures + 1
                wait_s = self._wait_s(failures)
                logger.error("%s failed (%s); it begins anew in %.1f s", part.name, why, wait_s)
                self._become(part.name, "waiting", why, crashed=True)
                self._stop.wait(wait_s)
        self._become(part.name, "stopped")

    def _wait_s(self, failures: int) -> float:
        longest = min(self._first_wait_s * 2.0 ** min(failures - 1, 30), self._most_wait_s)
        return longest * self._spread.uniform(0.5, 1.0)

    def _become(self, name: str, state: State, why: str = "", *, crashed: bool = False) -> None:
        with self._lock:
            before = self._standings[name]
            self._standings[name] = replace(
                before,
                state=state,
                since_s=self._clock(),
                why=why or before.why,
                crashes=before.crashes + crashed,
            )
