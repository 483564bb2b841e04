"""An offer is kept with who decided what about it, and moves only along its states."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.errors import ClientError
from client.inbox import POLICY, STATES, Inbox
from conf.schema import Model, Strategy, Task
from trust.plan import Plan, Terms

PLAN = Plan(
    purpose="test",
    task=Task(),
    model=Model(),
    strategy=Strategy(),
    terms=Terms(
        private=True,
        noise_multiplier=4.5,
        clip_norm=1.0,
        sampling_rate=1.0,
        windows_per_patient=64,
        steps=20,
        epsilon=8.0,
        delta=1e-4,
    ),
    rounds=20,
    base_sha256="0" * 64,
)
MOVES = {
    "approve": {"waiting": "approved", "refused": "approved"},
    "refuse": {"waiting": "refused", "approved": "refused", "running": "refused"},
    "reconsider": {"refused": "waiting"},
    "run": {"approved": "running"},
    "done": {"running": "done"},
}


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Inbox]:
    with Inbox(tmp_path / "inbox.sqlite") as opened:
        yield opened


def _move(inbox: Inbox, name: str) -> None:
    if name == "approve":
        inbox.approve(PLAN.hash, who="dr a", why="fine", now_s=2.0)
    elif name == "refuse":
        inbox.refuse(PLAN.hash, code="plan_refused", who="dr b", why="no", now_s=3.0)
    elif name == "reconsider":
        inbox.reconsider(PLAN.hash, now_s=4.0)
    elif name == "run":
        inbox.run(PLAN.hash, now_s=5.0)
    else:
        inbox.done(PLAN.hash, now_s=6.0)


def test_an_offer_is_kept_as_it_came_and_once(inbox: Inbox) -> None:
    offer = inbox.offer(PLAN, "signature", "key", 1.0)
    assert (offer.hash, offer.plan, offer.signature, offer.key) == (PLAN.hash, PLAN, "signature", "key")
    assert (offer.state, offer.offered_s) == ("waiting", 1.0)
    assert inbox.offer(PLAN, "another", "key", 9.0) == offer
    assert inbox.all() == (offer,)


def test_the_plan_with_participants_is_found_under_its_offer(inbox: Inbox) -> None:
    inbox.offer(PLAN, "signature", "key", 1.0)
    assert inbox.find(PLAN.with_participants({"a": 5}).offer_hash) is not None
    assert inbox.find("0" * 64) is None


def test_who_approved_when_and_why_stands_beside_it_after_a_restart(inbox: Inbox, tmp_path: Path) -> None:
    inbox.offer(PLAN, "signature", "key", 1.0)
    _move(inbox, "approve")
    inbox.close()
    with Inbox(tmp_path / "inbox.sqlite") as again:
        offer = again.get(PLAN.hash)
    assert (offer.state, offer.who, offer.why, offer.changed_s) == ("approved", "dr a", "fine", 2.0)


@settings(max_examples=40, deadline=None)
@given(moves=st.lists(st.sampled_from(sorted(MOVES)), max_size=12))
def test_any_order_of_moves_ends_where_the_table_of_moves_says(
    tmp_path_factory: pytest.TempPathFactory, moves: list[str]
) -> None:
    with Inbox(tmp_path_factory.mktemp("inbox") / "inbox.sqlite") as inbox:
        state = inbox.offer(PLAN, "s", "k", 1.0).state
        for move in moves:
            _move(inbox, move)
            state = MOVES[move].get(state, state)
            assert inbox.get(PLAN.hash).state == state
            assert state in STATES


def test_an_offer_is_named_by_the_beginning_of_its_hash_if_no_other_begins_so(inbox: Inbox) -> None:
    plans = [replace(PLAN, purpose=str(number)) for number in range(40)]
    for plan in plans:
        inbox.offer(plan, "s", "k", 1.0)
    assert inbox.get(plans[3].hash[:20]).plan == plans[3]
    firsts = [plan.hash[0] for plan in plans]
    twice = next(first for first in firsts if firsts.count(first) > 1)
    for name in (twice, "", "%", "xyz", "0" * 64):
        with pytest.raises(ClientError, match="plan_unknown"):
            inbox.get(name)


def test_a_coordinator_cannot_fill_the_disk_with_offers(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.inbox._MOST_WAITING", 3)
    for number in range(3):
        inbox.offer(replace(PLAN, purpose=str(number)), "s", "k", 1.0)
    with pytest.raises(ClientError, match="plan_refused"):
        inbox.offer(PLAN, "s", "k", 1.0)
    assert len(inbox.all()) == 3
    inbox.refuse(inbox.all()[0].hash, code="plan_refused", who="dr b", now_s=2.0)
    assert inbox.offer(PLAN, "s", "k", 1.0).state == "waiting"


def test_what_the_policy_refused_does_not_pile_up(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.inbox._MOST_REFUSED", 3)
    people = inbox.offer(replace(PLAN, purpose="people"), "s", "k", 0.0).hash
    inbox.refuse(people, code="plan_refused", who="dr b", now_s=0.0)
    hashes = []
    for number in range(8):
        hashes.append(inbox.offer(replace(PLAN, purpose=str(number)), "s", "k", float(number)).hash)
        inbox.refuse(hashes[-1], code="epsilon_refused", who=POLICY, now_s=float(number))
    waits = inbox.offer(PLAN, "s", "k", 9.0).hash
    assert {offer.hash for offer in inbox.all()} == {people, *hashes[-2:], waits}
    assert inbox.find(hashes[0]) is None


def test_only_so_many_offers_come_in_within_a_day_and_none_is_long(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.inbox._MOST_A_DAY", 3)
    came: list[str] = []

    def offer(purpose: str, now_s: float, signature: str = "s") -> str:
        plan = replace(PLAN, purpose=purpose)
        return inbox.offer(plan, signature, "k", now_s, record=lambda: came.append(purpose)).hash

    for number in range(3):
        inbox.refuse(offer(str(number), 0.0), code="task_refused", who=POLICY, now_s=0.0)
    for purpose, signature in (("more", "s"), ("long", "s" * 65_536)):
        with pytest.raises(ClientError, match="plan_refused"):
            offer(purpose, 10.0, signature)
    assert came == ["0", "1", "2"]  # what is not let in is not recorded as offered
    offer("2", 10.0)
    offer("more", 86_401.0)
    with pytest.raises(ClientError, match="longer"):
        offer("long", 86_401.0, "s" * 65_536)
    assert came == ["0", "1", "2", "more"]


def test_an_offer_that_cannot_be_recorded_is_not_there(inbox: Inbox) -> None:
    def full() -> None:
        assert inbox.find(PLAN.hash) is None
        raise ClientError("audit_failed", "The disk is full.")

    with pytest.raises(ClientError, match="audit_failed"):
        inbox.offer(PLAN, "s", "k", 1.0, record=full)
    assert inbox.all() == ()


def test_the_file_is_its_owners_alone_and_another_file_is_refused(inbox: Inbox, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "inbox.sqlite").stat().st_mode) == 0o600
    (tmp_path / "other").write_bytes(b"x" * 4096)
    with pytest.raises(ClientError, match="inbox_unreadable"):
        Inbox(tmp_path / "other")
