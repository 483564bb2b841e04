"""The versions of an asynchronous federation: rounds that close once enough updates are in, new or old.

It is the machine of server/rounds.py, on the same file and with the same steps. What differs is who works
on what (server/tasks.py). When a round opens, each site that is free gets its base, and the number of
the round with it; the round closes when `strategy.buffer_size` updates are in, whatever round each was
asked for. A site whose update is in a round is free again when that round's model is made. So a site

- never works twice on one model, and sees its own last update in the next one that it gets;
- does at most as many tasks as the plan has rounds, each number once: its checks of bases and numbers and
  its ledger are those of a synchronous plan, and so is the charge;
- counts at most once in a version, as with FedAvg. With a buffer for all sites it is FedAvg.

An update that is more than `strategy.max_staleness` versions behind is refused before it has come: its
task lapses when the round opens, the request is withdrawn, and the site gets the newest model.

A round also closes with a quorum of updates at the plan's deadline, or when no site is at work any more.
If all have answered and a quorum is not there, sites that failed are asked again (server/collecting.py).

After a crash. Tasks, updates and the round in which each update counts are on disk, each change in one
transaction. Tasks that are given are sent again, and sites answer from their ledgers. Over a network
other updates may then come first, and make another model than an undisturbed run, which would not repeat
itself either; but what was accepted stays where it was, and the file's updates, summed anew round by round,
give its models bit for bit. On a grid with a virtual clock the order follows from the clock, and a resumed
run ends in the bits of an undisturbed one.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol, runtime_checkable

from flwr.app import ConfigRecord, Message

import strategies
from link.stopwatch import phase
from server.admission import SITE_ERROR, Expected, Verdict, judge
from server.collecting import FIRST_PAUSE_S, LONGEST_PAUSE_S
from server.errors import ServerError
from server.rounds import Rounds
from server.store import RoundRow
from server.tasks import Task
from strategies.flower import FlowerStrategy, to_record
from trust.plan import Plan

logger = logging.getLogger(f"twinward.{__name__}")


@runtime_checkable
class VirtualClock(Protocol):
    """What a grid has beside Flower's methods in which answers take virtual time, and none of anybody's."""

    def clock_s(self) -> float:
        """Virtual seconds since the run began."""
        ...

    def set_clock(self, now_s: float) -> None:
        """Goes to a time: messages that are pushed next begin their way then."""
        ...


@dataclass(slots=True)
class _Process:
    """What this process knows and no file does.

    Attributes:
        sites: by node. norms: greatest norm of each site's update.
        given: the task of each site that is at work, as it is on disk.
        entered: how many updates are in the open round, as on disk.
        sent: id of the message of each task that was sent; empty where the grid is no network.
        arrived: answers that nobody has looked at.
        erred: sites that answered with an error in the open round.
    """

    sites: dict[int, str] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    given: dict[str, Task] = field(default_factory=dict)
    entered: int = 0
    sent: dict[tuple[str, int], str] = field(default_factory=dict)
    arrived: deque[Message] = field(default_factory=deque)
    erred: set[str] = field(default_factory=set)
    pause_s: float = FIRST_PAUSE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffered(Rounds):
    """Everything that the versions of one asynchronous federation need; see `Rounds`.

    Attributes:
        clock: seconds since 1970, noted beside tasks; nothing is decided by it.
    """

    clock: Callable[[], float] = time.time
    _process: _Process = field(init=False, default_factory=_Process)

    @property
    def _sends_at_once(self) -> bool:
        return False  # tasks are given in between

    def _send(self, row: RoundRow) -> None:
        """Gives the round's base to whoever is free, and to those whose work became too old."""
        self._begin()
        given = self.store.tasks.given()
        oldest = row.number - self.plan.strategy.max_staleness
        lapsed = [task for task in given.values() if task.number < oldest]
        for task in lapsed:
            logger.warning("version %d: the work of %s for %d is too old", row.number, task.site, task.number)
        self.post.withdraw([self._process.sent.get((task.site, task.number), "") for task in lapsed])
        gone = {task.site for task in lapsed}
        # Their answers may be here and not looked at: they would pass for answers to what is asked now.
        sites, arrived = self._process.sites, self._process.arrived
        kept = [reply for reply in arrived if sites.get(reply.metadata.src_node_id) not in gone]
        self._process.arrived = deque(kept)
        busy = set(given) - gone
        self.store.tasks.give(row.number, set(self.nodes) - busy, self._now_s(), lapsed=lapsed)

    def _collect(self, row: RoundRow) -> None:
        if not self._process.sites:  # this process found the round under way
            self.store.tasks.retry(row.number)
        self._begin()
        process = self._process
        process.erred, process.pause_s = set(), FIRST_PAUSE_S
        process.entered = len(self.store.tasks.counted(row.number))
        self._ask()
        ends_s = math.inf if self._virtual else time.monotonic() + self.plan.deadline_s
        while not self._closed(overdue=time.monotonic() >= ends_s):
            if process.arrived or process.given:
                left_s = ends_s - time.monotonic()
                self._take(row, left_s if left_s > 0 else LONGEST_PAUSE_S)
            else:
                self._ask_again(row, overdue=time.monotonic() >= ends_s)
        with phase("coordinator's file"):
            self.store.collected(row.number, {})

    def _begin(self) -> None:
        """Before anything else that this process does."""
        if not self._process.sites:
            self._process.sites = {node: site for site, node in self.nodes.items()}
            self._process.norms = self._norms()
            self._set_clock(self.store.tasks.latest_s())

    def _closed(self, *, overdue: bool) -> bool:
        process = self._process
        if process.entered >= min(self.plan.strategy.buffer_size, len(self.nodes)):
            return True
        return process.entered >= self.plan.quorum and (overdue or not (process.arrived or process.given))

    def _ask(self) -> None:
        """Sends the tasks that are given and were not sent by this process, each at the time it was given."""
        self._process.given, sent = self.store.tasks.given(), self._process.sent
        tasks = [task for task in self._process.given.values() if (task.site, task.number) not in sent]
        tasks.sort(key=lambda task: (task.given_s, task.number, task.site))
        for (given_s, number), group in groupby(tasks, key=lambda task: (task.given_s, task.number)):
            sites = [task.site for task in group]
            self._set_clock(given_s)
            ids = self.post.send(self._requests(number, sites), self.plan.deadline_s)
            sent |= dict(zip([(site, number) for site in sites], ids or [""] * len(sites), strict=True))
        self._set_clock(self.store.tasks.latest_s())

    def _requests(self, number: int, sites: Collection[str]) -> list[Message]:
        """The requests to these sites for the round of this number, sorted by site."""
        model = self.store.arrays(self.store.round(number).base)
        strategy = FlowerStrategy(
            rule=self.rule,
            plan=self.plan,
            model=model,
            trainable=list(self.shapes),
            nodes={site: self.nodes[site] for site in sites},
            signature=self.signature,
        )
        return strategy.configure_train(number, to_record(model), ConfigRecord(), self.post.grid)

    def _take(self, row: RoundRow, timeout_s: float) -> None:
        process = self._process
        if not process.arrived:
            replies = self.post.receive(0.0 if self._virtual else timeout_s)
            process.arrived += sorted(replies, key=lambda reply: reply.metadata.src_node_id)
        if process.arrived:
            self._judge(row, process.arrived.popleft())
        elif self.post.network is None or self._virtual:  # all answers are there, and these sites gave none
            for task in list(process.given.values()):
                self._settle(
                    row, task, Verdict(site=task.site, update=None, reason=f"{SITE_ERROR}:no_answer")
                )

    def _judge(self, row: RoundRow, reply: Message) -> None:
        process = self._process
        task = process.given.get(process.sites.get(reply.metadata.src_node_id, ""))
        if task is not None:
            id_ = process.sent[task.site, task.number]
            if id_ and id_ != reply.metadata.reply_to_message_id:
                task = None  # it answers something older: the site is still at work
        asked = row if task is None else self.store.round(task.number)
        expected = Expected(
            plan=self.plan.hash,
            round=asked.number,
            base=asked.base,
            sites=process.sites,
            shapes=self.shapes,
            norms=process.norms,
        )
        with phase("admission"):
            verdict = judge(reply, expected, self.nodes if task is None else ())
        self._settle(row, task, verdict)

    def _settle(self, row: RoundRow, task: Task | None, verdict: Verdict) -> None:
        if task is not None:
            del self._process.given[task.site]
            if verdict.update is not None:
                self.store.take(row.number, task, verdict.update, self._now_s())
                self._process.entered += 1
                return
        logger.warning("version %d: refused %s: %s", row.number, verdict.site or "a node", verdict.reason)
        if task is None:
            self.store.refuse(row.number, verdict.site, verdict.reason)
            return
        self.store.tasks.fail(row.number, task, verdict.reason, self._now_s())
        if task.number < row.number:
            self.store.tasks.give(row.number, [task.site], self._now_s())
            self._ask()
        elif verdict.reason.startswith(SITE_ERROR):
            self._process.erred.add(task.site)

    def _ask_again(self, row: RoundRow, *, overdue: bool) -> None:
        """After a pause, asks those that failed, where asking later may help."""
        process = self._process
        if overdue or self._virtual or self.post.network is None or not process.erred:
            refused = [(site, why) for number, site, why in self.store.refusals() if number == row.number]
            raise ServerError(
                f"Expected updates of at least {self.plan.quorum} of {sorted(self.nodes)} for version"
                f" {row.number}; {sorted(self.store.tasks.counted(row.number))} were admitted."
                f" Refused: {refused[-20:]}. Resume the run to ask again."
            )
        process.arrived += self.post.receive(process.pause_s)
        process.pause_s = min(2 * process.pause_s, LONGEST_PAUSE_S)
        self.store.tasks.retry(row.number, process.erred)
        for site in process.erred:
            del process.sent[site, row.number]
        process.erred = set()
        self._ask()

    def _staleness(self, number: int) -> dict[str, int]:
        return {site: number - task.number for site, task in self.store.tasks.counted(number).items()}

    def _figures(self) -> dict[str, float]:
        return {} if self._virtual is None else {"clock_s": self.store.tasks.latest_s()}

    @property
    def _virtual(self) -> VirtualClock | None:
        grid = self.post.grid
        return grid if isinstance(grid, VirtualClock) else None

    def _now_s(self) -> float:
        return self.clock() if self._virtual is None else self._virtual.clock_s()

    def _set_clock(self, now_s: float) -> None:
        if self._virtual is not None:
            self._virtual.set_clock(now_s)


def machine(plan: Plan) -> type[Rounds]:
    """What runs the rounds of a plan."""
    return Buffered if strategies.asynchronous(plan.strategy) else Rounds
