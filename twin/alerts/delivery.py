"""From the ward to the sinks: a queue for each sink, tried again, counted, never in the ward's way.

A notice is kept for every sink until the sink took it, or refused it `attempts` times; then it is a dead
letter: counted, logged without its content, and kept in the snapshot for somebody to see. A sink that fails
is left alone for longer each time, and then given another notice before the refused one, so that one that it
cannot take holds up none. Sinks are called from `work` alone, which a thread of its own runs. What was queued
outlives a restart through `snapshot`; after a crash a notice may be sent twice, under the same id.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from twin.alerts.alert import Notice
from twin.alerts.sinks import Sink
from twin.errors import DataError

_LOG = logging.getLogger(f"twinward.{__name__}")
_MOST_WAIT_S = 900.0


@dataclass(slots=True, kw_only=True)
class _Letter:
    notice: Notice
    attempts: int = 0
    due_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What became of the notices of a sink, since the snapshot began."""

    waiting: int
    sent: int
    failed: int
    dead: int
    overflowed: int


class Delivery:
    """Queues in front of sinks.

    Args:
        attempts: of a notice at a sink, before it is dead. first_wait_s: after the first failure; it
            doubles, up to a quarter of an hour. most: notices waiting for a sink; then the oldest of the
            lowest priority is dead at once, and counted as overflowed too.
        changed: called whenever what `snapshot` gives has changed.
    """

    def __init__(
        self,
        sinks: Iterable[Sink],
        *,
        attempts: int = 12,
        first_wait_s: float = 2.0,
        most: int = 10_000,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._sinks = {sink.name: sink for sink in sinks}
        self._attempts, self._first_wait_s, self._most = attempts, first_wait_s, most
        self._changed = changed
        self._lock = threading.Lock()
        self._queues: dict[str, list[_Letter]] = {name: [] for name in self._sinks}
        self._dead: dict[str, list[Notice]] = {name: [] for name in self._sinks}
        self._sent = dict.fromkeys(self._sinks, 0)
        self._failed = dict.fromkeys(self._sinks, 0)
        self._dead_count = dict.fromkeys(self._sinks, 0)
        self._overflowed = dict.fromkeys(self._sinks, 0)
        self._failures = dict.fromkeys(self._sinks, 0)
        self._rest_until_s = dict.fromkeys(self._sinks, 0.0)

    def offer(self, notices: Iterable[Notice]) -> None:
        """Queues notices for every sink; never blocks on one."""
        notices = list(notices)
        if not notices:
            return
        with self._lock:
            for name, queue in self._queues.items():
                queue.extend(_Letter(notice=notice) for notice in notices)
                while len(queue) > self._most:
                    self._overflowed[name] += 1
                    self._bury(name, queue.pop(_least(queue)))
        self._changed()

    def work(self, now_s: float) -> int:
        """Tries everything that is due; how many notices were taken. Called by one thread.

        A sink that fails is left alone for a while; the others go on.
        """
        taken = 0
        for name, sink in self._sinks.items():
            while (letter := self._due(name, now_s)) is not None:
                try:
                    sink.send(letter.notice)
                except Exception as error:  # noqa: BLE001  a sink is others' code: whatever it raises, the ward goes on
                    self._refused(name, letter, now_s, type(error).__name__)
                    break
                self._accepted(name, letter)
                taken += 1
        return taken

    def figures(self) -> dict[str, Figures]:
        """By sink; nothing of patients."""
        with self._lock:
            return {
                name: Figures(
                    waiting=len(self._queues[name]),
                    sent=self._sent[name],
                    failed=self._failed[name],
                    dead=self._dead_count[name],
                    overflowed=self._overflowed[name],
                )
                for name in self._sinks
            }

    def dead_letters(self, sink: str) -> list[Notice]:
        """The last ones, oldest first, at most 1,000."""
        with self._lock:
            return list(self._dead[sink])

    def revive(self, sink: str) -> int:
        """Queues the dead letters of a sink again; how many."""
        with self._lock:
            notices, self._dead[sink] = self._dead[sink], []
            self._queues[sink].extend(_Letter(notice=notice) for notice in notices)
        self._changed()
        return len(notices)

    def forget(self, patient_id: str) -> None:
        """Drops what waits of a patient who was erased."""
        with self._lock:
            for name in self._sinks:
                self._queues[name][:] = [
                    x for x in self._queues[name] if x.notice.alert.patient_id != patient_id
                ]
                self._dead[name] = [n for n in self._dead[name] if n.alert.patient_id != patient_id]
        self._changed()

    def snapshot(self) -> bytes:
        """What waits and what is dead, as JSON; it holds pseudonyms and belongs into the store."""
        with self._lock:
            told = {
                name: {
                    "queue": [[letter.attempts, letter.notice.to_dict()] for letter in self._queues[name]],
                    "dead": [notice.to_dict() for notice in self._dead[name]],
                    "counts": [
                        self._sent[name],
                        self._failed[name],
                        self._dead_count[name],
                        self._overflowed[name],
                    ],
                }
                for name in self._sinks
            }
        return json.dumps(told).encode()

    def restore(self, snapshot: bytes) -> int:
        """Takes over a snapshot; how many notices were for sinks that are no more.

        Raises:
            DataError: it is none.
        """
        lost = 0
        try:
            for name, told in json.loads(snapshot).items():
                if name not in self._sinks:
                    lost += len(told["queue"])
                    continue
                letters = [_Letter(notice=Notice.from_dict(n), attempts=tried) for tried, n in told["queue"]]
                with self._lock:
                    self._queues[name][:0] = letters
                    self._dead[name] = [Notice.from_dict(notice) for notice in told["dead"]]
                    self._sent[name], self._failed[name], self._dead_count[name], self._overflowed[name] = (
                        told["counts"]
                    )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"The snapshot of notices cannot be read ({type(error).__name__}).") from None
        if lost:
            _LOG.warning("%d notices waited for sinks that alerts.toml does not have any more", lost)
        return lost

    def _due(self, name: str, now_s: float) -> _Letter | None:
        with self._lock:
            if now_s < self._rest_until_s[name]:
                return None
            due = [letter for letter in self._queues[name] if letter.due_s <= now_s]
            return min(due, key=lambda letter: letter.attempts) if due else None

    def _accepted(self, name: str, letter: _Letter) -> None:
        with self._lock:
            self._queues[name] = [other for other in self._queues[name] if other is not letter]
            self._sent[name] += 1
            self._failures[name] = 0
        self._changed()

    def _refused(self, name: str, letter: _Letter, now_s: float, kind: str) -> None:
        with self._lock:
            self._failed[name] += 1
            letter.attempts += 1
            self._failures[name] += 1
            letter.due_s = now_s + self._wait_s(letter.attempts)
            self._rest_until_s[name] = now_s + self._wait_s(self._failures[name])
            dead = letter.attempts >= self._attempts
            if dead and letter in self._queues[name]:
                self._queues[name] = [other for other in self._queues[name] if other is not letter]
                self._bury(name, letter)
        _LOG.warning("sink %s did not take a notice (%s, attempt %d)", name, kind, letter.attempts)
        self._changed()

    def _wait_s(self, failures: int) -> float:
        return float(min(self._first_wait_s * 2.0 ** min(failures - 1, 30), _MOST_WAIT_S))

    def _bury(self, name: str, letter: _Letter) -> None:
        self._dead_count[name] += 1
        self._dead[name] = [*self._dead[name], letter.notice][-1000:]


def _least(queue: list[_Letter]) -> int:
    """The oldest of the lowest priority."""
    order = {"low": 0, "medium": 1, "high": 2}
    return min(range(len(queue)), key=lambda at: (order[queue[at].notice.alert.priority], at))
