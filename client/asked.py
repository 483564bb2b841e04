"""What a request asks a site for, read once for the gate, the door and the handlers alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from flwr.app import Message

from link.wire import TRAIN, Answer, Round, read_plan_request, read_train_request
from trust.plan import Plan
from trust.plan import from_json as plan_from_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request.

    Attributes:
        kind: `declare`, `accept` or `train`, as link.wire names them.
        text: JSON of the plan as it came, over which the signature stands. plan: what it says.
        signature: of the coordinator; empty in a simulation.
        round, base: of a `train` request; 0 and empty otherwise.
    """

    kind: str
    text: str
    plan: Plan
    signature: str
    round: int = 0
    base: str = ""

    def answer(self, site: str) -> Answer:
        """The names that an answer of this site must bear."""
        return Answer(site=site, plan=self.plan.hash, round=self.round, base=self.base)


@lru_cache(maxsize=4)
def from_json(text: str) -> Plan:
    """The plan in a request; in a simulation all sites get the same text, which names each of them."""
    return plan_from_json(text)


def read_asked(message: Message) -> Asked:
    """What a request asks for, with the plan that it carries.

    Raises:
        LinkError, PlanError: it is not of the agreed form.
    """
    kind = message.metadata.message_type
    if kind != TRAIN:
        request = read_plan_request(message.content)
        return Asked(kind=kind, text=request.plan, plan=from_json(request.plan), signature=request.signature)
    return asked_to_train(read_train_request(message.content)[0])


@lru_cache(maxsize=4)
def asked_to_train(asked: Round) -> Asked:
    """What a request to train asks; the sites of a simulation all get the same round."""
    return Asked(
        kind=TRAIN,
        text=asked.plan,
        plan=from_json(asked.plan),
        signature=asked.signature,
        round=asked.round,
        base=asked.base,
    )
