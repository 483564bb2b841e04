"""Faults that a process brings upon itself: it dies at a chosen instant, its disk is full, its clock is off.

Everything is done from outside the code that is tested: SQLite's own calls, the clock, and what stands
between two modules. A process without an entry here is exactly what a user runs.
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Fault = dict[str, Any]
_connect = sqlite3.connect


def inject(fault: Fault) -> None:
    """Makes this process have faults: those that are named below."""
    if "commit" in fault:
        _die_at_commit(**fault["commit"])
    if "full" in fault:
        _fill(**fault["full"])
    if "largest_bytes" in fault:
        _limit_files(int(fault["largest_bytes"]))
    if "always" in fault:
        _answer(**fault["always"])
    if "call" in fault:
        _die_at_call(**fault["call"])
    if "clock_s" in fault:
        _shift_clock(float(fault["clock_s"]))
    if "release" in fault:
        importlib.import_module("client.policy").RELEASE = fault["release"]  # type: ignore[attr-defined]  # a module
    if "update" in fault:
        _lie(fault["update"])


def _shift_clock(ahead_s: float) -> None:
    """Our modules read a clock that is off. gRPC, whose core reads the kernel's, does not."""

    class Clock:
        def __getattr__(self, name: str) -> Any:
            return getattr(time, name)

        def time(self) -> float:
            return time.time() + ahead_s

    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("client", "link", "server", "trust") and vars(module).get("time") is time:
            module.time = Clock()  # type: ignore[attr-defined]  # every module may have one


def die() -> None:
    """SIGKILL, now."""
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at_commit(file: str, at: int, *, after: bool) -> None:
    """Dies just before or just after commit number `at` to the file of this name."""
    commits = 0

    class Deadly(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:  # type: ignore[override]
            nonlocal commits
            if sql != "COMMIT":
                return super().execute(sql, *parameters)
            commits += 1
            if commits == at and not after:
                die()
            done = super().execute(sql, *parameters)
            if commits == at:
                die()
            return done

    def connect(database: Any, *args: Any, **kwargs: Any) -> sqlite3.Connection:
        if _names(database, file):
            kwargs["factory"] = Deadly
        return _connect(database, *args, **kwargs)

    sqlite3.connect = connect  # type: ignore[assignment]


def _fill(file: str, *, after: int = 0, while_there: str = "") -> None:
    """Finds no room in the file of this name: what SQLite raises then, and undoes.

    Args:
        after: so many commits.
        while_there: only as long as there is a file at this path.
    """
    commits = 0

    class Full(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:  # type: ignore[override]
            nonlocal commits
            if sql == "COMMIT":
                commits += 1
                if commits > after and (not while_there or Path(while_there).exists()):
                    super().execute("ROLLBACK")
                    raise sqlite3.OperationalError("database or disk is full")
            return super().execute(sql, *parameters)

    def connect(database: Any, *args: Any, **kwargs: Any) -> sqlite3.Connection:
        if _names(database, file):
            kwargs["factory"] = Full
        return _connect(database, *args, **kwargs)

    sqlite3.connect = connect  # type: ignore[assignment]


def _limit_files(largest_bytes: int) -> None:
    """Lets the kernel refuse to write a file beyond a size: Python ignores SIGXFSZ, so a write fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_bytes, largest_bytes))


def _answer(target: str, gives: Any) -> None:
    """Makes a function, `module:name`, give always the same."""
    module, _, name = target.partition(":")
    setattr(importlib.import_module(module), name, lambda *_, **__: gives)


def _die_at_call(target: str, *, nth: int, after: bool, delay_s: float = 0.0) -> None:
    """Dies at a call of `module:name` or `module:Class.name`; the delay lets an answer be sent first."""
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth and not after:
            die()
        done = real(*args, **kwargs)
        if calls == nth:
            if not delay_s:
                die()
            threading.Timer(delay_s, die).start()
        return done

    setattr(owner, name, deadly)


def _lie(how: str) -> None:
    """The site's gate is broken open: what it checked is replaced by something else before it leaves."""
    egress, wire = importlib.import_module("client.egress"), importlib.import_module("link.wire")
    inspect = egress.inspect  # type: ignore[attr-defined]

    def replaced(content: Any, limits: Any) -> Any:
        honest = inspect(content, limits)
        said, arrays = wire.read_answer(honest)  # type: ignore[attr-defined]
        if arrays is None:
            return honest
        return wire.answer(*LIES[how](said, arrays))  # type: ignore[attr-defined]

    egress.inspect = replaced  # type: ignore[attr-defined]


def _each(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any, Any], tuple[Any, Any]]:
    return lambda said, arrays: (said, {name: change(value) for name, value in arrays.items()})


def _other_base(said: Any, arrays: Any) -> tuple[Any, Any]:
    from dataclasses import replace

    return replace(said, base="0" * 64), arrays


def _other_site(said: Any, arrays: Any) -> tuple[Any, Any]:
    from dataclasses import replace

    return replace(said, site="alpha"), arrays


LIES: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "nan": _each(lambda value: np.full_like(value, np.nan)),
    "inf": _each(lambda value: np.full_like(value, np.inf)),
    "giant": _each(lambda value: np.full_like(value, 1e30)),
    "shape": _each(lambda value: np.zeros((*value.shape, 2), value.dtype)),
    "dtype": _each(lambda value: value.astype(np.float64)),
    "names": lambda said, arrays: (said, {f"x{name}": value for name, value in arrays.items()}),
    "base": _other_base,
    "site": _other_site,
}


def _names(database: Any, file: str) -> bool:
    text = os.fsdecode(database) if isinstance(database, (str, bytes, os.PathLike)) else ""
    return Path(text.removeprefix("file:").partition("?")[0]).name == file
