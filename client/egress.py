"""The one gate through which everything passes that leaves a site, whatever runtime calls the app.

It is a mod of the ClientApp: it calls the handler, and what goes out is not what the handler made
but what the gate could check and wrote anew. So nothing leaves in a field that nobody looked at.

1. Errors: an exception becomes one code of `client.errors.CODES`. Its text stays at the site.
2. Names: site, plan, round and base in an answer are those of the site and of the request.
3. Patients and steps: only in the answer to `declare`; patients only as a rounded number, and the
   local steps that the site does in a round only where they are fewer than the plan asks.
4. Updates: only in the answer to `train`; exactly the arrays of the site's own model, float32,
   finite, and within the norm that clipping and noise can give. Under a strategy that asks for it one
   number more, the noised loss (strategies/loss_release.py), within the range that it can have.
5. Counts: only in the answer to `question`; one whole number per cell of the question, each SUPPRESSED
   or at least the smallest that is told, and letter by letter what the ledger has charged.
6. Record: what a hospital sends stands in its audit log before it leaves; if it cannot be written,
   nothing leaves.

What it is not: it cannot see whether noise was added. That the trainer does so is the trainer's
tests and the audit's matter.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import traceback
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from client.asked import Asked, read_asked
from client.errors import ClientError
from client.questions import desk_of, read_question
from client.site import Keeper, OpenSite, keeper_of, open_site
from conf.errors import TwinwardError
from link.errors import LinkError
from link.flower import reply_to
from link.stopwatch import phase
from link.wire import (
    DECLARE,
    QUESTION,
    TRAIN,
    Answer,
    Counts,
    answer,
    question_answer,
    read_answer,
    read_question_answer,
)
from privacy.errors import PrivacyError
from privacy.questions import MOST_COUNT, SUPPRESSED
from strategies import loss_release
from strategies.bound import NONFINITE, correction_bound, fault_of, norm_bound
from trust.errors import TrustError
from trust.packed import Packed
from trust.plan import PATIENTS_STEP, Plan
from trust.question import Question

logger = logging.getLogger(f"twinward.{__name__}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an answer may say.

    Attributes:
        expected: the answer's names; its patients and error are 0 and empty.
        declares: whether a number of patients may leave.
        steps: most that the answer may say of local steps.
        shapes: of the arrays of an update; None if none may leave.
        norm: greatest L2 norm of the update; None if there is no bound.
        loss: greatest loss that may stand in it, if `shapes` has one.
    """

    expected: Answer
    declares: bool = False
    steps: int = 0
    shapes: Mapping[str, tuple[int, ...]] | None = None
    norm: float | None = None
    loss: float = 0.0


def gate(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """The reply that leaves: checked and rebuilt, or a code."""
    if message.metadata.message_type == QUESTION:
        return reply_to(message, _answered(message, context, call_next))
    expected, keeper, asked = Answer(site="", plan=""), None, None
    try:
        keeper = keeper_of(context)
        site, name = _named(context, keeper)
        asked = read_asked(message)
        expected = asked.answer(name)
        if asked.kind == TRAIN:
            limits = _train_limits(open_site(context, asked) if site is None else site, asked, expected)
        else:
            limits = _said_limits(asked, expected)
        reply = call_next(message, context)
        with phase("egress gate"):
            content = inspect(reply.content, limits)
        if keeper is not None:
            keeper.released(asked, *_facts(content))
    except Exception as error:  # noqa: BLE001  whatever it is, its text must not leave
        content = answer(_error_answer(expected, code_of(error)))
        _log(error, expected.site)
        if keeper is not None:
            keeper.refused(asked, error, code_of(error))
    return reply_to(message, content)


def _named(context: Context, keeper: Keeper | None) -> tuple[OpenSite | None, str]:
    """The name of the node's site, and a simulated site itself: a hospital opens for a plan alone."""
    if keeper is not None:
        return None, keeper.name
    site = open_site(context)
    return site, site.name


def inspect(content: RecordDict, limits: Limits) -> RecordDict:
    """The same content, written anew from what was checked.

    Raises:
        ClientError: release_refused, naming the rule that it breaks and no value.
    """
    try:
        said, update = read_answer(content)
    except LinkError:
        raise ClientError("release_refused", "The answer is not of the agreed form.") from None
    expected = limits.expected
    if (said.site, said.plan, said.round, said.base) != (
        expected.site,
        expected.plan,
        expected.round,
        expected.base,
    ):
        raise ClientError("release_refused", "The answer names another site, plan, round or base.")
    if said.error:
        raise ClientError("release_refused", "Handlers raise ClientError and do not write error codes.")
    _check_patients(said.patients, limits)
    if not 0 <= said.steps <= limits.steps:
        raise ClientError("release_refused", "Local steps leave once asked, and fewer than the plan asks.")
    _check_update(update, limits)
    return answer(said, update)


def inspect_counts(content: RecordDict, expected: Answer, question: Question) -> tuple[RecordDict, Counts]:
    """The content anew, made of what may leave in the answer to a question.

    Raises:
        ClientError: release_refused, if anything else is in it.
    """
    try:
        said, told = read_question_answer(content)
    except LinkError:
        raise ClientError("release_refused", "The answer to a question is not of the agreed form.") from None
    if told is None or said != expected:
        raise ClientError("release_refused", "The answer names another site or question, or holds no counts.")
    most = question.cells * MOST_COUNT
    fits = all(value == SUPPRESSED or told.smallest <= value <= most for value in told.counts)
    if not fits or told.smallest < 1 or len(told.counts) != question.cells:
        raise ClientError("release_refused", "The counts are not those of the question, or one is too small.")
    return question_answer(said, told), told


def code_of(error: Exception) -> str:
    """The code under which an exception may be known outside the site."""
    if isinstance(error, ClientError):
        return error.code
    if isinstance(error, PrivacyError):
        return "training_failed"
    if isinstance(error, (LinkError, TrustError)):
        return "malformed"
    # Disk and memory may do next time; of anything else the same request would fail in the same way.
    transient = isinstance(error, (sqlite3.OperationalError, OSError, MemoryError))
    return "unavailable" if transient else "internal_error"


def _answered(message: Message, context: Context, call_next: ClientAppCallable) -> RecordDict:
    """What leaves in answer to a question: checked, recorded and rebuilt counts, or a code."""
    expected, desk = Answer(site="", plan=""), None
    try:
        desk = desk_of(context)
        expected = Answer(site=desk.name, plan="")
        asked = read_question(message)
        expected = Answer(site=desk.name, plan=asked.question.hash)
        reply = call_next(message, context)
        content, told = inspect_counts(reply.content, expected, asked.question)
        desk = desk_of(context)  # the policy, and with it the ledger, may have been opened anew meanwhile
        desk.released(asked.question, told)
    except Exception as error:  # noqa: BLE001  whatever it is, its text must not leave
        content = answer(_error_answer(expected, code_of(error)))
        _log(error, expected.site)
        if desk is not None:
            desk.refused(expected.plan, error, code_of(error))
    return content


def _said_limits(asked: Asked, expected: Answer) -> Limits:
    declares = asked.kind == DECLARE
    steps = asked.plan.strategy.local_steps - 1 if declares else 0
    return Limits(expected=expected, declares=declares, steps=steps)


def _train_limits(site: OpenSite, asked: Asked, expected: Answer) -> Limits:
    strategy, terms = asked.plan.strategy, asked.plan.terms
    loss = loss_release.most(strategy, terms) if loss_release.releases(strategy) else 0.0
    norm = _norm(site, asked.plan)
    return Limits(
        expected=expected,
        shapes=loss_release.shapes(site.shapes, strategy) if loss_release.releases(strategy) else site.shapes,
        norm=None if norm is None else math.hypot(norm, loss),
        loss=loss,
    )


def _facts(content: RecordDict) -> tuple[int, str]:
    """Number of patients and SHA-256 of the update that an inspected answer holds; 0 and empty if none."""
    said, update = read_answer(content)
    return said.patients, "" if update is None else update.sha256


def _norm(site: OpenSite, plan: Plan) -> float | None:
    if not plan.terms.private:
        return None  # as norm_bound says
    size = sum(math.prod(shape) for shape in site.shapes.values())
    declared = plan.patients_of(site.name)
    return norm_bound(
        size=size,
        patients=site.patients,
        declared=declared,
        terms=plan.terms,
        strategy=plan.strategy_of(site.name),
        correction=correction_bound(size, plan),
    )


def _check_patients(patients: int, limits: Limits) -> None:
    rounded = patients >= PATIENTS_STEP and patients % PATIENTS_STEP == 0
    if not (rounded if limits.declares else patients == 0):
        raise ClientError(
            "release_refused", "Only a rounded number of patients may leave, and only once asked."
        )


def _check_update(update: Packed | None, limits: Limits) -> None:
    if (update is None) != (limits.shapes is None):
        raise ClientError("release_refused", "An update leaves in the answer to a round, and nowhere else.")
    if update is None or limits.shapes is None:
        return
    if update.shapes != limits.shapes:
        raise ClientError("release_refused", "Names and shapes of the update are not those of the model.")
    if update.squares is None:
        raise ClientError("release_refused", "The update is not float32 throughout.")
    if loss_release.NAME in update and not loss_release.possible(update[loss_release.NAME], limits.loss):
        raise ClientError("release_refused", "The loss in the update is none that a site may say.")
    fault = fault_of(update, limits.norm)
    if fault == NONFINITE:
        raise ClientError("release_refused", "The update is not finite.")
    if fault:
        raise ClientError("release_refused", "The update is greater than clipping and noise allow.")


def _error_answer(expected: Answer, code: str) -> Answer:
    return Answer(
        site=expected.site, plan=expected.plan, round=expected.round, base=expected.base, error=code
    )


def _log(error: Exception, site: str) -> None:
    """To the site's own log: our own errors hold no patient's value; of others, only where they arose."""
    if isinstance(error, TwinwardError):
        level = logging.INFO if code_of(error) == "awaiting_approval" else logging.WARNING
        logger.log(level, "site %s refused a request: %s", site or "(unknown)", error)
    else:
        where = "".join(traceback.format_tb(error.__traceback__))
        logger.error("site %s failed: %s\n%s", site or "(unknown)", type(error).__name__, where)
