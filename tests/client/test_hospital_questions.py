"""A question meets a hospital's policy, people, ledger, gate and audit log, as a plan does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from client import egress
from client.anchor import check
from client.errors import CODES
from client.hospital import Hospital, close_hospitals, hospital
from client.inbox import Inbox
from client.ledger import Ledger
from link.local import LocalGrid
from link.wire import QUESTION, Answer, Counts, plan_request, question_answer, read_question_answer
from privacy.accounting import lifetime_epsilon
from privacy.questions import SUPPRESSED, release
from tests.hospital_home import AUTOMATIC, Coordinator, founded, write_policy
from tests.question_asked import asked, question
from trust.audit import AuditLog
from trust.question import Question
from trust.signing import Signer, sign_plan
from trust.verification import verify

ROOT = Path(__file__).parents[2]
PATIENTS = 120
ASKING = replace(AUTOMATIC, questions=True, automatic_questions=True, epsilon_per_question=2.0)


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Coordinator]:
    with founded(tmp_path, patients=PATIENTS) as coordinator:
        yield coordinator


@pytest.fixture
def automatic(tmp_path: Path) -> Iterator[Coordinator]:
    with founded(tmp_path, ASKING, patients=PATIENTS) as coordinator:
        yield coordinator


def _counts(coordinator: Coordinator, what: Question) -> tuple[int, ...]:
    said, told = asked(coordinator, what)
    assert said.error == ""
    assert told is not None
    return told.counts


def _spent(coordinator: Coordinator) -> float:
    with Ledger(coordinator.home.ledger, ceiling_epsilon=None, delta=1e-4) as ledger:
        return ledger.spent()


def _kinds(coordinator: Coordinator) -> list[str]:
    with AuditLog(coordinator.home.audit) as log:
        return [record.kind for record in log.records() if record.kind != "policy_changed"]


def test_by_default_a_question_waits_for_a_person_and_is_answered_once_approved(waiting: Coordinator) -> None:
    what = question(where=("age >= 50",))
    assert [asked(waiting, what)[0].error for _ in range(2)] == ["awaiting_approval"] * 2
    at = hospital(str(waiting.home.directory))
    with Inbox(waiting.home.inbox) as inbox:
        (offer,) = inbox.all()
    assert (offer.plan, offer.state) == (what, "waiting")
    assert _spent(waiting) == 0
    at.approve(what.hash[:8], who="dr a", why="fine")
    said, told = asked(waiting, what)
    assert (said, told is not None) == (Answer(site="alpha", plan=what.hash), True)
    with Inbox(waiting.home.inbox) as inbox:
        assert [offer.state for offer in inbox.all()] == ["done"]
    close_hospitals()
    assert asked(waiting, what) == (said, told)
    assert _kinds(waiting) == ["offered", "approved", "accepted", "answered", "answered"]
    assert _spent(waiting) == pytest.approx(lifetime_epsilon([release(4.0)], 1e-4))
    assert verify(waiting.home.audit) == []


def test_answers_lie_within_the_noise_of_what_a_table_says(automatic: Coordinator) -> None:
    table = pd.read_csv(Path(str(automatic.home.settings().data_path)) / "patients.csv")
    (found,) = _counts(automatic, question(where=("age >= 50", "sex = 1")))
    truth = int(((table["age"] >= 50) & (table["sex"] == 1)).sum())
    assert found == pytest.approx(truth, abs=30)
    histogram = _counts(automatic, question("histogram", "trestbps", edges=(90.0, 120.0, 140.0, 200.0)))
    truths = np.histogram(table["trestbps"].clip(90, 199.9), bins=[90, 120, 140, 200])[0]
    assert all(
        abs(said - true) < 30 for said, true in zip(histogram, truths, strict=True) if said != SUPPRESSED
    )


def test_small_counts_are_not_told(automatic: Coordinator) -> None:
    told = _counts(automatic, question("histogram", "sex", categories=("0", "1", "2", "unknown")))
    assert told[2:] == (SUPPRESSED, SUPPRESSED) or min(t for t in told if t != SUPPRESSED) >= 10
    write_policy(automatic.home, replace(ASKING, smallest_count=500))
    assert _counts(automatic, question(purpose="again")) == (SUPPRESSED,)


def test_the_same_question_gets_the_same_bytes_also_on_other_data_and_another_purpose_is_charged_anew(
    automatic: Coordinator,
) -> None:
    first = _counts(automatic, question())
    spent = _spent(automatic)
    table = Path(str(automatic.home.settings().data_path)) / "patients.csv"
    pd.read_csv(table).iloc[:40].to_csv(table, index=False)
    assert _counts(automatic, question()) == first
    assert _spent(automatic) == spent
    assert _counts(automatic, question(purpose="a second look"))[0] < 80
    assert _spent(automatic) > spent


@pytest.mark.parametrize(
    ("policy", "more", "code"),
    [
        ({"questions": False}, {}, "question_refused"),
        ({"epsilon_per_question": 0.5}, {}, "epsilon_refused"),
        ({}, {"epsilon": 0.5}, "terms_refused"),
        ({}, {"delta": 1e-3, "epsilon": 9.0}, "delta_refused"),
        ({}, {"versions": "9.9"}, "version_refused"),
        ({"coordinators": ("0" * 16,)}, {}, "key_refused"),
        ({"epsilon_over_life": 0.5}, {}, "budget_exhausted"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_policy_does_not_admit_is_refused_with_a_code_and_costs_nothing(
    automatic: Coordinator, policy: dict[str, object], more: dict[str, object], code: str
) -> None:
    write_policy(automatic.home, replace(ASKING, **policy))
    said, told = asked(automatic, question(**more))
    assert (said.error, told) == (code, None)
    assert code in CODES
    assert _spent(automatic) == 0
    assert _kinds(automatic)[-1] == "refused"


def test_questions_and_plans_share_one_budget(automatic: Coordinator) -> None:
    one = lifetime_epsilon([release(4.0)], 1e-4)
    write_policy(automatic.home, replace(ASKING, epsilon_over_life=1.5 * one))
    _counts(automatic, question(purpose="one"))
    _counts(automatic, question(purpose="two"))
    assert asked(automatic, question(purpose="three"))[0].error == "budget_exhausted"
    assert automatic.declare().error == "budget_exhausted"
    assert _spent(automatic) <= 1.5 * one


def test_an_unsigned_question_and_one_signed_for_something_else_are_refused(automatic: Coordinator) -> None:
    what = question()
    text = what.to_json()
    for signature, code in (
        ("", "plan_unsigned"),
        (Signer.generate().sign("question", text.encode()), "key_refused"),
        (sign_plan(text, automatic.signer), "key_refused"),
        (automatic.signer.sign("question", question(purpose="x").to_json().encode()), "key_refused"),
    ):
        assert asked(automatic, what, signature)[0].error == code
    with Inbox(automatic.home.inbox) as inbox:
        assert inbox.all() == ()


def test_people_who_refuse_are_not_asked_again_and_an_answer_is_not_repeated(automatic: Coordinator) -> None:
    what = question()
    at = hospital(str(automatic.home.directory))
    _counts(automatic, what)
    assert at.refuse(what.hash, who="dr a").state == "done"  # it has left; as a plan that is done
    other = question(purpose="other")
    write_policy(automatic.home, replace(ASKING, automatic_questions=False))
    asked(automatic, other)
    at.refuse(other.hash, who="dr a", why="no")
    assert asked(automatic, other)[0].error == "plan_refused"


def test_what_a_site_cannot_know_is_refused_before_it_is_charged(automatic: Coordinator) -> None:
    for what in (question(where=("ward = 3",)), question(where=("mean(mood) > 3",))):
        assert asked(automatic, what)[0].error == "quantity_unknown"
    assert _spent(automatic) == 0
    # Whether anybody has a value is a matter of patients, so that is counted, and paid for.
    assert asked(automatic, question(where=("mean(glucose) > 100",)))[0].error == ""


def test_a_text_that_is_no_question_is_malformed(automatic: Coordinator) -> None:
    grid = LocalGrid(__import__("client.app").app.app, {}, [str(automatic.home.directory)])
    (node,) = grid.get_node_ids()
    for text in ("{}", "[", automatic.offer.to_json(), question().to_json().replace("test", "te st  ") + " "):
        (reply,) = grid.send_and_receive([Message(plan_request(text, "x"), node, QUESTION)])
        assert read_question_answer(reply.content)[0].error == "malformed"


KILLED = """
import os, signal, sys
from pathlib import Path
import client.ledger as ledger
where = sys.argv[2]
real = getattr(ledger.Ledger, where)
def die(self, *given):
    if where != "complete":
        real(self, *given)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(ledger.Ledger, where, die)
from client.home import SiteHome
from client.hospital import Hospital
from client.questions import Asked
from trust.question import from_json
text = Path(sys.argv[3]).read_text()
asked = Asked(question=from_json(text), text=text, signature=Path(sys.argv[4]).read_text())
Hospital(SiteHome(sys.argv[1])).questions.answer(asked)
"""


def test_a_kill_between_charge_and_answer_changes_neither_the_answer_nor_the_price(
    automatic: Coordinator, tmp_path: Path
) -> None:
    what = question()
    text, undisturbed = what.to_json(), tmp_path / "other"
    (tmp_path / "question").write_text(text)
    (tmp_path / "signature").write_text(automatic.signer.sign("question", text.encode()))
    for where in ("reserve", "complete"):
        words = [
            sys.executable, "-c", KILLED, str(automatic.home.directory), where,
            str(tmp_path / "question"), str(tmp_path / "signature"),
        ]  # fmt: skip
        ended = subprocess.run(words, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
        assert ended.returncode == -signal.SIGKILL
    found = _counts(automatic, what)
    assert _spent(automatic) == pytest.approx(lifetime_epsilon([release(4.0)], 1e-4))
    with founded(undisturbed, ASKING, patients=PATIENTS) as twin:
        twin.home.secret_path.write_bytes(automatic.home.secret())
        assert _counts(twin, what) == found


def test_an_old_copy_of_the_ledger_stops_the_site_after_an_answer(
    automatic: Coordinator, tmp_path: Path
) -> None:
    _counts(automatic, question())
    close_hospitals()
    with (
        Ledger(tmp_path / "new.sqlite", ceiling_epsilon=None, delta=1e-4) as empty,
        AuditLog(automatic.home.audit) as log,
        pytest.raises(Exception, match="ledger_restored"),
    ):
        check(empty, log)


def _gated(coordinator: Coordinator, what: Question, reply: RecordDict) -> str:
    """The code with which the gate stops what a handler would have sent; empty if it lets it pass."""
    app = ClientApp(mods=[egress.gate])

    @app.query("question")
    def handler(message: Message, context: object) -> Message:
        return Message(reply, reply_to=message)

    grid = LocalGrid(app, {}, [str(coordinator.home.directory)])
    (node,) = grid.get_node_ids()
    request = plan_request(what.to_json(), "x")
    (out,) = grid.send_and_receive([Message(request, node, QUESTION)])
    return read_question_answer(out.content)[0].error


def test_the_gate_lets_nothing_pass_but_the_counts_that_were_charged(automatic: Coordinator) -> None:
    what = question("histogram", "age", edges=(20.0, 50.0, 90.0))
    said = Answer(site="alpha", plan=what.hash)
    told = Counts(counts=_counts(automatic, what), smallest=10)
    assert _gated(automatic, what, question_answer(said, told)) == ""
    wrong = [
        question_answer(said, replace(told, counts=(told.counts[0] + 1, told.counts[1]))),
        question_answer(said, replace(told, counts=(3, told.counts[1]))),
        question_answer(said, replace(told, counts=(*told.counts, 20))),
        question_answer(said, replace(told, smallest=0)),
        question_answer(said, replace(told, smallest=11)),
        question_answer(replace(said, patients=10), told),
        question_answer(replace(said, site="beta"), told),
        question_answer(replace(said, error="malformed"), told),
    ]
    more = question_answer(said, told)
    more["more"] = ConfigRecord({"a": 1})
    floats = question_answer(said, told)
    floats["counts"] = ConfigRecord({"counts": [0.5, 0.25], "smallest": 10})
    assert {_gated(automatic, what, reply) for reply in [*wrong, more, floats]} == {"release_refused"}


def test_a_rehearsal_charges_nothing_and_shows_other_noise(automatic: Coordinator) -> None:
    what = question("histogram", "age", edges=(20.0, 40.0, 55.0, 70.0, 90.0))
    at = Hospital(automatic.home)
    done = [at.questions.rehearse(what, automatic.signer.key_id) for _ in range(3)]
    assert {entry.verdict.decision for entry in done} == {"admit"}
    assert done[0].counted == done[1].counted
    assert sum(done[0].counted) == done[0].patients == PATIENTS
    assert len({entry.told.counts for entry in done}) > 1
    assert _spent(automatic) == 0
    at.close()
