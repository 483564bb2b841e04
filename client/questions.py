"""How a hospital answers a question: offered, judged, approved, charged, answered once.

It goes the way of a plan (client/hospital.py), with the same inbox, ledger and audit log, in one request
instead of many. The order is what keeps it to one release: the charge and the reservation are on disk
before anything is counted, the answer is before it leaves, and a question that is repeated gets the same
bytes. Noise follows from the site's secret, the question and the data, so what a kill interrupts is made
again to the same counts; on data that changed meanwhile it is another, and nothing had left.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from flwr.app import Context, Message

from client.cells import cells_of, cells_sha256
from client.data import read_data
from client.errors import ClientError
from client.home import SiteHome, SiteSettings
from client.inbox import POLICY, Inbox, Offer
from client.ledger import Ledger
from client.policy import Policy, Verdict
from client.question_policy import judge_question, question_cost
from client.records import Records
from client.site import keeper_of
from link.wire import Counts, read_plan_request
from privacy.accounting import lifetime_epsilon
from privacy.noise import NoiseStream, new_site_secret
from privacy.questions import count, gather, noisy, release, suppress
from trust.digest import sha256
from trust.errors import TrustError
from trust.question import Question, from_json
from trust.signing import verify

logger = logging.getLogger(f"twinward.{__name__}")

_ROUND, _STEPS = 1, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question, the text that came, and the coordinator's signature over it."""

    question: Question
    text: str
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionRehearsal:
    """What a question would mean for this site.

    Attributes:
        verdict: of the policy.
        told: an answer as it would leave, with noise of a secret that is thrown away.
        counted: without noise; stays here. patients: of the site.
        epsilon, spent, spent_after: of the question, and of the site's life without and with it.
        delta: of the policy, at which they are stated.
    """

    question: Question
    verdict: Verdict
    told: Counts
    counted: tuple[int, ...]
    patients: int
    epsilon: float
    spent: float
    spent_after: float
    delta: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Where one hospital answers questions.

    Attributes:
        keys: of coordinators, id → public key.
        admit: returns if policy and people let an offer be answered; raises ClientError.
    """

    home: SiteHome
    settings: SiteSettings
    keys: Mapping[str, str]
    secret: bytes
    policy: Policy
    ledger: Ledger
    inbox: Inbox
    records: Records
    admit: Callable[[Offer, Verdict], None]
    clock: Callable[[], float] = time.time

    @property
    def name(self) -> str:
        """Under which the federation knows the site."""
        return self.settings.site

    def answer(self, asked: Asked) -> Counts:
        """The noisy counts, charged; the same at every repetition.

        Raises:
            ClientError: why the site does not answer.
        """
        question = asked.question
        if self.settings.role != "site":
            raise ClientError("question_refused", "This member only receives models; it has no patients.")
        key = self._signer(asked)
        offer = self._offered(asked, key)
        verdict = self.verdict(question, key)
        self.admit(offer, verdict)
        kept = self.ledger.cached(question.hash, _ROUND, question.hash)
        if kept is not None:
            return _from_payload(kept)
        site = read_data(self.home)
        cell_P = cells_of(question, site)  # before the charge: what is not known here costs nothing
        if offer.state in ("waiting", "refused"):  # the policy alone lets it be answered
            self.records.write("approved", who=POLICY, plan=question.hash)
            self.inbox.approve(question.hash, who=POLICY, now_s=self.clock())
        self.ledger.open_plan(question.hash, release(question.noise_multiplier), question.to_json())
        kept = self.ledger.reserve(question.hash, _ROUND, question.hash, _STEPS)
        if kept is None:
            told = _told(
                question, count(cell_P, question.cells), cells_sha256(cell_P, site), self.secret, self.policy
            )
            kept = _payload(told)
            self.ledger.complete(question.hash, _ROUND, question.hash, kept)
        return _from_payload(kept)

    def verdict(self, question: Question, key: str) -> Verdict:
        """What the policy says to a question now."""
        return judge_question(self.policy, question, key=key, spent_after=self.spent_after(question))

    def spent_after(self, question: Question) -> float:
        """Epsilon over the site's life with this question, which may be in the ledger already."""
        plans = self.ledger.plans()
        releases = [entry.release for entry in plans]
        if question.hash not in {entry.plan_hash for entry in plans}:
            releases.append(release(question.noise_multiplier))
        return lifetime_epsilon(releases, self.policy.delta)

    def released(self, question: Question, told: Counts) -> None:
        """Checks that what is about to leave was charged, records it, then moves the offer on.

        Raises:
            ClientError: release_refused, if it is not what the ledger holds; audit_failed. Nothing may
                leave then.
        """
        payload, plan = _payload(told), question.hash
        if self.ledger.cached(plan, _ROUND, plan) != payload:
            raise ClientError("release_refused", "The answer is not the one that was charged.")
        terms, head = release(question.noise_multiplier), self.ledger.head()
        if self.inbox.get(plan).state != "done":
            self.records.write(
                "accepted",
                who=self.name,
                plan=plan,
                offer=plan,
                epsilon=question_cost(question, self.policy.delta),
                noise_multiplier=terms.noise_multiplier,
                sampling_rate=terms.sampling_rate,
                steps=terms.steps,
                ledger_size=head.size,
                ledger_head=head.sha256,
            )
            self.inbox.run(plan, now_s=self.clock())
        self.records.write(
            "answered",
            who=self.name,
            plan=plan,
            answer=sha256(payload),
            ledger_size=head.size,
            ledger_head=head.sha256,
        )
        self.inbox.done(plan, now_s=self.clock())

    def refused(self, plan: str, error: Exception, code: str) -> None:
        """Records why a question is answered with a code; a wait is recorded once, with its offer."""
        if code == "awaiting_approval":
            return
        why = str(error) if isinstance(error, (ClientError, TrustError)) else type(error).__name__
        try:
            self.records.write("refused", who=self.name, why=why, plan=plan, code=code)
        except ClientError:  # a code says nothing of a patient; the operator must see that the log is broken
            logger.exception("a refusal could not be recorded")

    def rehearse(self, question: Question, key: str) -> QuestionRehearsal:
        """An answer with noise that is thrown away; nothing is charged, nothing leaves.

        Raises:
            ClientError: data_unreadable, quantity_unknown.
        """
        site = read_data(self.home)
        counted_C = count(cells_of(question, site), question.cells)
        return QuestionRehearsal(
            question=question,
            verdict=self.verdict(question, key),
            told=_told(question, counted_C, "", new_site_secret(), self.policy),
            counted=tuple(counted_C.tolist()),
            patients=len(site.patients),
            epsilon=question_cost(question, self.policy.delta),
            spent=lifetime_epsilon([entry.release for entry in self.ledger.plans()], self.policy.delta),
            spent_after=self.spent_after(question),
            delta=self.policy.delta,
        )

    def _signer(self, asked: Asked) -> str:
        if not asked.signature:
            raise ClientError("plan_unsigned", "The question bears no signature.")
        try:
            return verify("question", asked.text.encode(), asked.signature, self.keys)
        except TrustError as error:
            raise ClientError("key_refused", str(error)) from None

    def _offered(self, asked: Asked, key: str) -> Offer:
        found = self.inbox.find(asked.question.hash)
        if found is not None:
            return found
        record = partial(self.records.write, "offered", who=key, plan=asked.question.hash)
        return self.inbox.offer(asked.question, asked.signature, key, self.clock(), record=record)


def desk_of(context: Context) -> Desk:
    """The desk of the hospital that a node stands for.

    Raises:
        ClientError: question_refused, for a simulated site, which has no people to approve.
    """
    keeper = keeper_of(context)
    desk = None if keeper is None else keeper.questions
    if desk is None:
        raise ClientError("question_refused", "Only a hospital with a folder of its own answers questions.")
    return desk


def read_question(message: Message) -> Asked:
    """The question in a request.

    Raises:
        LinkError, PlanError: it is not of the agreed form.
    """
    request = read_plan_request(message.content)
    return Asked(question=from_json(request.plan), text=request.plan, signature=request.signature)


def _told(question: Question, counted_C: np.ndarray, data: str, secret: bytes, policy: Policy) -> Counts:
    """What is told of the counts: noisy, whole, small ones suppressed."""
    stream = NoiseStream(secret, f"question {question.hash} data {data}".encode())
    noisy_C = noisy(counted_C, question.noise_multiplier, stream)
    told = gather if question.kind == "quantiles" else suppress
    return Counts(counts=told(noisy_C, policy.smallest_count), smallest=policy.smallest_count)


def _payload(told: Counts) -> bytes:
    data = {"counts": list(told.counts), "smallest": told.smallest}
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


def _from_payload(payload: bytes) -> Counts:
    data = json.loads(payload)
    return Counts(counts=tuple(data["counts"]), smallest=data["smallest"])
