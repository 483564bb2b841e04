"""Runs of a sweep in processes of their own, as many at a time as there are cores.

A process does one run after the other, so that starting up and reading data is paid for once. It dies
with the command; a run that takes its process with it (memory, a fault in a library) is one failed run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final, Self

from conf.errors import TwinwardError
from conf.schema import Config

LOG: Final = "progress.log"
END_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A run that ended: its place among those given, why it failed (empty if not), and its seconds."""

    place: int
    error: str
    seconds: float


@dataclass(slots=True, kw_only=True)
class _Process:
    process: BaseProcess
    pipe: Connection
    place: int = -1
    began_s: float = 0.0


class Pool:
    """So many processes with so many threads each; as a context manager it ends them all."""

    def __init__(self, *, jobs: int, threads: int) -> None:
        self._jobs, self._threads = jobs, threads
        self._processes: list[_Process] = []
        self._context = multiprocessing.get_context("spawn")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends what runs at once: whatever a run has committed is on disk."""
        for each in self._processes:
            each.process.terminate()
        deadline_s = time.monotonic() + END_S
        for each in self._processes:
            each.process.join(max(0.0, deadline_s - time.monotonic()))
            if each.process.is_alive():
                each.process.kill()
                each.process.join()
            each.pipe.close()
        self._processes = []

    @property
    def running(self) -> list[int]:
        """Places of the runs that are under way."""
        return sorted(each.place for each in self._processes if each.place >= 0)

    def outcomes(self, configs: Sequence[Config]) -> Iterator[Ended]:
        """Each run as it ends.

        Args:
            configs: whose `run.dir` is set.
        """
        waiting = list(range(len(configs)))[::-1]
        while waiting or self.running:
            self._give(waiting, configs)
            for ready in wait([each.pipe for each in self._processes if each.place >= 0]):
                each = next(each for each in self._processes if each.pipe is ready)
                yield self._ended(each)

    def _give(self, waiting: list[int], configs: Sequence[Config]) -> None:
        idle = [each for each in self._processes if each.place < 0]
        while waiting and (idle or len(self._processes) < self._jobs):
            each = idle.pop() if idle else self._start()
            each.place, each.began_s = waiting.pop(), time.monotonic()
            each.pipe.send(configs[each.place])

    def _start(self) -> _Process:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs,), daemon=False)
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(self._threads)  # libraries read it as they are loaded
        # Ctrl-C reaches the whole group, and a process that is still being loaded would tell of it at length.
        resource_tracker.ensure_running()  # which would unblock the signal
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            if before is None:
                del os.environ["OMP_NUM_THREADS"]
            else:
                os.environ["OMP_NUM_THREADS"] = before
        theirs.close()
        self._processes.append(_Process(process=process, pipe=ours))
        return self._processes[-1]

    def _ended(self, each: _Process) -> Ended:
        place, each.place = each.place, -1
        seconds = time.monotonic() - each.began_s
        try:
            return Ended(place=place, error=each.pipe.recv(), seconds=seconds)
        except (EOFError, OSError):
            self._processes.remove(each)
            each.process.join()
            each.pipe.close()
            code = each.process.exitcode
            how = "killed; was there too little memory? Try fewer --jobs" if code == -signal.SIGKILL else ""
            return Ended(
                place=place, error=f"its process ended with code {code} {how}".strip(), seconds=seconds
            )


def _serve(pipe: Connection) -> None:
    """What such a process does, until its parent is gone or wants no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            config = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(_carried_out(config))


def _end_with_parent() -> None:
    parent: Any = multiprocessing.parent_process()
    parent.join()
    os._exit(1)


def _carried_out(config: Config) -> str:
    """Does the run; the text of what went wrong, empty if nothing."""
    from rich.console import Console

    from simulate.progress import TerminalProgress
    from simulate.run import simulate

    directory = Path(str(config.run.dir))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (
            (directory / LOG).open("a", encoding="utf-8", buffering=1) as log,
            TerminalProgress(Console(file=log, width=120)) as progress,
        ):
            simulate(config, progress=progress)
    except (TwinwardError, OSError) as error:
        return str(error) or type(error).__name__
    except Exception as error:  # noqa: BLE001  a fault of ours, or of a library, is one failed run as well
        # Where, and not what: the text may hold a patient's value.
        with (directory / LOG).open("a", encoding="utf-8") as log:
            log.write("".join(traceback.format_tb(error.__traceback__)) + f"{type(error).__name__}\n")
        return f"{type(error).__name__}; where it came from is in {directory / LOG}"
    return ""
