"""A rehearsal shows what the real plan then sends, and leaves no trace but in the audit log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.hospital import Hospital
from client.inbox import Inbox
from client.rehearsal import Rehearsal, rehearse
from tests.hospital_home import AUTOMATIC, Coordinator, founded, write_policy
from trust.audit import AuditLog


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    with founded(tmp_path, AUTOMATIC) as found:
        yield found


def _rehearse(coordinator: Coordinator) -> Rehearsal:
    hospital = Hospital(coordinator.home)
    try:
        return rehearse(hospital, coordinator.offer, key=coordinator.signer.key_id)
    finally:
        hospital.close()


def test_what_is_shown_has_the_form_of_what_then_leaves(coordinator: Coordinator) -> None:
    shown = _rehearse(coordinator)
    assert [sent.said.error for sent in shown.answers] == ["", "", ""]
    assert shown.base_is_the_plans
    declared, accepted = coordinator.declare(), coordinator.accept()
    said, update = coordinator.train(1)
    assert update is not None
    rehearsed = shown.answers[2].update
    assert rehearsed is not None
    assert (shown.answers[0].said.patients, shown.answers[1].said.patients) == (declared.patients, 0)
    assert accepted.error == said.error == ""
    assert {n: (a.shape, a.dtype) for n, a in rehearsed.items()} == {
        n: (a.shape, a.dtype) for n, a in update.items()
    }
    assert shown.answers[2].norm_bound is not None
    assert 0 < np.sqrt(np.square(update["head.weight"]).sum()) <= shown.answers[2].norm_bound


def test_the_noise_of_a_rehearsal_is_not_that_of_the_real_round(coordinator: Coordinator) -> None:
    one, other = (_rehearse(coordinator).answers[2].update for _ in range(2))
    coordinator.declare()
    coordinator.accept()
    _, real = coordinator.train(1)
    updates = [update["head.weight"] for update in (one, other, real) if update is not None]
    assert len(updates) == 3
    for a in range(3):
        for b in range(a):
            assert not np.array_equal(updates[a], updates[b])


def test_a_rehearsal_charges_nothing_and_puts_nothing_into_the_inbox(coordinator: Coordinator) -> None:
    shown = _rehearse(coordinator)
    assert (shown.spent, shown.epsilon) == (0.0, shown.spent_after)
    assert shown.epsilon == pytest.approx(8.0, abs=0.01)
    hospital = Hospital(coordinator.home)
    assert hospital.spent() == 0.0
    hospital.close()
    with Inbox(coordinator.home.inbox) as inbox:
        assert inbox.all() == ()
    with AuditLog(coordinator.home.audit) as log:
        assert [record.kind for record in log.records()] == ["policy_changed"]


def test_a_rehearsal_says_what_the_policy_would_say(coordinator: Coordinator) -> None:
    assert _rehearse(coordinator).verdict.decision == "admit"
    write_policy(coordinator.home, replace(AUTOMATIC, automatic=False))
    assert _rehearse(coordinator).verdict.decision == "wait"
    write_policy(coordinator.home, replace(AUTOMATIC, epsilon_per_plan=1.0))
    assert _rehearse(coordinator).verdict.code == "epsilon_refused"


def test_with_too_few_patients_it_shows_that_a_code_is_all_that_leaves(coordinator: Coordinator) -> None:
    write_policy(coordinator.home, replace(AUTOMATIC, minimum_patients=13))
    shown = _rehearse(coordinator)
    assert [(sent.said.error, sent.said.patients) for sent in shown.answers] == [("too_few_patients", 0)]


def test_a_model_of_ones_own_may_stand_for_the_plans(coordinator: Coordinator) -> None:
    hospital = Hospital(coordinator.home)
    other = {name: array + np.float32(0.5) for name, array in coordinator.model.items()}
    shown = rehearse(hospital, coordinator.offer, key="", model=other)
    hospital.close()
    assert not shown.base_is_the_plans
    assert shown.answers[-1].update is not None
