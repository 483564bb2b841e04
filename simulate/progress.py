"""How far long work is: what the work calls, and two that listen."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

LINE_EVERY_S = 5.0


class Progress(Protocol):
    """What long work tells: steps one after the other, each of a known or unknown number of parts."""

    def step(self, name: str, total: int | None = None) -> None:
        """A step begins, and with it the one before ends.

        Args:
            name: of the step, for a person.
            total: parts it consists of; None if nobody knows.
        """
        ...

    def advance(self, note: str = "") -> None:
        """One more part of the step is done; the note says what it showed."""
        ...

    def done(self) -> None:
        """All work is done."""
        ...


class SilentProgress:
    """Says nothing."""

    def step(self, name: str, total: int | None = None) -> None:
        """Says nothing."""

    def advance(self, note: str = "") -> None:
        """Says nothing."""

    def done(self) -> None:
        """Says nothing."""


class TerminalProgress:
    """A live bar per step on a terminal; elsewhere (a log) plain lines, at most one each few seconds.

    It writes to the console that it is given and to nothing else; as a context manager it leaves
    the terminal in order even when the work fails.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._listener = _Bars(console) if console.is_terminal else _Lines(console, clock)
        self._name = ""
        self._total: int | None = None
        self._parts = 0
        self._began_s = 0.0

    def step(self, name: str, total: int | None = None) -> None:
        """Ends the step before and shows a new one."""
        self._end()
        self._name, self._total, self._parts, self._began_s = name, total, 0, self._clock()
        self._listener.begin(name, total)

    def advance(self, note: str = "") -> None:
        """Shows one more part, with an estimate of the time left."""
        self._parts += 1
        elapsed_s = self._clock() - self._began_s
        left_s = None if self._total is None else remaining_s(elapsed_s, self._parts, self._total)
        self._listener.advance(self._parts, left_s, note)

    def done(self) -> None:
        """Ends the last step and gives the terminal back."""
        self._end()
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._end()
        self._listener.close()

    def _end(self) -> None:
        if self._name:
            self._listener.end(self._clock() - self._began_s)
        self._name = ""


def remaining_s(elapsed_s: float, parts: int, total: int) -> float:
    """Seconds that the rest of a step takes if it goes on as it went, never negative."""
    return max(0, total - parts) * elapsed_s / parts if parts else 0.0


def duration(seconds: float) -> str:
    """A duration as a person says it: 8 s, 2 min 05 s, 1 h 03 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _Lines:
    """Plain lines for a log."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console, self._clock = console, clock
        self._name, self._total, self._said_s = "", 0, 0.0

    def begin(self, name: str, total: int | None) -> None:
        self._name, self._total, self._said_s = name, total or 0, self._clock()
        self._print(f"{name} …")

    def advance(self, parts: int, left_s: float | None, note: str) -> None:
        if self._clock() - self._said_s < LINE_EVERY_S or parts == self._total:
            return
        self._said_s = self._clock()
        of = f"/{self._total}" if self._total else ""
        left = "" if left_s is None else f", {duration(left_s)} left"
        self._print(f"{self._name}: {parts}{of}{left}{' · ' + note if note else ''}")

    def end(self, took_s: float) -> None:
        self._print(f"{self._name}: done in {duration(took_s)}")

    def close(self) -> None:
        """Nothing is held."""

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class _Bars:
    """Live bars for a terminal; they appear with the first step."""

    def __init__(self, console: Console) -> None:
        self._rich = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            TextColumn("{task.fields[note]}", markup=False, style="dim"),
            console=console,
        )
        self._task: TaskID | None = None
        self._total: int | None = None

    def begin(self, name: str, total: int | None) -> None:
        self._rich.start()
        self._total = total
        self._task = self._rich.add_task(name, total=total, left="", note="")

    def advance(self, parts: int, left_s: float | None, note: str) -> None:
        if self._task is not None:
            left = "" if left_s is None else f"{duration(left_s)} left"
            self._rich.update(self._task, completed=parts, left=left, note=note)

    def end(self, took_s: float) -> None:  # noqa: ARG002  the bar has its own clock
        if self._task is not None:
            parts = max(1, int(self._rich.tasks[-1].completed))
            total = self._total or parts
            self._rich.update(self._task, completed=total, total=total, left="", note="")
        self._task = None

    def close(self) -> None:
        self._rich.stop()
