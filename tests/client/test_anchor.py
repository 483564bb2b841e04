"""A ledger that was restored from an old copy stops the site, and accepting it forgives nothing."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from client import anchor
from client.errors import ClientError
from client.hospital import Hospital, close_hospitals
from client.journal import LedgerHead
from client.ledger import Ledger
from privacy.accounting import GaussianRelease
from tests.hospital_home import AUTOMATIC, Coordinator, founded
from trust.audit import AuditLog
from trust.verification import verify

RELEASE = GaussianRelease(noise_multiplier=6.0, sampling_rate=1.0, steps=4)


@pytest.fixture
def at_work(tmp_path: Path) -> Iterator[Coordinator]:
    """A hospital that took a plan and answered its first round; `old` holds its ledger before that."""
    with founded(tmp_path, AUTOMATIC) as coordinator:
        coordinator.declare()
        coordinator.accept()
        close_hospitals()
        shutil.copy(coordinator.home.ledger, old(coordinator))
        assert coordinator.train(1)[0].error == ""
        close_hospitals()
        yield coordinator


def old(coordinator: Coordinator) -> Path:
    return coordinator.home.directory.parent / "old.sqlite"


def restore(coordinator: Coordinator, copy: Path | None) -> None:
    close_hospitals()
    ledger = coordinator.home.ledger
    for suffix in ("", "-wal", "-shm"):
        Path(f"{ledger}{suffix}").unlink(missing_ok=True)
    if copy is not None:
        shutil.copy(copy, ledger)


def opened(coordinator: Coordinator) -> Ledger:
    return Ledger(coordinator.home.ledger, ceiling_epsilon=None, delta=1e-4)


def accepted(coordinator: Coordinator, why: str = "the disk was replaced") -> anchor.Acceptance:
    with opened(coordinator) as ledger, AuditLog(coordinator.home.audit) as log:
        return anchor.accept(ledger, log, who="Ada", why=why)


def spent(coordinator: Coordinator) -> float:
    with opened(coordinator) as ledger:
        return ledger.spent()


def test_an_old_copy_stops_the_site_and_every_request(at_work: Coordinator) -> None:
    restore(at_work, old(at_work))
    with pytest.raises(ClientError, match="old copy") as stopped:
        Hospital(at_work.home)
    assert stopped.value.code == "ledger_restored"
    assert "ledger accept" in str(stopped.value)
    assert at_work.train(1)[0].error == "ledger_restored"
    assert at_work.declare().error == "ledger_restored"


def test_a_ledger_that_was_deleted_stops_the_site(at_work: Coordinator) -> None:
    restore(at_work, None)
    assert at_work.train(2)[0].error == "ledger_restored"


def test_another_ledger_of_the_same_length_stops_the_site(at_work: Coordinator, tmp_path: Path) -> None:
    with opened(at_work) as ledger:
        size = ledger.head().size
    with Ledger(tmp_path / "other.sqlite", ceiling_epsilon=None, delta=1e-4) as ledger:
        ledger.open_plan("other", RELEASE)
        for number in range(1, size):
            ledger.reserve("other", number, "base", 1)
    restore(at_work, tmp_path / "other.sqlite")
    assert at_work.train(2)[0].error == "ledger_restored"


def test_a_ledger_without_its_audit_log_stops_the_site(at_work: Coordinator) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{at_work.home.audit}{suffix}").unlink(missing_ok=True)
    assert at_work.train(2)[0].error == "ledger_restored"


def test_the_newest_ledger_goes_on_where_it_stopped(at_work: Coordinator) -> None:
    newest = at_work.home.directory.parent / "newest.sqlite"
    shutil.copy(at_work.home.ledger, newest)
    restore(at_work, newest)
    assert at_work.train(2)[0].error == ""


def test_a_ledger_may_be_ahead_of_the_audit_log_as_after_a_crash(at_work: Coordinator) -> None:
    with opened(at_work) as ledger:
        ledger.reserve(at_work.plan.hash, 2, "a base", 1)
    Hospital(at_work.home).close()


def test_accepting_the_old_copy_charges_no_less_and_ends_what_was_under_way(at_work: Coordinator) -> None:
    before = spent(at_work)
    restore(at_work, old(at_work))
    assert accepted(at_work) == anchor.Acceptance(recharged=0, ended=1)
    assert spent(at_work) == before
    for number in (1, 2):
        assert at_work.train(number)[0].error in ("steps_exceeded", "round_repeated_on_other_base")
    with AuditLog(at_work.home.audit) as log:
        record = log.last("ledger_accepted")
        assert record is not None
        assert (record.who, record.why) == ("Ada", "the disk was replaced")
    assert verify(at_work.home.audit) == []


def test_accepting_an_empty_ledger_charges_all_that_the_audit_log_knows(at_work: Coordinator) -> None:
    before = spent(at_work)
    restore(at_work, None)
    assert accepted(at_work) == anchor.Acceptance(recharged=1, ended=1)
    assert spent(at_work) == before > 0
    assert at_work.train(1)[0].error == "steps_exceeded"
    close_hospitals()
    Hospital(at_work.home).close()


def test_a_recovered_plan_is_not_charged_again_under_other_participants(at_work: Coordinator) -> None:
    restore(at_work, None)
    accepted(at_work)
    other = at_work.offer.with_participants({"alpha": 10, "beta": 20})
    assert at_work.accept(other).error == "plan_differs"


def test_an_old_copy_is_noticed_again_after_one_was_accepted(at_work: Coordinator) -> None:
    restore(at_work, old(at_work))
    accepted(at_work)
    restore(at_work, old(at_work))
    assert at_work.declare().error == "ledger_restored"


def test_a_ledger_is_accepted_with_a_reason_only(at_work: Coordinator) -> None:
    restore(at_work, old(at_work))
    with pytest.raises(ClientError, match="reason"):
        accepted(at_work, why=" ")
    assert at_work.declare().error == "ledger_restored"


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM rounds",
        "DELETE FROM plans",
        "UPDATE plans SET noise_multiplier = noise_multiplier * 2",
        "UPDATE plans SET steps = steps - 1",
        "UPDATE rounds SET payload = NULL",
        "UPDATE rounds SET steps = 0",
        "UPDATE journal SET event = replace(event, 'reserve', 'plan')",
        "DELETE FROM journal WHERE number = 2",
    ],
)
def test_a_ledger_in_which_somebody_wrote_stops_the_site(at_work: Coordinator, statement: str) -> None:
    with closing(sqlite3.connect(at_work.home.ledger)) as sql:
        sql.execute(statement)
        sql.commit()
    assert at_work.train(2)[0].error == "ledger_unreadable"


def test_a_ledger_of_the_first_version_gets_a_journal_of_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path, ceiling_epsilon=None, delta=1e-4) as ledger:
        ledger.open_plan("p", RELEASE, "terms")
        ledger.reserve("p", 1, "base", 1)
        ledger.complete("p", 1, "base", b"bytes")
        head, spent_before = ledger.head(), ledger.spent()
    with closing(sqlite3.connect(path)) as sql:
        sql.execute("DROP TABLE journal")
        sql.execute("PRAGMA user_version = 1")
        sql.commit()
    with Ledger(path, ceiling_epsilon=None, delta=1e-4) as ledger:
        assert (ledger.head(), ledger.spent(), ledger.faults()) == (head, spent_before, [])
        assert ledger.reserve("p", 1, "base", 1) == b"bytes"


def test_a_ledger_contains_all_its_earlier_heads_and_no_other(tmp_path: Path) -> None:
    heads = []
    with Ledger(tmp_path / "a.sqlite", ceiling_epsilon=None, delta=1e-4) as ledger:
        heads.append(ledger.head())
        ledger.open_plan("p", RELEASE)
        heads.append(ledger.head())
        for number in (1, 2):
            ledger.reserve("p", number, "base", 1)
            heads.append(ledger.head())
            ledger.complete("p", number, "base", b"x")
            heads.append(ledger.head())
            ledger.reserve("p", number, "base", 1)  # repeated: no change
            assert ledger.head() == heads[-1]
        assert [head.size for head in heads] == [0, 1, 2, 3, 4, 5]
        assert all(ledger.contains(head) for head in heads)
        assert not ledger.contains(LedgerHead(size=3, sha256=heads[4].sha256))
        assert not ledger.contains(LedgerHead(size=6, sha256=heads[4].sha256))
        assert ledger.end_plan("p")
        assert not ledger.end_plan("p")
        assert ledger.reserve("p", 1, "base", 1) == b"x"
        with pytest.raises(ClientError, match="steps_exceeded"):
            ledger.reserve("p", 3, "base", 1)
        assert ledger.faults() == []
