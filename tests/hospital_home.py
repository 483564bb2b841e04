"""One hospital's folder with data, keys and a policy, and a coordinator that signs and asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict

import client.app
from client.home import SiteHome, SiteSettings
from client.hospital import close_hospitals
from client.policy import DEFAULT_POLICY, Policy, parse_policy, policy_to_toml
from link.local import LocalGrid
from link.wire import ACCEPT, DECLARE, TRAIN, Answer, plan_request, read_answer
from server.app import make_offer
from strategies.flower import to_record
from tests.heart_hospitals import settings, write_folder
from trust.digest import Arrays, arrays_sha256
from trust.plan import Plan
from trust.signing import Signer, sign_plan
from twin import prior

AUTOMATIC = replace(
    parse_policy(DEFAULT_POLICY), automatic=True, automatic_tasks=("heart",), automatic_epsilon_per_plan=8.0
)


class Coordinator:
    """Signs plans and carries requests to one hospital over a LocalGrid, as any grid would."""

    def __init__(self, home: SiteHome, signer: Signer) -> None:
        self.home, self.signer = home, signer
        config = settings(Path(str(home.settings().data_path)).parent)
        self.model: Arrays = prior.initial_state(config)
        self.offer: Plan = make_offer(config, "", self.model)

    @property
    def plan(self) -> Plan:
        """The offer with this hospital and another as participants."""
        return self.offer.with_participants({"alpha": 10, "beta": 10})

    def declare(self, plan: Plan | None = None, *, signature: str | None = None) -> Answer:
        return self.ask(DECLARE, self._request(plan or self.offer, signature))[0]

    def accept(self, plan: Plan | None = None, *, signature: str | None = None) -> Answer:
        return self.ask(ACCEPT, self._request(plan or self.plan, signature))[0]

    def train(
        self, number: int, model: Arrays | None = None, plan: Plan | None = None, signature: str | None = None
    ) -> tuple[Answer, Arrays | None]:
        plan, model = plan or self.plan, model or self.model
        signed = sign_plan(plan.to_json(), self.signer) if signature is None else signature
        request = ConfigRecord(
            {"plan": plan.to_json(), "signature": signed, "round": number, "base": arrays_sha256(model)}
        )
        return self.ask(TRAIN, RecordDict({"round": request, "model": to_record(model)}))

    def ask(self, kind: str, content: RecordDict) -> tuple[Answer, Arrays | None]:
        grid = LocalGrid(client.app.app, {}, [str(self.home.directory)])
        (node,) = grid.get_node_ids()
        (reply,) = grid.send_and_receive([Message(content, node, kind)])
        return read_answer(reply.content)

    def _request(self, plan: Plan, signature: str | None) -> RecordDict:
        text = plan.to_json()
        return plan_request(text, sign_plan(text, self.signer) if signature is None else signature)


@contextmanager
def founded(
    directory: Path, policy: Policy | None = None, patients: int = 12, site: str = "alpha"
) -> Iterator[Coordinator]:
    """A hospital with so many patients, and the coordinator whose key it trusts."""
    data = write_folder(directory / "data", patients)
    signer = Signer.generate()
    home = SiteHome.create(
        directory / "home",
        SiteSettings(federation="test", site=site, address="localhost:1", data_path=str(data / site)),
    )
    home.save_coordinator_keys({signer.key_id: signer.public_hex})
    if policy is not None:
        write_policy(home, policy)
    try:
        yield Coordinator(home, signer)
    finally:
        close_hospitals()


def write_policy(home: SiteHome, policy: Policy) -> None:
    """Changes what the hospital admits."""
    home.policy.write_text(policy_to_toml(policy))
