"""The hospital's Flower app: takes a plan, and answers its rounds with private updates.

Terms, ledger and egress gate are inside the app, so no runtime goes round them. No metric leaves
during training: a round's answer is the update and nothing else, and the noised loss under qfedavg.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import nn

from client import anchor, booking, egress, questions
from client.anatomy import chain_of
from client.asked import asked_to_train, read_asked
from client.errors import ClientError
from client.policy import release_of
from client.site import OpenSite, open_site
from client.stacked import Base, Work, Workshop
from client.trainer import train
from link.flower import reply_to
from link.stopwatch import phase
from link.wire import Answer, Round, answer, question_answer, read_correction, read_train_request
from privacy.errors import PrivacyError
from privacy.noise import NoiseStream
from strategies.bound import correction_bound
from strategies.loss_release import releases
from strategies.rule import norm
from trust.digest import Arrays
from trust.packed import Packed, packed
from trust.plan import EVEN, Plan
from twin import tasks
from twin.tasks.protocol import Task

# Far above any weight of a model that works, and far below what lets float32 overflow in a gradient.
MOST_WEIGHT = 1e4

app = ClientApp(mods=[egress.gate])


@app.query("declare")
def declare(message: Message, context: Context) -> Message:
    """Answers an offered plan with the rounded number of patients, or refuses its terms."""
    asked = read_asked(message)
    site, plan = open_site(context, asked), asked.plan
    check_terms(site, plan)
    fewer = site.fewer_steps(plan.strategy.local_steps) or 0
    said = Answer(site=site.name, plan=plan.hash, patients=site.declared, steps=fewer)
    return Message(answer(said), reply_to=message)


@app.query("accept")
def accept(message: Message, context: Context) -> Message:
    """Books a plan with its participants in the site's ledger, once, before any round of it."""
    asked = read_asked(message)
    site, plan = open_site(context, asked), asked.plan
    check_terms(site, plan)
    check_share(site, plan)
    check_steps(site, plan)
    site.ledger.open_plan(
        plan.hash,
        release_of(plan, site=site.name),
        plan.to_json(),
        # The door has looked for one; another process of this site may have booked it since.
        rival=lambda terms: anchor.offer_of(terms) == plan.offer_hash,
    )
    return Message(answer(Answer(site=site.name, plan=plan.hash)), reply_to=message)


@app.train()
def train_round(message: Message, context: Context) -> Message:
    """Answers a round: from the ledger if it was answered before, else trained, cached, then sent."""
    begun, release = READY.pop(id(message), (None, None))
    if begun is None or begun.message is not message:
        begun, release = begin(message, context)
    if release is None:
        with phase("training"):
            update = _update(begun)
        (release,) = complete([begun], [update])
    request = begun.request
    said = Answer(site=begun.site.name, plan=begun.plan.hash, round=request.round, base=request.base)
    return reply_to(message, answer(said, release))


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A round that a site takes."""

    message: Message
    site: OpenSite
    plan: Plan
    request: Round
    model: Arrays
    correction: Arrays | None = None

    @property
    def context(self) -> bytes:
        """For what the site's noise and draws are in this round."""
        # The base stands in it so that noise on two bases cannot cancel, even with a ledger lost. A
        # simulation has no secret to guard, and its engines, whose models differ in last bits, draw alike.
        base = "" if self.site.simulated else f" base {self.request.base}"
        return f"plan {self.plan.hash} round {self.request.round}{base} data {self.site.data_sha256}".encode()

    @property
    def stream(self) -> NoiseStream:
        """The site's noise and draws for this round."""
        return NoiseStream(self.site.secret, self.context)


READY: Final[dict[int, tuple[Begun, Packed]]] = {}
"""Rounds of this process that were worked out with others of their kind (client/ahead.py)."""


def begin(message: Message, context: Context) -> tuple[Begun, Packed | None]:
    """A round that the site takes, reserved in its ledger before anything is computed.

    Returns:
        The round, and its release if it is complete already: then it is answered with that.

    Raises:
        ClientError: why it does not take it.
    """
    begun = checked(message, context)
    (found,) = reserve([begun])
    if isinstance(found, ClientError):
        raise found
    return begun, found


def checked(message: Message, context: Context) -> Begun:
    """A round that the site would take; it is not in the ledger yet.

    Raises:
        ClientError: why it does not take it.
    """
    request, model = read_train_request(message.content)
    asked = asked_to_train(request)
    site, plan = open_site(context, asked), asked.plan
    check_base(site, plan, request, model)
    check_share(site, plan)
    correction = corrected(site, plan, read_correction(message.content))
    return Begun(
        message=message,
        site=site,
        plan=plan,
        request=request,
        model=model,
        correction=correction,
    )


def reserve(rounds: Sequence[Begun]) -> list[Packed | ClientError | None]:
    """Reserves the same round of one plan and base in the ledgers of some sites; see `client.booking`."""
    plan, request = rounds[0].plan, rounds[0].request
    found: list[Packed | ClientError | None] = [None] * len(rounds)
    by_steps: dict[int, list[int]] = {}
    for place, entry in enumerate(rounds):
        by_steps.setdefault(plan.steps_of(entry.site.name), []).append(place)
    with phase("sites' ledgers"):
        for steps, places in by_steps.items():
            ledgers = [rounds[place].site.ledger for place in places]
            reserved = booking.reserve(ledgers, plan.hash, request.round, request.base, steps)
            for place, entry_found in zip(places, reserved, strict=True):
                found[place] = entry_found
    return found


def complete(rounds: Sequence[Begun], updates: Sequence[Mapping[str, np.ndarray]]) -> list[Packed]:
    """The releases of rounds that were reserved together, once they are in the ledgers."""
    plan, request = rounds[0].plan, rounds[0].request
    releases = [packed(update) for update in updates]
    with phase("sites' ledgers"):
        ledgers = [entry.site.ledger for entry in rounds]
        booking.complete(ledgers, plan.hash, request.round, request.base, releases)
    return releases


@app.query("question")
def question(message: Message, context: Context) -> Message:
    """Answers a question with noisy counts of patients, from the ledger if it was answered before."""
    asked, desk = questions.read_question(message), questions.desk_of(context)
    told = desk.answer(asked)
    said = Answer(site=desk.name, plan=asked.question.hash)
    return Message(question_answer(said, told), reply_to=message)


def check_terms(site: OpenSite, plan: Plan) -> None:
    """Refuses a plan that is not what this site would run.

    Raises:
        ClientError: terms_refused or too_few_patients.
    """
    config, terms = site.config, plan.terms
    private = config.privacy.name != "none"
    if (plan.task, plan.model) != (tasks.learnt(config.task), config.model):
        raise ClientError("terms_refused", "The plan's task or model is not the one that this site runs.")
    if private and not terms.private:
        raise ClientError("terms_refused", "The plan has no privacy; this site requires it (privacy.name).")
    if private and terms.delta > config.privacy.delta:
        raise ClientError("terms_refused", "The plan's delta is above this site's (privacy.delta).")
    if plan.strategy.name in EVEN and site.fewer_steps(plan.strategy.local_steps) is not None:
        raise ClientError(
            "terms_refused", f"strategy={plan.strategy.name} compares updates of as many steps at all sites."
        )
    if site.patients < config.privacy.minimum_patients:
        raise ClientError(
            "too_few_patients",
            f"Fewer patients can train than the least of {config.privacy.minimum_patients}"
            " (privacy.minimum_patients).",
        )


def check_share(site: OpenSite, plan: Plan) -> None:
    """Refuses a plan in which this site is absent, or stands with another number of patients.

    Raises:
        ClientError: terms_refused. A smaller number would divide less and so amplify each patient;
            a greater one would give the site more weight than it declared.
    """
    if not plan.names(site.name) or plan.patients_of(site.name) != site.declared:
        raise ClientError("terms_refused", "The plan does not name this site with the patients it declared.")


def check_steps(site: OpenSite, plan: Plan) -> None:
    """Refuses a plan by which this site would do other than the local steps that it declares.

    Raises:
        ClientError: terms_refused. More steps would cost more than the site's people allow.
    """
    if plan.steps_of(site.name) != (site.fewer_steps(plan.strategy.local_steps) or plan.strategy.local_steps):
        raise ClientError("terms_refused", "The plan names other local steps than this site does in a round.")


def check_base(site: OpenSite, plan: Plan, request: Round, model: Arrays) -> None:
    """Refuses a round that the plan does not have, or a model that is not the one it names.

    Raises:
        ClientError: round_unknown or base_mismatch.
    """
    if not 1 <= request.round <= plan.rounds:
        raise ClientError("round_unknown", f"The plan has rounds 1 to {plan.rounds}; {request.round} came.")
    if not plan.asks(site.name, request.round):
        raise ClientError("round_unknown", f"The plan does not ask this site in round {request.round}.")
    digest, sound = _SEEN.judged(model)
    if digest != request.base or (request.round == 1 and request.base != plan.base_sha256):
        raise ClientError("base_mismatch", "The model that came is not the one that the request names.")
    if {name: array.shape for name, array in model.items()} != site.all_shapes:
        raise ClientError("base_mismatch", "The model that came has not the arrays of the plan's network.")
    # Attack: a base of huge weights makes gradients overflow for some patients' data and not for
    # others', and whether training failed would say which, without noise and without a charge.
    if not sound:
        raise ClientError(
            "base_mismatch", f"The model that came is not float32, not finite, or above {MOST_WEIGHT:g}."
        )


class _Seen(threading.local):
    """What is known of the model that was judged last: the sites of a simulation all get the same object."""

    def __init__(self) -> None:
        self._model: Arrays = {}
        self._verdict = ("", False)

    def judged(self, model: Arrays) -> tuple[str, bool]:
        """Its SHA-256, and whether its weights are of the size of weights."""
        if model is not self._model or any(array.flags.writeable for array in model.values()):
            sound = all(
                array.dtype == np.float32 and bool((np.abs(array) <= MOST_WEIGHT).all())
                for array in model.values()
            )
            self._verdict, self._model = (packed(model).sha256, sound), model
        return self._verdict


_SEEN = _Seen()


def corrected(site: OpenSite, plan: Plan, correction: Arrays | None) -> Arrays | None:
    """What the coordinator adds to this site's gradients, shortened to what the plan can give.

    Attack: like a base of huge weights, a huge correction makes gradients overflow for some patients'
    data and not for others'. A member who lied within its bound could make it too long as well; then
    it is shortened, and the round goes on.

    Raises:
        ClientError: base_mismatch, if the strategy has none, or arrays or numbers are not in order.
    """
    if correction is None:
        return None
    if plan.strategy.name != "scaffold":
        raise ClientError("base_mismatch", "A correction comes with strategy=scaffold, and with no other.")
    shapes = {name: array.shape for name, array in correction.items()}
    if shapes != dict(site.shapes) or any(array.dtype != np.float32 for array in correction.values()):
        raise ClientError("base_mismatch", "The correction has not the arrays of an update.")
    if not all(bool((np.abs(array) <= MOST_WEIGHT).all()) for array in correction.values()):
        raise ClientError("base_mismatch", f"The correction is not finite, or above {MOST_WEIGHT:g}.")
    size = sum(array.size for array in correction.values())
    length, most = norm(correction), correction_bound(size, plan)
    if not plan.terms.private or length <= most:
        return correction
    return {name: (array * (most / length)).astype(np.float32) for name, array in correction.items()}


def _update(begun: Begun) -> Arrays:
    """Raises PrivacyError: without privacy only, a gradient is not finite."""
    site, plan = begun.site, begun.plan
    by_hand = not plan.terms.private and not releases(plan.strategy)
    shop = _SHOPS.of(site.model, site.task) if by_hand else None
    if shop is None:
        return train(
            model=site.model,
            state=begun.model,
            examples=site.examples,
            task=site.task,
            terms=plan.terms,
            strategy=plan.strategy_of(site.name),
            declared=plan.patients_of(site.name),
            stream=begun.stream,
            correction=begun.correction,
        )
    # The steps of a chain without privacy are written out, and take half the time.
    work = Work(
        examples=site.examples,
        declared=plan.patients_of(site.name),
        stream=begun.stream,
        correction=begun.correction,
        steps=plan.steps_of(site.name),
    )
    base = Base(state=begun.model, terms=plan.terms, strategy=plan.strategy)
    ((_, update),) = shop.trained(base, [work])
    if isinstance(update, PrivacyError):
        raise update
    return update


class _Shops(threading.local):
    """Workshops, each for as long as there is its model: a hospital makes another for each request."""

    def __init__(self) -> None:
        self._by_model: WeakKeyDictionary[nn.Module, Workshop | None] = WeakKeyDictionary()

    def of(self, model: nn.Module, task: Task) -> Workshop | None:
        """That of a model, which is scratch space of one task's sites; None of one that is no chain."""
        if model not in self._by_model:
            self._by_model[model] = None if chain_of(model) is None else Workshop(model, task)
        return self._by_model[model]


_SHOPS = _Shops()
