"""The one adapter that makes any rule a Flower strategy.

The coordinator's durable rounds use `configure_train` and `aggregate`; Flower's own loop
(`Strategy.start`) uses `configure_train` and `aggregate_train`, and gives the same model. Nothing
is evaluated over the network: no metric leaves a site during training but the noised loss of qfedavg.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from strategies import records
from strategies.cohorts import Parting
from strategies.errors import StrategyError
from strategies.rule import Applied, Asynchronous, Correcting, InOrder, Named, Rule
from strategies.spread import spreads
from trust.digest import arrays_sha256
from trust.errors import TrustError
from trust.packed import Packed, packed, packed_from_npy
from trust.plan import Plan

ROUND, MODEL, ANSWER, UPDATE = "round", "model", "answer", "update"
CORRECTION = "correction"
BYTES = "bytes"
TRAIN = "train"

logger = logging.getLogger(f"twinward.{__name__}")


class FlowerStrategy(Strategy):
    """A rule under a plan: who is asked, with which request, and how answers are combined."""

    def __init__(
        self,
        *,
        rule: Rule,
        plan: Plan,
        model: Mapping[str, np.ndarray],
        trainable: Sequence[str],
        nodes: dict[str, int],
        signature: str = "",
    ) -> None:
        """Args:
        rule: what makes the next model.
        plan: with participants, whose weights it holds.
        model: the global model from which the next round starts.
        trainable: names of the arrays that updates hold.
        nodes: node id of each site that takes part.
        signature: of the coordinator over the plan; empty in a simulation.
        """
        self.rule = rule
        # Looked up once: Python looks for each method of a protocol anew each time.
        self._parting = rule if isinstance(rule, Parting) else None
        self._correcting = rule if isinstance(rule, Correcting) else None
        self.plan = plan
        self.model = dict(model)
        self.nodes = nodes
        self.signature = signature
        self.state = rule.init(model, trainable)

    def configure_train(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,  # noqa: ARG002  Flower's signature; everything stands in the plan
        grid: Grid,  # noqa: ARG002  Flower's signature; who is asked stands in the plan
    ) -> list[Message]:
        asked = [site for site in self.plan.asked(server_round) if site in self.nodes]
        if self._parting is not None:
            cohorts = [to_record(model) for model in self._parting.models(self.state, self.model)]
        else:
            cohorts = [arrays]
        corrections = self._corrections()
        messages = []
        numbers = {site: self._cohort(site) for site in asked}
        for cohort, record in enumerate(cohorts):  # sites with the same model one after the other
            request = self._request(server_round, record)
            messages += [
                Message(
                    records.content({ROUND: request, MODEL: record, **corrections(site)}),
                    self.nodes[site],
                    TRAIN,
                    group_id=str(server_round),
                )
                for site in asked
                if numbers[site] == cohort
            ]
        return messages

    def bases(self, sites: Iterable[str]) -> dict[str, str]:
        """The SHA-256 of the model that each site is sent; empty for a rule that sends all the same."""
        if self._parting is None:
            return {}
        digests = [arrays_sha256(model) for model in self._parting.models(self.state, self.model)]
        return {site: digests[self._cohort(site)] for site in sites}

    def _cohort(self, site: str) -> int:
        return 0 if self._parting is None else self._parting.cohort_of(self.state, site)

    def _request(self, server_round: int, record: ArrayRecord) -> ConfigRecord:
        base = packed({name: records.values(array) for name, array in record.items()}).sha256
        return ConfigRecord(
            {
                "plan": self.plan.to_json(),
                "signature": self.signature,
                "round": server_round,
                "base": base,
            }
        )

    def _corrections(self) -> Callable[[str], dict[str, ArrayRecord]]:
        """The records that go to a site beside the round and the model."""
        rule, state = self._correcting, self.state
        if rule is None:
            return lambda _: {}
        everybody = rule.everybody(state, self.plan.weights())
        return lambda site: {CORRECTION: to_record(rule.correction(state, everybody, site))}

    def aggregate(
        self,
        updates: Mapping[str, Mapping[str, np.ndarray]],
        staleness: Mapping[str, int] | None = None,
    ) -> Applied:
        """The next state and model from checked updates by site; both become current.

        Args:
            staleness: of each site's update, for a rule that takes old ones.

        Raises:
            StrategyError: no update, or one of a site that is not in the plan.
        """
        weights = self.plan.weights()
        foreign = sorted(set(updates) - set(weights))
        if foreign:
            raise StrategyError(f"Expected updates of participants of the plan; {foreign} are none.")
        sites = sorted(updates)
        ordered, shares = InOrder(updates, sites), [weights[site] for site in sites]
        if staleness is not None and isinstance(self.rule, Asynchronous):
            ages = [staleness[site] for site in sites]
            applied = self.rule.apply_stale(self.state, self.model, ordered, shares, ages)
        elif isinstance(self.rule, Named):
            applied = self.rule.apply_named(self.state, self.model, updates, weights, spreads(self.plan))
        elif self._parting is not None:
            applied = self._parting.part(self.state, self.model, updates, weights, spreads(self.plan))
        else:
            applied = self.rule.apply(self.state, self.model, ordered, shares)
        if self._correcting is not None:
            steps = {site: self.plan.steps_of(site) for site in sites}
            applied = applied._replace(state=self._correcting.remember(self.state, updates, weights, steps))
        self.state, self.model = applied.state, applied.model
        return applied

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        updates: dict[str, Packed] = {}
        for reply in replies:
            if reply.has_content() and UPDATE in reply.content:
                site = str(reply.content.config_records[ANSWER]["site"])
                updates[site] = read_update(reply.content.array_records[UPDATE])
        if not updates:
            logger.warning("round %d: no site released an update", server_round)
            return None, None
        applied = self.aggregate(updates)
        return to_record(applied.model), MetricRecord(dict(applied.diagnostics))

    def configure_evaluate(
        self,
        server_round: int,  # noqa: ARG002  Flower's signature
        arrays: ArrayRecord,  # noqa: ARG002  Flower's signature
        config: ConfigRecord,  # noqa: ARG002  Flower's signature
        grid: Grid,  # noqa: ARG002  Flower's signature
    ) -> list[Message]:
        return []

    def aggregate_evaluate(
        self,
        server_round: int,  # noqa: ARG002  Flower's signature
        replies: Iterable[Message],  # noqa: ARG002  Flower's signature
    ) -> MetricRecord | None:
        return None

    def summary(self) -> None:
        logger.info("plan %s: %s over %s", self.plan.hash[:12], type(self.rule).__name__, sorted(self.nodes))


def to_record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Named arrays as Flower carries them, sorted by name."""
    return records.arrays(
        {name: records.array(np.asarray(arrays[name], order="C")) for name in sorted(arrays)}
    )


def update_record(update: Mapping[str, np.ndarray]) -> ArrayRecord:
    """An update as it travels: one array, of the canonical bytes of its arrays."""
    return records.arrays({BYTES: records.laid(packed(update))})


def read_update(record: ArrayRecord) -> Packed:
    """What `update_record` wrote, not copied.

    Raises:
        StrategyError: the record is of another form.
    """
    array = record.get(BYTES)
    if len(record) != 1 or array is None:
        raise StrategyError(f"expected the one array {BYTES!r} in an update")
    known = records.unlaid(array)
    if known is not None:
        return known
    try:
        return packed_from_npy(array.data)
    except TrustError as error:
        raise StrategyError(f"expected the canonical bytes of an update: {error}") from None
