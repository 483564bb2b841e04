"""Commands as processes of this machine that end, at the latest, with the process that started them.

On Linux the kernel ends them even if their starter is killed. Elsewhere they outlive a SIGKILL of it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final, Self

from conf.errors import TwinwardError

GRACE_S: Final = 15.0
_PR_SET_PDEATHSIG: Final = 1
_LAST_LINES: Final = 12


class ProcessError(TwinwardError):
    """A command that should be running is not."""


class Processes:
    """Commands at work, by name; `with` ends them all, whatever happens."""

    def __init__(self, logs: Path) -> None:
        """Args:
        logs: folder for what each process prints, `<name>.log`; it must exist.
        """
        self.logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_all()

    def start(self, name: str, words: Sequence[str], **environment: str) -> int:
        """Runs `twinward <words>`; gives the id of the process. Its log goes on where it was."""
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(  # noqa: S603  our own command
                [sys.executable, "-m", "cli.processes", str(os.getpid()), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C goes to the starter, which ends them in order
                env=os.environ | environment,
            )
        self._running[name] = process
        return process.pid

    def log(self, name: str) -> Path:
        """What a process prints."""
        return self.logs / f"{name}.log"

    def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to a process, and waits for its end if it is SIGKILL."""
        self._running[name].send_signal(number)
        if number == signal.SIGKILL:
            self._running.pop(name).wait()

    def running(self, name: str) -> bool:
        """Whether the process is there."""
        process = self._running.get(name)
        return process is not None and process.poll() is None

    def check(self) -> None:
        """Finds a process that has ended by itself.

        Raises:
            ProcessError: with the last lines of its log.
        """
        for name, process in self._running.items():
            if process.poll() is not None:
                raise ProcessError(
                    f"The process of {name} ended with exit code {process.returncode}:\n{self.tail(name)}"
                )

    def wait_for(self, what: str, there: Callable[[], bool], timeout_s: float) -> None:
        """Returns once `there` is true.

        Raises:
            ProcessError: a process ended, or the time is over.
        """
        end_s = time.monotonic() + timeout_s
        while not there():
            self.check()
            if time.monotonic() > end_s:
                raise ProcessError(f"Expected {what} within {timeout_s:g} s; the logs are in {self.logs}.")
            time.sleep(0.05)

    def tail(self, name: str) -> str:
        """The last lines of a log."""
        lines = self.log(name).read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_LAST_LINES:])

    def stop(self, name: str) -> int:
        """Ends a process in order, by force after a while; gives its exit code."""
        process = self._running.pop(name)
        process.terminate()
        return _ended(process, GRACE_S)

    def stop_all(self) -> None:
        """Ends all processes: first all are told, then all are waited for."""
        for process in self._running.values():
            process.terminate()
        end_s = time.monotonic() + GRACE_S
        while self._running:
            _ended(self._running.popitem()[1], max(0.1, end_s - time.monotonic()))


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP end the work as Ctrl-C does, so that what was started is stopped."""

    def end(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ended(process: subprocess.Popen[bytes], timeout_s: float) -> int:
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _run_below(parent: int, words: list[str]) -> int:
    """Runs a command in this process, which is told to end when `parent` does."""
    from cli.main import main

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before that was said
        return 1
    return main(words)


if __name__ == "__main__":
    sys.exit(_run_below(int(sys.argv[1]), sys.argv[2:]))
