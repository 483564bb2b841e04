"""A hospital meets its own policy, ledger and gate in the ClientApp, whatever the coordinator asks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from client.errors import ClientError
from client.hospital import Hospital, close_hospitals, hospital
from client.inbox import Inbox
from client.ledger import Ledger
from client.policy import Policy
from client.records import MOST_REFUSALS_MIN, Fact
from client.site import rehearsing
from link.wire import DECLARE, plan_request
from tests.hospital_home import AUTOMATIC, Coordinator, founded, write_policy
from trust.audit import AuditLog
from trust.digest import sha256
from trust.plan import Plan
from trust.signing import Signer, sign_plan


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Coordinator]:
    with founded(tmp_path) as coordinator:
        yield coordinator


@pytest.fixture
def automatic(tmp_path: Path) -> Iterator[Coordinator]:
    with founded(tmp_path, AUTOMATIC) as coordinator:
        yield coordinator


def _ledger(coordinator: Coordinator) -> Ledger:
    return Ledger(coordinator.home.ledger, ceiling_epsilon=None, delta=1e-4)


def test_an_unsigned_plan_is_refused_and_nobody_is_bothered_with_it(automatic: Coordinator) -> None:
    assert automatic.declare(signature="").error == "plan_unsigned"
    assert automatic.accept(signature="").error == "plan_unsigned"
    assert automatic.train(1, signature="")[0].error == "plan_unsigned"
    with Inbox(automatic.home.inbox) as inbox:
        assert inbox.all() == ()


def test_a_plan_of_a_foreign_key_is_refused(automatic: Coordinator) -> None:
    foreign = sign_plan(automatic.offer.to_json(), Signer.generate())
    assert automatic.declare(signature=foreign).error == "key_refused"


def test_a_signature_holds_for_the_very_plan_that_was_signed(automatic: Coordinator) -> None:
    signature = sign_plan(automatic.offer.to_json(), automatic.signer)
    other = replace(automatic.offer, rounds=2, terms=replace(automatic.offer.terms, steps=2))
    assert automatic.declare(other, signature=signature).error == "key_refused"
    assert automatic.accept(automatic.plan, signature=signature).error == "key_refused"


def test_a_signature_of_an_audit_head_is_none_of_a_plan(automatic: Coordinator) -> None:
    head = automatic.signer.sign("head", automatic.offer.to_json().encode())
    assert automatic.declare(signature=head).error == "key_refused"


def test_a_plan_over_the_epsilon_of_the_policy_is_refused_with_its_code(waiting: Coordinator) -> None:
    write_policy(waiting.home, replace(AUTOMATIC, epsilon_per_plan=4.0))
    assert waiting.declare().error == "epsilon_refused"
    with Inbox(waiting.home.inbox) as inbox:
        (offer,) = inbox.all()
    assert (offer.state, offer.code, offer.who) == ("refused", "epsilon_refused", "policy")
    assert "epsilon_per_plan" in offer.why


def test_an_approval_does_not_overrule_the_policy(waiting: Coordinator) -> None:
    write_policy(waiting.home, replace(AUTOMATIC, epsilon_per_plan=4.0))
    waiting.declare()
    _approve(waiting)
    assert waiting.declare().error == "epsilon_refused"


def test_a_plan_waits_for_a_person_and_runs_once_approved(waiting: Coordinator) -> None:
    assert [waiting.declare().error for _ in range(3)] == ["awaiting_approval"] * 3
    assert waiting.accept().error == "awaiting_approval"
    assert waiting.train(1)[0].error == "awaiting_approval"
    _approve(waiting)
    said = waiting.declare()
    assert (said.error, said.site, said.patients) == ("", "alpha", 10)
    assert waiting.accept().error == ""
    said, update = waiting.train(1)
    assert said.error == ""
    assert update is not None
    assert list(update) == ["head.weight"]
    with Inbox(waiting.home.inbox) as inbox:
        assert [offer.state for offer in inbox.all()] == ["running"]


def test_the_last_round_ends_a_plan(automatic: Coordinator) -> None:
    automatic.declare()
    automatic.accept()
    for number in range(1, automatic.plan.rounds + 1):
        assert automatic.train(number)[0].error == ""
    with Inbox(automatic.home.inbox) as inbox:
        assert [offer.state for offer in inbox.all()] == ["done"]
    assert automatic.train(automatic.plan.rounds)[0].error == ""


def test_a_plan_that_people_refused_gives_no_further_round(automatic: Coordinator) -> None:
    automatic.declare()
    automatic.accept()
    assert automatic.train(1)[0].error == ""
    with Inbox(automatic.home.inbox) as inbox:
        inbox.refuse(automatic.offer.hash, code="plan_refused", who="dr a", why="enough", now_s=1.0)
    assert automatic.train(2)[0].error == "plan_refused"
    assert automatic.declare().error == "plan_refused"


def test_after_a_restart_a_round_is_answered_with_the_same_bytes_and_charged_once(
    automatic: Coordinator,
) -> None:
    automatic.declare()
    automatic.accept()
    _, first = automatic.train(1)
    close_hospitals()
    _, again = automatic.train(1)
    assert first is not None
    assert again is not None
    np.testing.assert_array_equal(first["head.weight"], again["head.weight"])
    with _ledger(automatic) as ledger:
        (entry,) = ledger.plans()
    assert (entry.plan_hash, entry.rounds_complete) == (automatic.plan.hash, 1)


def test_two_hospitals_with_the_same_data_release_other_noise(tmp_path: Path) -> None:
    updates = []
    for name in ("one", "two"):
        with founded(tmp_path / name, AUTOMATIC) as coordinator:
            coordinator.declare()
            coordinator.accept()
            updates.append(coordinator.train(1)[1])
    assert updates[0] is not None
    assert updates[1] is not None
    assert not np.array_equal(updates[0]["head.weight"], updates[1]["head.weight"])


def test_a_life_s_budget_is_spent_once(automatic: Coordinator) -> None:
    write_policy(automatic.home, replace(AUTOMATIC, epsilon_over_life=10.0))
    assert automatic.declare().error == ""
    assert automatic.accept().error == ""
    second = replace(automatic.offer, purpose="f" * 64)
    assert automatic.declare(second).error == "budget_exhausted"
    assert automatic.accept(second.with_participants({"alpha": 10, "beta": 10})).error == "budget_exhausted"
    # Asked for the first again, as a coordinator does after a crash, it is not counted twice.
    assert automatic.declare().error == ""
    assert automatic.train(1)[0].error == ""


def test_an_approval_holds_for_one_plan_of_an_offer(automatic: Coordinator) -> None:
    automatic.declare()
    assert automatic.accept().error == ""
    other = automatic.offer.with_participants({"alpha": 10, "beta": 15})
    assert automatic.accept(other).error == "plan_differs"
    with _ledger(automatic) as ledger:
        assert [entry.plan_hash for entry in ledger.plans()] == [automatic.plan.hash]


def test_a_plan_that_was_never_offered_is_not_accepted(automatic: Coordinator) -> None:
    assert automatic.accept().error == "plan_unknown"


def test_too_few_patients_refuse_even_an_approved_plan(tmp_path: Path) -> None:
    with founded(tmp_path, replace(AUTOMATIC, minimum_patients=13)) as coordinator:
        assert coordinator.declare().error == "too_few_patients"


def test_a_changed_policy_holds_from_the_next_request_on(automatic: Coordinator) -> None:
    automatic.declare()
    automatic.accept()
    write_policy(automatic.home, replace(AUTOMATIC, tasks=("glucose",)))
    assert automatic.train(1)[0].error == "task_refused"
    automatic.home.policy.write_text("[admit]\n")
    assert automatic.train(1)[0].error == "policy_unreadable"
    write_policy(automatic.home, AUTOMATIC)
    assert automatic.train(1)[0].error == ""


def test_an_offer_refused_by_the_policy_waits_again_once_the_policy_allows_it(waiting: Coordinator) -> None:
    allowed = replace(AUTOMATIC, automatic=False)
    write_policy(waiting.home, replace(allowed, tasks=("glucose",)))
    assert waiting.declare().error == "task_refused"
    write_policy(waiting.home, allowed)
    assert waiting.declare().error == "awaiting_approval"


def test_patients_who_arrive_during_a_plan_do_not_end_it(automatic: Coordinator) -> None:
    automatic.declare()
    automatic.accept()
    path = Path(str(automatic.home.settings().data_path)) / "patients.csv"
    table = pd.read_csv(path)
    more = table.assign(patient_id=[f"new-{place}" for place in range(len(table))])
    pd.concat([table, more]).to_csv(path, index=False)
    assert automatic.train(1)[0].error == ""
    # Nor does the declared number tell of them, until the site's people say so.
    assert automatic.declare(replace(automatic.offer, purpose="e" * 64)).patients == 10
    automatic.home.declared.unlink()
    assert automatic.declare(replace(automatic.offer, purpose="d" * 64)).patients == 25


def test_every_offer_is_answered_with_the_same_number_whatever_it_says(automatic: Coordinator) -> None:
    assert automatic.declare().patients == 10
    path = Path(str(automatic.home.settings().data_path)) / "patients.csv"
    table = pd.read_csv(path)
    table[table["patient_id"] < "alpha-06"].to_csv(path, index=False)
    for number in range(3):
        close_hospitals()
        assert automatic.declare(replace(automatic.offer, purpose=f"{number}")).patients == 10
    said = automatic.accept(automatic.offer.with_participants({"alpha": 5, "beta": 10}))
    assert said.error == "terms_refused"
    assert automatic.accept().error == ""
    assert automatic.home.declared.stat().st_mode & 0o777 == 0o600
    automatic.home.declared.write_text('{"heart": 7}')
    assert automatic.declare(replace(automatic.offer, purpose="x")).error == "home_unreadable"


def test_after_so_many_offers_in_a_day_a_person_decides(tmp_path: Path) -> None:
    policy = replace(AUTOMATIC, automatic_per_day=2, epsilon_over_life=1000.0)
    with founded(tmp_path, policy) as coordinator:
        clock = [1_000_000.0]
        with rehearsing(Hospital(coordinator.home, records=Noted(), clock=lambda: clock[0])):
            offers = [replace(coordinator.offer, purpose=str(number)) for number in range(4)]
            said = [coordinator.declare(offer).error for offer in offers]
            assert said == ["", "", "awaiting_approval", "awaiting_approval"]
            assert coordinator.declare(offers[0]).error == ""  # what runs goes on
            _approve(coordinator, offers[2])
            assert coordinator.declare(offers[2]).error == ""
            clock[0] += 86_401.0
            assert coordinator.declare(offers[3]).error == ""


def test_data_that_cannot_be_read_is_told_by_a_code(automatic: Coordinator) -> None:
    folder = Path(str(automatic.home.settings().data_path))
    (folder / "patients.csv").write_text("patient_id,age\nalpha-00,not a number\n")
    assert automatic.declare().error == "data_unreadable"
    automatic.home.save(replace(automatic.home.settings(), data_path=str(folder / "none")))
    close_hospitals()
    assert automatic.declare().error == "data_unreadable"


def test_a_member_that_only_receives_models_trains_nothing(automatic: Coordinator) -> None:
    automatic.home.save(replace(automatic.home.settings(), role="receiver"))
    assert automatic.declare().error == "plan_refused"


def test_a_home_that_is_none_answers_with_a_code(automatic: Coordinator) -> None:
    automatic.home.settings_path.unlink()
    assert automatic.declare().error == "home_unreadable"


def test_a_secret_that_others_can_read_stops_the_site(automatic: Coordinator) -> None:
    automatic.home.secret_path.chmod(0o644)
    assert automatic.declare().error == "home_unreadable"


class Noted:
    """Records in memory, of which some cannot be written."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken
        self.kinds: list[str] = []
        self.whys: list[str] = []
        self.facts: list[dict[str, Fact]] = []

    def write(self, kind: str, *, who: str, why: str = "", **facts: Fact) -> None:
        if kind == self.broken:
            raise ClientError("audit_failed", "The disk is full.")
        self.kinds.append(kind)
        self.whys.append(why)
        self.facts.append(facts)

    def policy(self, sha256: str, *, who: str) -> None:
        self.write("policy_changed", who=who, policy=sha256)

    def check(self, ledger: Ledger) -> None:
        pass

    def close(self) -> None:
        pass


def test_what_leaves_was_recorded_before(automatic: Coordinator) -> None:
    records = Noted()
    with rehearsing(Hospital(automatic.home, records=records)):
        automatic.declare()
        automatic.accept()
        automatic.train(1)
        automatic.train(99)
    assert records.kinds.pop(0) == "policy_changed"
    assert records.kinds == ["offered", "approved", "declared", "accepted", "released", "refused"]
    assert records.facts[5]["plan"] == automatic.plan.hash
    assert records.facts[6]["code"] == "round_unknown"


@pytest.mark.parametrize("broken", ["offered", "approved", "declared", "accepted", "released"])
def test_without_its_record_nothing_leaves(automatic: Coordinator, broken: str) -> None:
    said = []
    with rehearsing(Hospital(automatic.home, records=Noted(broken))):
        said = [automatic.declare(), automatic.accept(), automatic.train(1)[0]]
    assert "audit_failed" in [answer.error for answer in said]
    last = {"offered": 0, "approved": 0, "declared": 0, "accepted": 1, "released": 2}[broken]
    assert said[last].error == "audit_failed"
    assert said[last].patients == 0


def test_each_policy_stands_in_the_log_before_it_is_acted_on(automatic: Coordinator) -> None:
    def changes() -> list[tuple[int, Fact, Fact]]:
        with AuditLog(automatic.home.audit) as log:
            return [
                (record.number, record.facts["before"], record.facts["policy"])
                for record in log.records(kinds=["policy_changed"])
            ]

    def told() -> str:
        return sha256(automatic.home.policy.read_bytes())

    first = told()
    automatic.declare()
    assert changes() == [(0, "", first)]
    automatic.accept()
    close_hospitals()
    assert automatic.train(1)[0].error == ""
    assert len(changes()) == 1  # neither a request nor a restart changes it
    write_policy(automatic.home, replace(AUTOMATIC, epsilon_per_plan=100.0))
    second = told()
    automatic.declare(replace(automatic.offer, purpose="another"))
    with AuditLog(automatic.home.audit) as log:
        (approved,) = [record.number for record in log.records(kinds=["approved"])][1:]
    assert changes()[1:] == [(approved - 1, first, second)]
    automatic.home.policy.write_text("[admit")
    third = told()
    assert automatic.train(2)[0].error == "policy_unreadable"
    assert changes()[2][1:] == (second, third)


def test_a_policy_that_cannot_be_recorded_admits_nothing(automatic: Coordinator) -> None:
    records = Noted()
    hospital = Hospital(automatic.home, records=records)
    write_policy(automatic.home, replace(AUTOMATIC, epsilon_per_plan=100.0))
    records.broken = "policy_changed"
    with rehearsing(hospital):
        assert automatic.declare().error == "audit_failed"
        assert automatic.declare().error == "audit_failed"
        records.broken = ""
        assert automatic.declare().error == ""
    with pytest.raises(ClientError, match="audit_failed"):
        Hospital(automatic.home, records=Noted("policy_changed"))


def test_a_request_that_is_no_plan_is_malformed(automatic: Coordinator) -> None:
    assert automatic.ask(DECLARE, plan_request("{}", "x"))[0].error == "malformed"


def test_a_hospital_is_kept_open_in_its_thread(automatic: Coordinator) -> None:
    assert hospital(str(automatic.home.directory)) is hospital(str(automatic.home.directory))


def _approve(coordinator: Coordinator, plan: Plan | None = None) -> None:
    with Inbox(coordinator.home.inbox) as inbox:
        inbox.approve((plan or coordinator.offer).offer_hash, who="dr a", why="fine", now_s=1.0)


def test_the_default_policy_is_what_a_new_home_has(waiting: Coordinator) -> None:
    assert (
        hospital(str(waiting.home.directory))
        .verdict(waiting.offer, waiting.signer.key_id, patients=12)
        .decision
        == "wait"
    )
    assert isinstance(AUTOMATIC, Policy)


def test_of_a_flood_of_refusals_the_log_holds_some_and_their_number(automatic: Coordinator) -> None:
    records, clock = Noted(), [1000.0]
    hospital = Hospital(automatic.home, records=records, clock=lambda: clock[0])
    for _ in range(500):
        hospital.refused(None, ClientError("malformed", "no plan"), "malformed")
    assert records.kinds.count("refused") == MOST_REFUSALS_MIN
    clock[0] += 61.0
    hospital.refused(None, ClientError("malformed", "no plan"), "malformed")
    assert records.kinds.count("refused") == MOST_REFUSALS_MIN + 1
    assert f"{500 - MOST_REFUSALS_MIN} refusals" in records.whys[-1]
