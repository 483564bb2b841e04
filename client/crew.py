"""Parts of a round trained in several processes at once.

The helpers are forked from this process, so they have the sites' windows and secrets already, and neither
crosses a pipe: a part goes to a helper as a few words, and its releases come back through shared memory.
Threads would wait for Python's lock between one small product and the next.

This process trains as well, and takes over what a helper leaves undone.
"""

from __future__ import annotations

import gc
import logging
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Final, Generic, TypeVar

import torch

from privacy.errors import PrivacyError
from trust.errors import TrustError
from trust.packed import Packed, packed_from_npy

__all__ = ["WORTH_S", "Crew", "Made", "processes_here"]

logger = logging.getLogger(f"twinward.{__name__}")

Common = TypeVar("Common")
Part = TypeVar("Part")
Made = list[tuple[int, Packed | PrivacyError]]
"""Of each site of a part its place, and its release or why it has none."""

_AHEAD: Final = 2
"""Parts that a helper has at a time, so that it need not wait for the next."""
WORTH_S: Final = 0.035
"""Seconds of training here after which helpers are worth it: what it takes to start and to end one."""
_END_S: Final = 2.0


def processes_here(wanted: int | None) -> int:
    """How many processes may train: as many as are wanted, else OMP_NUM_THREADS, else one for each core."""
    if wanted is not None:
        return wanted
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Crew(Generic[Common, Part]):
    """This process and its helpers; `close` ends them, and so does the end of this process."""

    def __init__(
        self,
        train: Callable[[Common, Part], Made],
        *,
        processes: int,
        room: int,
        worth_s: float = WORTH_S,
    ) -> None:
        """Args:
        train: trains a part, in any of the processes; `Common` and `Part` are pickled.
        processes: in all. Only Linux forks safely; elsewhere, and within a pool, this process is alone.
        room: bytes that the releases of one part take at most.
        worth_s: seconds of training here after which helpers start.
        """
        self._train, self._room, self._worth_s = train, room, worth_s
        # A process of a pool may have no children.
        able = sys.platform == "linux" and not multiprocessing.current_process().daemon
        self._wanted = processes - 1 if able else 0
        self._helpers: list[_Helper[Common, Part]] = []
        self._spent_s = 0.0

    def run(self, common: Common, parts: Sequence[Part]) -> Generator[Made, None, None]:
        """What is made of each part, as it is done.

        Helpers start once there is enough to do for them; one that is lost is not replaced.

        Args:
            common: what all parts need.
        """
        waiting = deque(parts)
        begun = False
        try:
            while waiting or self._busy:
                if not begun and len(waiting) > 1 and self._on():
                    begun = True
                    for helper in list(self._helpers):
                        self._try(helper, waiting, lambda own: own.begin(common))
                if not begun:
                    yield self._here(common, waiting.popleft())
                    continue
                for helper in list(self._helpers):
                    self._try(helper, waiting, lambda own: own.hand_out(waiting))
                ready = self._ready(0.0 if waiting else None)
                for helper in ready:
                    made = self._try(helper, waiting, lambda own: own.take())
                    if made is not None:
                        self._try(helper, waiting, lambda own: own.hand_out(waiting))
                        yield made
                # Only while nothing waits to be booked: helpers have work, and this process alone books.
                if waiting and not ready:
                    yield self._here(common, waiting.popleft())
        finally:
            # Whoever lets go in the middle leaves helpers that say what nobody waits for.
            for helper in self._busy:
                self._lose(helper)

    def close(self) -> None:
        """Ends the helpers."""
        for helper in self._helpers:
            helper.end()
        self._helpers = []

    def _here(self, common: Common, part: Part) -> Made:
        began_s = time.perf_counter()
        made = self._train(common, part)
        self._spent_s += time.perf_counter() - began_s
        return made

    def _on(self) -> bool:
        """Whether there are helpers, once they are worth their start."""
        if self._wanted and self._spent_s >= self._worth_s:
            self._start()
        return bool(self._helpers)

    def _start(self) -> None:
        try:
            for _ in range(self._wanted):
                others = [own.pipe for own in self._helpers]
                self._helpers.append(_Helper(self._train, self._room, others))
        except OSError as error:
            logger.warning("cannot start another process (%s); fewer train", error.strerror)
        self._wanted = 0

    @property
    def _busy(self) -> list[_Helper[Common, Part]]:
        return [helper for helper in self._helpers if helper.waiting]

    def _ready(self, timeout_s: float | None) -> list[_Helper[Common, Part]]:
        busy = self._busy
        ready = wait([helper.pipe for helper in busy], timeout_s) if busy else []
        return [helper for helper in busy if helper.pipe in ready]

    def _try(
        self,
        helper: _Helper[Common, Part],
        waiting: deque[Part],
        ask: Callable[[_Helper[Common, Part]], Made | None],
    ) -> Made | None:
        """What a helper says; one that is gone or failed leaves its parts to the others."""
        try:
            return ask(helper)
        except (EOFError, OSError, TrustError, _Failed) as error:
            logger.warning("a process that trains sites ended (%s); others do its part", error)
            waiting.extendleft(helper.waiting)
            self._lose(helper)
            return None

    def _lose(self, helper: _Helper[Common, Part]) -> None:
        self._helpers.remove(helper)
        helper.end()


class _Failed(Exception):
    """A helper could not train a part; the text is the type of the error."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What a helper made: place, length and SHA-256 of each release, or why there is none; or a failure."""

    made: tuple[tuple[int, int, str], ...] = ()
    failed: str = ""


class _Helper(Generic[Common, Part]):
    """One forked process, and its memory for the releases of the parts that it has."""

    def __init__(self, train: Callable[[Common, Part], Made], room: int, pipes: Sequence[Connection]) -> None:
        self._room, self._taken = room, 0
        self._memory = mmap.mmap(-1, _AHEAD * room)
        self.waiting: deque[Part] = deque()
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(train, theirs, [self.pipe, *pipes], self._memory, room), daemon=True
        )
        with warnings.catch_warnings():
            # From Python 3.12 on: other threads of this process hold no lock that a helper takes.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        theirs.close()

    def begin(self, common: Common) -> None:
        """Says what the next parts have in common."""
        self.pipe.send_bytes(pickle.dumps((True, common), pickle.HIGHEST_PROTOCOL))

    def hand_out(self, waiting: deque[Part]) -> None:
        """Gives parts, as long as it has too few and enough are left for this process."""
        while waiting and len(self.waiting) < (_AHEAD if len(waiting) > 1 else 1):
            part = waiting.popleft()
            self.waiting.append(part)
            self.pipe.send_bytes(pickle.dumps((False, part), pickle.HIGHEST_PROTOCOL))

    def take(self) -> Made:
        """What it made of the part that it has had for longest; waits for it."""
        said: _Said = self.pipe.recv()
        if said.failed:
            raise _Failed(said.failed)
        self.waiting.popleft()
        made: Made = []
        begin = self._taken % _AHEAD * self._room
        self._taken += 1
        for place, length, word in said.made:
            if length:
                npy = self._memory[begin : begin + length]
                made.append((place, packed_from_npy(npy, sha256=word)))
                begin += length
            else:
                made.append((place, PrivacyError(word)))
        return made

    def end(self) -> None:
        """Ends it at once: what it had is lost."""
        self.pipe.close()
        self._process.terminate()
        self._process.join(_END_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        self._memory.close()


def _serve(
    train: Callable[[Common, Part], Made],
    pipe: Connection,
    others: Sequence[Connection],
    memory: mmap.mmap,
    room: int,
) -> None:
    """What a helper does, until the process that forked it is gone or wants no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Open files of the parent must not be closed by a collection here: a database would be tidied up.
    gc.freeze()
    torch.set_num_threads(1)
    for other in others:  # else a helper would keep its own pipe open after the parent's end
        other.close()
    common: Common | None = None
    number = 0
    while True:
        try:
            is_common, said = pickle.loads(pipe.recv_bytes())  # noqa: S301  from the process that forked us
            if is_common:
                common = said
                continue
            pipe.send(_made(train, common, said, memory, number % _AHEAD * room, room))
            number += 1
        except (EOFError, OSError):
            return


def _made(
    train: Callable[[Common, Part], Made],
    common: Common | None,
    part: Part,
    memory: mmap.mmap,
    begin: int,
    room: int,
) -> _Said:
    """Trains a part and lays its releases into the shared memory."""
    end, told = begin + room, []
    try:
        if common is None:
            raise ValueError("a part came before what it needs")
        for place, release in train(common, part):
            if isinstance(release, PrivacyError):
                told.append((place, 0, str(release)))
                continue
            length = len(release.npy)
            if begin + length > end:
                raise MemoryError("releases are greater than the memory for them")
            memory[begin : begin + length] = release.npy
            told.append((place, length, release.sha256))
            begin += length
    except Exception as error:  # noqa: BLE001  the parent does this part itself, and meets the same fault
        # Its type alone: a text may hold a patient's value.
        return _Said(failed=type(error).__name__)
    return _Said(made=tuple(told))
