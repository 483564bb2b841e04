"""The verdict of a hospital's policy on a question: pure, without I/O.

In this order; the first that fails refuses:

1. admit: this site answers no questions at all.
2. version, key: as for a plan (client/policy.py).
3. delta: a bound that fails more often than this site accepts.
4. epsilon: more than one question may cost, by this site's own accounting.
5. claim: the question says a lower epsilon than its noise costs.
6. budget: with this question the site's whole life would cost more than it may.

How many patients there are refuses nothing: that would be an answer without noise.
"""

from __future__ import annotations

from client.policy import ANY, CLAIM_TOLERANCE, Policy, Verdict
from privacy.accounting import epsilon
from privacy.questions import release
from trust.plan import RELEASE
from trust.question import Question


def judge_question(policy: Policy, question: Question, *, key: str, spent_after: float) -> Verdict:
    """The verdict on a question whose signature holds.

    Args:
        key: id of the coordinator's key that signed it.
        spent_after: epsilon over the site's life with this question, at the policy's delta.
    """
    for holds, code, text in [*_asked(policy, question, key), *_price(policy, question, spent_after)]:
        if not holds:
            return Verdict(decision="refuse", code=code, text=text)
    if policy.automatic_questions:
        return Verdict(decision="admit")
    text = "The policy leaves this question to a person."
    return Verdict(decision="wait", code="awaiting_approval", text=text)


def question_cost(question: Question, delta: float) -> float:
    """Epsilon of an answer at `delta`, by this site's own accounting."""
    return epsilon([release(question.noise_multiplier)], delta)


def _asked(policy: Policy, question: Question, key: str) -> list[tuple[bool, str, str]]:
    return [
        (policy.questions, "question_refused", "This site answers no questions ([questions] admit)."),
        (
            question.versions == RELEASE,
            "version_refused",
            f"The question is for release {question.versions}; this site runs {RELEASE}.",
        ),
        (
            ANY in policy.coordinators or key in policy.coordinators,
            "key_refused",
            f"The question is signed by key {key}, which [admit] coordinators does not name.",
        ),
    ]


def _price(policy: Policy, question: Question, spent_after: float) -> list[tuple[bool, str, str]]:
    own, most = question_cost(question, policy.delta), policy.epsilon_per_question
    claimed = question_cost(question, question.delta) <= question.epsilon * (1 + CLAIM_TOLERANCE)
    return [
        (
            question.delta <= policy.delta,
            "delta_refused",
            f"The question's delta is {question.delta:g}; at most {policy.delta:g} is admitted.",
        ),
        (
            own <= most,
            "epsilon_refused",
            (
                f"The question costs epsilon {own:.4g} at delta {policy.delta:g}, unit patient; {most:g} is"
                " admitted ([questions] epsilon_per_question)."
            ),
        ),
        (
            claimed,
            "terms_refused",
            f"The question claims epsilon {question.epsilon:.4g}, but its noise costs more.",
        ),
        (
            spent_after <= policy.epsilon_over_life,
            "budget_exhausted",
            (
                f"With this question the site would have spent epsilon {spent_after:.4g} at delta"
                f" {policy.delta:g}, unit patient; {policy.epsilon_over_life:g} is allowed"
                " ([privacy] epsilon_over_life)."
            ),
        ),
    ]
