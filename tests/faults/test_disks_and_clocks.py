"""Disks that are full or lose bits, files from a backup, clocks that jump: nothing leaves unrecorded."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from client.ledger import Ledger
from server.app import store_path
from server.store import Store
from tests.faults.conftest import Copies, Prepared
from tests.faults.storm import COORDINATOR, RUN, Storm
from tests.heart_hospitals import SITES
from trust.audit import AuditLog


def releases(storm: Storm, site: str) -> int:
    """How many releases stand in a site's log."""
    with AuditLog(storm.site(site).audit) as log:
        return len(list(log.records(kinds=["released"])))


def reply_count(storm: Storm, site: str) -> int:
    with Store(store_path(storm.home.run_directory(RUN))) as store:
        return sum(site in store.answered(row.number) for row in store.rounds())


@pytest.mark.parametrize(("file", "after"), [("ledger.sqlite", 1), ("audit.sqlite", 2)])
def test_a_site_whose_disk_is_full_releases_nothing_and_goes_on_once_there_is_room(
    copy: Copies, all_needed: Prepared, file: str, after: int
) -> None:
    storm = copy(all_needed)
    storm.start(COORDINATOR)
    storm.start_sites("beta")
    storm.start("beta", call={"target": "client.ledger:Ledger.reserve", "nth": 1, "after": False})
    assert storm.wait_for_end("beta") == -signal.SIGKILL, storm.log("beta")  # it has taken the plan
    storm.start("beta", full={"file": file, "after": after})
    storm.wait_for(lambda: storm.ended("beta") is not None or bool(storm.status()["progress"]["refusals"]))
    assert (releases(storm, "beta"), reply_count(storm, "beta")) == (0, 0)
    if "beta" in storm.processes:
        storm.kill("beta")
    storm.start("beta")
    assert storm.finish() == all_needed.model
    storm.check()


@pytest.mark.parametrize(("file", "after"), [("coordinator.sqlite", 8), ("audit.sqlite", 3)])
def test_a_coordinator_whose_disk_is_full_commits_nothing_and_goes_on_once_there_is_room(
    copy: Copies, all_needed: Prepared, file: str, after: int
) -> None:
    storm = copy(all_needed)
    storm.start_sites()
    storm.start(COORDINATOR, full={"file": file, "after": after})
    storm.wait_for(lambda: COORDINATOR not in storm.processes or _told(storm))
    assert storm.committed() == 0
    if COORDINATOR in storm.processes:
        storm.kill(COORDINATOR)
    storm.start(COORDINATOR)
    storm.resume_if_failed()
    assert storm.finish() == all_needed.model
    storm.check()


def _told(storm: Storm) -> bool:
    return storm.ended(COORDINATOR) is not None or "disk is full" in storm.log(COORDINATOR)


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0, 315e6, -315e6])
@pytest.mark.parametrize("who", [COORDINATOR, "alpha"])
def test_a_clock_that_is_off_costs_nothing(
    copy: Copies, all_needed: Prepared, who: str, ahead_s: float
) -> None:
    storm = copy(all_needed)
    if who == COORDINATOR and ahead_s > 7 * 86400:
        storm.start(COORDINATOR)  # later it would find that nobody answered within a week
        storm.start_sites()
        storm.wait_for(lambda: bool(storm.status()["progress"].get("taking_part")))
        storm.kill(COORDINATOR)
        storm.start(COORDINATOR, clock_s=ahead_s)
    else:
        storm.start(COORDINATOR, **({"clock_s": ahead_s} if who == COORDINATOR else {}))
        storm.start_sites("alpha")
        storm.start("alpha", **({"clock_s": ahead_s} if who == "alpha" else {}))
    assert storm.finish() == all_needed.model
    storm.check()


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_coordinators_file_gives_no_other_model(
    copy: Copies, all_needed: Prepared, damage: str
) -> None:
    storm = copy(all_needed)
    storm.start_sites()
    storm.start(COORDINATOR, commit={"file": "coordinator.sqlite", "at": 14, "after": True})
    assert storm.wait_for_end(COORDINATOR) == -signal.SIGKILL, storm.log(COORDINATOR)
    _damage(store_path(storm.home.run_directory(RUN)), damage)
    storm.start(COORDINATOR)
    storm.wait_for(lambda: COORDINATOR not in storm.processes or storm.is_over() or _faulty(storm))
    if COORDINATOR in storm.processes and storm.status()["run"]["state"] == "done":
        assert storm.finish() == all_needed.model  # the bit was in nothing that is read
    else:
        assert "Traceback" not in storm.log(COORDINATOR) or _faulty(storm)


def _faulty(storm: Storm) -> bool:
    return any(word in storm.log(COORDINATOR) for word in ("malformed", "damaged", "not a database"))


def _damage(path: Path, how: str) -> None:
    import sqlite3

    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    data = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
        return
    with Store(path) as store:
        plan = store.plan()
        assert plan is not None
        model = store.data(plan.base_sha256)
    place = bytes(data).find(model[-24:])  # within the model that all start from
    assert place > 0
    data[place + 8] ^= 1
    path.write_bytes(data)


def test_a_ledger_from_a_backup_stops_the_site_and_not_the_others(
    copy: Copies, two_suffice: Prepared
) -> None:
    storm = copy(two_suffice)
    before = storm.directory / "backup"
    shutil.copytree(storm.site("gamma").directory, before)
    with Ledger(before / "ledger.sqlite", ceiling_epsilon=None, delta=1e-4):
        pass  # a ledger from before the first plan
    storm.start(COORDINATOR)
    storm.start_sites("gamma")
    storm.start("gamma", call={"target": "client.hospital:Hospital.released", "nth": 3, "after": True})
    assert storm.wait_for_end("gamma") == -signal.SIGKILL, storm.log("gamma")
    known, said = releases(storm, "gamma"), len(storm.log("gamma"))
    for suffix in ("", "-wal", "-shm"):
        storm.site("gamma").ledger.with_name(f"ledger.sqlite{suffix}").unlink(missing_ok=True)
    shutil.copy(before / "ledger.sqlite", storm.site("gamma").ledger)
    storm.start("gamma")
    storm.wait_for(lambda: "ledger" in storm.log("gamma")[said:])  # the others may be done before it is up
    storm.wait_for(storm.is_over)
    assert storm.status()["run"]["state"] == "done"
    assert releases(storm, "gamma") == known
    for name in list(storm.processes):
        storm.kill(name, signal.SIGTERM)
    storm.check(honest=[site for site in SITES if site != "gamma"])
