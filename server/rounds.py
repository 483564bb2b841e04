"""The rounds of a federation as a durable state machine over any Flower grid.

A round goes open → sent → collected → aggregated → committed; each arrow is one transaction of the
store, taken before anything acts on it (in a simulation a round is open and sent in one). After a crash
the machine goes on in the state that it finds: requests that went out are sent again, and sites answer
them with the release that they cached, so the final model is bit for bit that of an undisturbed run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ConfigRecord, Message

from link.stopwatch import phase
from server.admission import Expected
from server.cohorts import settle
from server.collecting import Collecting
from server.post import Post
from server.store import RoundRow, Store
from strategies import average, loss_release
from strategies.bound import MOST_GROWTH, correction_bound, norm_bound
from strategies.cohorts import Parting
from strategies.flower import FlowerStrategy, to_record
from strategies.rule import Rule
from trust.digest import Arrays
from trust.plan import Plan

OnRound = Callable[[int, Arrays], None]

logger = logging.getLogger(f"twinward.{__name__}")


@dataclass(slots=True)
class _Known:
    """What is the same for all rounds, or was read for the round under way.

    Attributes:
        norms: see `Rounds._norms`; None until they are worked out.
        number: of the round that the following are of; 0 before the first.
        before: see `Rounds._before`. total: the last of it and its SHA-256; it stays the same for long.
        strategy: see `Rounds._strategy`; None until it is asked for.
    """

    norms: dict[str, float] | None = None
    number: int = 0
    before: tuple[Arrays, Arrays, Arrays] = ({}, {}, {})
    total: tuple[str, Arrays] = ("", {})
    strategy: FlowerStrategy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """Everything that the rounds of one federation need.

    Attributes:
        post: carries requests and answers; says when to halt.
        nodes: node of each site that takes part.
        shapes: shape of each trainable array, sorted by name.
        on_round: told the number and the model of each round once it is committed.
        before_commit: told of each round just before it is committed, again if that was cut off.
        signature: of the coordinator over the plan; empty in a simulation.
    """

    post: Post
    store: Store
    plan: Plan
    rule: Rule
    nodes: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    on_round: OnRound | None = None
    before_commit: Callable[[RoundRow], None] | None = None
    signature: str = ""
    _known: _Known = field(init=False, default_factory=_Known)

    def run(self) -> str:
        """The SHA-256 of the final model, after all rounds that the plan has and the store lacks.

        Raises:
            ServerError: a round got too few admissible updates; it is repeated when the run is resumed.
            Halted: somebody paused or stopped the run.
        """
        while (row := self._current()) is not None:
            self.post.check()
            name, act = {
                "open": ("commit", self._send),
                "sent": ("messages", self._collect),
                "collected": ("aggregation", self._aggregate),
                "aggregated": ("commit", self._commit),
            }[row.state]
            with phase(name):
                act(row)
        if isinstance(self.rule, Parting):
            settle(self.store, self.plan, self.rule, list(self.shapes))
        model, _, total = self._before(self.plan.rounds + 1)
        return self.store.finish(average.mean(total, model))

    def _current(self) -> RoundRow | None:
        """The round that is under way, opened if need be; None after the last."""
        row = self.store.last_round()
        if row is not None and row.state != "committed":
            return row
        number = 1 if row is None else row.number + 1
        if number > self.plan.rounds:
            return None
        base = self.plan.base_sha256 if row is None else str(row.model)
        self.store.open_round(number, base, sent=self._sends_at_once)
        return self.store.last_round()

    @property
    def _sends_at_once(self) -> bool:
        """Whether a round is open and sent in one step: nobody is told in between."""
        return self.store.simulated

    def _send(self, row: RoundRow) -> None:
        self.store.sent(row.number)

    def _collect(self, row: RoundRow) -> None:
        """Sends the requests, of this process or again after a crash, and admits what comes back."""
        strategy = self._strategy(row)
        record = to_record(strategy.model)

        def requests(sites: Collection[str]) -> list[Message]:
            asked = {self.nodes[site] for site in sites}
            messages = strategy.configure_train(row.number, record, ConfigRecord(), self.post.grid)
            return [message for message in messages if message.metadata.dst_node_id in asked]

        Collecting(
            post=self.post,
            store=self.store,
            expected=Expected(
                plan=self.plan.hash,
                round=row.number,
                base=row.base,
                bases=strategy.bases(self.plan.asked(row.number)),
                sites={self.nodes[site]: site for site in self.plan.asked(row.number)},
                shapes=loss_release.shapes(self.shapes, self.plan.strategy),
                norms=self._norms(),
                most_loss=self._most_loss(),
            ),
            requests=requests,
            quorum=self.plan.quorum,
            deadline_s=self.plan.deadline_s,
        ).run()

    def _norms(self) -> dict[str, float]:
        """The greatest norm of each site's update.

        A site may have more patients than it declared, rounded, when the plan began. The bound is no
        defence against a member who lies within it.
        """
        if self._known.norms is None:
            self._known.norms = self._worked_out_norms()
        return self._known.norms

    def _worked_out_norms(self) -> dict[str, float]:
        size = sum(math.prod(shape) for shape in self.shapes.values())
        correction, loss = correction_bound(size, self.plan), self._most_loss()
        bounds = {}
        for entry in self.plan.participants:
            bound = norm_bound(
                size=size,
                patients=MOST_GROWTH * entry.patients,
                declared=entry.patients,
                terms=self.plan.terms,
                strategy=self.plan.strategy_of(entry.site),
                correction=correction,
            )
            if bound is not None:
                bounds[entry.site] = math.hypot(bound, loss)
        return bounds

    def _most_loss(self) -> float:
        """The greatest loss that an update holds beside the arrays; 0 if it holds none."""
        strategy = self.plan.strategy
        return loss_release.most(strategy, self.plan.terms) if loss_release.releases(strategy) else 0.0

    def _aggregate(self, row: RoundRow) -> None:
        strategy, self._known.strategy = self._strategy(row), None  # once: applying changes it
        updates = self.store.updates(row.number)  # read from disk one after the other
        applied = strategy.aggregate(updates, self._staleness(row.number))
        _, _, before = self._before(row.number)
        averaged = average.averaged_rounds(self.plan.rounds, self.plan.strategy.average_last)
        counts = row.number > self.plan.rounds - averaged
        total = average.add(before, applied.model) if counts else before
        self.store.aggregated(
            row.number,
            model=applied.model,
            rule=applied.state,
            total=None if total is before and row.number > 1 else total,
            diagnostics=applied.diagnostics | self._figures() | {"participants": float(len(updates))},
        )

    def _staleness(self, number: int) -> dict[str, int] | None:  # noqa: ARG002  for a run that is asynchronous
        """How many models were made since the base of each site's update; None if all are of this round."""
        return None

    def _figures(self) -> dict[str, float]:
        """What stands in the diagnostics of a round beside what the rule says."""
        return {}

    def _commit(self, row: RoundRow) -> None:
        if self.before_commit is not None:
            self.before_commit(row)
        self.store.committed(row.number)
        if self.on_round is not None:
            self.on_round(row.number, self.store.arrays(str(row.model)))

    def _strategy(self, row: RoundRow) -> FlowerStrategy:
        """The rule as it stood before this round."""
        model, state, _ = self._before(row.number)
        if self._known.strategy is not None:
            return self._known.strategy
        self._known.strategy = strategy = FlowerStrategy(
            rule=self.rule,
            plan=self.plan,
            model=model,
            trainable=list(self.shapes),
            nodes=dict(self.nodes),
            signature=self.signature,
        )
        strategy.state = state
        return strategy

    def _before(self, number: int) -> tuple[Arrays, Arrays, Arrays]:
        """Model, state of the rule and running sum from which round `number` starts; not to be changed."""
        if number != self._known.number:
            self._known.before, self._known.number = self._read_before(number), number
            self._known.strategy = None
        return self._known.before

    def _read_before(self, number: int) -> tuple[Arrays, Arrays, Arrays]:
        if number == 1:
            model = self.store.arrays(self.plan.base_sha256)
            names = list(self.shapes)
            return model, self.rule.init(model, names), average.start(model, names)
        row = self.store.round(number - 1)
        if self._known.total[0] != row.total:
            self._known.total = str(row.total), self.store.arrays(str(row.total))
        return self.store.arrays(str(row.model)), self.store.arrays(str(row.rule)), self._known.total[1]


def trainable_shapes(state: Mapping[str, np.ndarray], names: list[str]) -> dict[str, tuple[int, ...]]:
    """The shape of each array that updates hold, sorted by name."""
    return {name: tuple(state[name].shape) for name in sorted(names)}
