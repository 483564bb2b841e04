"""The models that a site holds: the federation's current one of each task, and what it made of them.

models/<task>/global.package   the signed package of the coordinator, as it came
models/<task>/site.safetensors, personal.safetensors, personal.json

Site and personal models reveal patients to whoever may read them: files are their owner's alone, and
nothing sends them anywhere.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from client import plugins
from client.errors import ClientError
from client.home import SiteHome
from client.records import recorded_policy
from trust.card import Card, unpack
from trust.digest import Arrays, arrays_from_bytes, arrays_to_bytes
from trust.errors import TrustError
from trust.keys import write_file
from trust.plan import Plan, from_json
from trust.signing import verify


class Shelf:
    """The models in a site's folder."""

    def __init__(self, home: SiteHome) -> None:
        self._home = home

    def take(self, package: bytes) -> Card:
        """Keeps a package that the coordinator sent, after these checks; raises ClientError if one fails.

        1. signature, card and bytes hold (trust.card);
        2. it is of this federation, and its card names the plan that it carries;
        3. its serial is not below that of the model that is held: an old one does not come back;
        4. the policy admits its task and its network, which are built here from what the plan says;
        5. the arrays are those of the network that its plan names, built from installed code, and finite.
        """
        card, model = self._unpacked(package)
        held = self.held(card.task)
        if held is not None and card.serial < held[0].serial:
            raise _refused(f"It has serial {card.serial}; {held[0].serial} is held already.")
        self._check_network(card, model)
        write_file(self._made(card.task) / "global.package", package, replace=True)
        return card

    def held(self, task: str) -> tuple[Card, Arrays] | None:
        """The federation's model of a task, checked again; None if there is none.

        Raises:
            ClientError: the file does not hold.
        """
        try:
            package = (self._folder(task) / "global.package").read_bytes()
        except FileNotFoundError:
            return None
        return self._unpacked(package)

    def tasks(self) -> tuple[str, ...]:
        """Tasks of which a model is held, sorted."""
        return tuple(sorted(path.parent.name for path in self._home.models.glob("*/global.package")))

    def put(self, task: str, name: str, arrays: Arrays) -> Path:
        """Keeps arrays that were made here, for their owner alone."""
        path = self._made(task) / f"{name}.safetensors"
        write_file(path, arrays_to_bytes(arrays), replace=True)
        return path

    def put_facts(self, task: str, name: str, facts: dict[str, object]) -> Path:
        """Keeps what stands beside them."""
        path = self._made(task) / f"{name}.json"
        write_file(path, (json.dumps(facts, indent=1) + "\n").encode(), replace=True)
        return path

    def get(self, task: str, name: str) -> Arrays:
        """Arrays that `put` kept.

        Raises:
            ClientError: there are none.
        """
        try:
            return arrays_from_bytes((self._folder(task) / f"{name}.safetensors").read_bytes())
        except FileNotFoundError:
            raise ClientError("home_unreadable", f"No {name} model of task {task!r} is held here.") from None

    def _folder(self, task: str) -> Path:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", task):
            # A coordinator names the task; a name with a slash would be a place of its choice.
            raise _refused("Its task is no name.")
        return self._home.models / task

    def _made(self, task: str) -> Path:
        """The folder of a task, made if need be."""
        folder = self._folder(task)
        for path in (self._home.models, folder):
            path.mkdir(mode=0o700, exist_ok=True)
        return folder

    def _unpacked(self, package: bytes) -> tuple[Card, Arrays]:
        keys = self._home.coordinator_keys()
        try:
            card, model = unpack(package, lambda data, signature: verify("model", data, signature, keys))
            plan = from_json(card.plan)
        except TrustError as error:
            raise _refused(str(error)) from None
        if card.federation != self._home.settings().federation:
            raise _refused(f"It is of the federation {card.federation!r}.")
        if plan.hash != card.plan_sha256 or plan.task.name != card.task:
            raise _refused("Its card names another plan or task than it carries.")
        return card, model

    def _check_network(self, card: Card, model: Arrays) -> None:
        plan, policy = from_json(card.plan), recorded_policy(self._home)
        if plan.task.name not in policy.tasks or plan.model.name not in policy.models:
            raise _refused("The policy does not admit its task or its network ([admit] in policy.toml).")
        pins = policy.plugins
        network = plugins.build_model(plan.model, plugins.build_task(plan.task, pins), pins)
        wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        if {name: array.shape for name, array in model.items()} != wanted:
            raise _refused("Its arrays are not those of the network that its plan names.")
        if not all(array.dtype == np.float32 and np.isfinite(array).all() for array in model.values()):
            raise _refused("Its arrays are not finite numbers of 32 bits.")


def plan_of(card: Card) -> Plan:
    """The plan that trained a model."""
    return from_json(card.plan)


def _refused(text: str) -> ClientError:
    return ClientError("model_refused", f"A model was not taken. {text}")
