"""The runs of a coordinator, in the order in which they were launched; every change is on disk first.

    queued → asking → ready → running → done
       any of these four → paused | stopped | failed;   paused | failed → queued

queued: waiting to be offered. asking: sites are asked, and some wait for a person. ready: it is
agreed who takes part; another run has its turn. What a run was doing stands in its own store, so a
run that comes back from a pause, a failure or a crash goes on where it was.

Operators move a run by its state alone. Whoever works on a run asks `Queue.state` before each step
and stops when the run is no longer theirs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from server.changes import Changes
from server.durable import Durable
from server.errors import ServerError

QUEUED, ASKING, READY, RUNNING = "queued", "asking", "ready", "running"
PAUSED, STOPPED, DONE, FAILED = "paused", "stopped", "done", "failed"
WORKING: Final = (QUEUED, ASKING, READY, RUNNING)
STATES: Final = (*WORKING, PAUSED, STOPPED, DONE, FAILED)

# To each state, from which it may be reached.
_BEFORE: Final = {
    QUEUED: (PAUSED, FAILED),
    ASKING: (QUEUED, ASKING),
    READY: (QUEUED, ASKING),
    RUNNING: (READY, RUNNING),
    PAUSED: WORKING,
    STOPPED: (*WORKING, PAUSED, FAILED),
    DONE: (RUNNING,),
    FAILED: WORKING,
}

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
    number INTEGER PRIMARY KEY AUTOINCREMENT, request TEXT NOT NULL UNIQUE, config TEXT NOT NULL,
    conditions TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL, who TEXT NOT NULL,
    launched_s REAL NOT NULL, changed_s REAL NOT NULL, begin INTEGER NOT NULL DEFAULT 0);
"""
_COLUMNS = "number, config, conditions, state, reason, who, launched_s, changed_s, begin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a launch says beside the configuration.

    Attributes:
        quorum: least number of sites that a plan begins with and that a round closes with.
        round_s: after so many seconds a round closes with a quorum of answers.
        approval_s: after so many seconds the plan begins with those that took it, or fails.
        sites: that are asked; empty for all members.
    """

    quorum: int = 2
    round_s: float = 3600.0
    approval_s: float = 7 * 86400.0
    sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.quorum < 1:
            raise ServerError(f"Expected a quorum of at least 1; {self.quorum} came.")
        if not (0 < self.round_s < float("inf") and 0 < self.approval_s < float("inf")):
            raise ServerError(
                f"Expected deadlines above 0 s; {self.round_s} for a round and {self.approval_s} for"
                " approvals came."
            )
        if self.sites and len(set(self.sites)) < self.quorum:
            raise ServerError(f"Expected at least as many sites as the quorum of {self.quorum}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as it is on disk; times in seconds since 1970.

    Attributes:
        begin: an operator does not want to wait for sites that have not taken the plan yet.
    """

    id: str
    config: str
    conditions: Conditions
    state: str
    reason: str
    who: str
    launched_s: float
    changed_s: float
    begin: bool


class Queue(Changes):
    """The file of runs; threads share it, and may wait for its changes."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Args:
        clock: gives the time that is noted beside changes; nothing is decided by it.
        """
        super().__init__()
        self._db = Durable(path, _SCHEMA)
        self._clock = clock

    def close(self) -> None:
        """Lets go of the file."""
        self._db.close()

    def launch(self, config: str, conditions: Conditions, *, who: str, request: str) -> Run:
        """The new run, queued; the same request again gives the run that it made before.

        Args:
            config: `conf.load.to_json` of a configuration.
            request: chosen by who asks, so that a call may be repeated when its answer was lost.

        Raises:
            ServerError: the request was made before with another configuration or conditions.
        """
        text, now = _conditions_json(conditions), self._clock()
        with self._db.write() as db:
            known = db.execute(
                f"SELECT config, conditions, {_COLUMNS} FROM run WHERE request = ?", (request,)
            ).fetchone()
            if known is not None and known[:2] != (config, text):
                raise ServerError("Expected a new request; this one has launched another run.")
            if known is None:
                db.execute(
                    "INSERT INTO run (request, config, conditions, state, reason, who, launched_s, changed_s)"
                    " VALUES (?, ?, ?, ?, '', ?, ?, ?)",
                    (request, config, text, QUEUED, who, now, now),
                )
            row = db.execute(f"SELECT {_COLUMNS} FROM run WHERE request = ?", (request,)).fetchone()
        self.touch()
        return _run(row)

    def runs(self) -> tuple[Run, ...]:
        """All runs, in the order in which they were launched."""
        return tuple(_run(row) for row in self._db.rows(f"SELECT {_COLUMNS} FROM run ORDER BY number"))

    def run(self, run: str) -> Run:
        """The run with this id.

        Raises:
            ServerError: there is none.
        """
        rows = self._db.rows(f"SELECT {_COLUMNS} FROM run WHERE number = ?", (_number(run),))
        if not rows:
            raise ServerError(f"There is no run {run!r}; `twinward coordinator runs` lists them.")
        return _run(rows[0])

    def first(self, *states: str) -> Run | None:
        """The earliest run in one of these states."""
        return next((run for run in self.runs() if run.state in states), None)

    def state(self, run: str) -> str:
        """The state of a run, as it is now."""
        return self.run(run).state

    def move(self, run: str, to: str, reason: str = "") -> Run:
        """The run in its new state.

        Args:
            reason: why, for people; empty if there is nothing to say.

        Raises:
            ServerError: there is no such run, or its state does not lead there; nothing is changed.
        """
        number, before = _number(run), _BEFORE[to]
        places = ", ".join("?" * len(before))
        with self._db.write() as db:
            changed = db.execute(
                "UPDATE run SET state = ?, reason = ?, changed_s = ?"
                f" WHERE number = ? AND state IN ({places})",
                (to, reason, self._clock(), number, *before),
            ).rowcount
            found = self.run(run)
        if changed != 1:
            raise ServerError(
                f"Run {run} is {found.state}; only one that is {', '.join(before)} can be {to}."
            )
        self.touch()
        return found

    def begin(self, run: str) -> Run:
        """Asks for the plan to begin with the sites that have taken it, as soon as they are a quorum.

        Raises:
            ServerError: there is no such run, or nobody is being asked any more.
        """
        number = _number(run)
        with self._db.write() as db:
            changed = db.execute(
                "UPDATE run SET begin = 1 WHERE number = ? AND state IN (?, ?)", (number, QUEUED, ASKING)
            ).rowcount
            found = self.run(run)
        if changed != 1:
            raise ServerError(f"Run {run} is {found.state}; only one that is asking can be begun early.")
        self.touch()
        return found


def _number(run: str) -> int:
    text = run.removeprefix("run-")
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise ServerError(f"Expected the id of a run, such as run-0001; {run[:40]!r} came.")
    return int(text)


def _conditions_json(conditions: Conditions) -> str:
    data = {
        "quorum": conditions.quorum,
        "round_s": float(conditions.round_s),
        "approval_s": float(conditions.approval_s),
        "sites": sorted(conditions.sites),
    }
    return json.dumps(data, sort_keys=True)


def _run(row: tuple[Any, ...]) -> Run:
    number, config, conditions, state, reason, who, launched_s, changed_s, begin = row
    data = json.loads(conditions)
    return Run(
        id=f"run-{number:04d}",
        config=config,
        conditions=Conditions(**data | {"sites": tuple(data["sites"])}),
        state=state,
        reason=reason,
        who=who,
        launched_s=launched_s,
        changed_s=changed_s,
        begin=bool(begin),
    )
