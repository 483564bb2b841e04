"""Disks that are full while a plan is offered, and files that the kernel lets grow no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.agent import read_status
from server.asking import WAITING
from tests.faults.conftest import Copies, Prepared
from tests.faults.storm import COORDINATOR, Storm
from tests.faults.test_disks_and_clocks import releases, reply_count


@pytest.mark.parametrize("file", ["inbox.sqlite", "ledger.sqlite", "audit.sqlite"])
def test_a_disk_that_is_full_while_a_plan_is_offered_is_no_refusal(
    copy: Copies, all_needed: Prepared, file: str
) -> None:
    storm = copy(all_needed)
    full = storm.directory / "full"
    storm.start("beta", full={"file": file, "while_there": str(full)})
    storm.wait_for(lambda: bool(read_status(storm.site("beta"))))
    full.touch()
    storm.start(COORDINATOR)
    storm.start_sites("beta")
    storm.wait_for(lambda: storm.status()["progress"]["sites"].get("beta") in WAITING)
    full.unlink()
    assert storm.finish() == all_needed.model
    storm.check()


@pytest.mark.parametrize("who", [COORDINATOR, "beta"])
def test_files_that_the_kernel_lets_grow_no_more_cost_nothing_but_time(
    copy: Copies, all_needed: Prepared, who: str
) -> None:
    storm = copy(all_needed)
    folder = storm.home.directory if who == COORDINATOR else storm.site(who).directory
    others = [name for name in (COORDINATOR, "alpha", "beta", "gamma") if name != who]
    for name in [who, *others] if who == COORDINATOR else [*others, who]:
        storm.start(name, **({"largest_bytes": _largest(folder) + 24_576} if name == who else {}))
    storm.wait_for(lambda: storm.ended(who) is not None or _struck(storm, who))
    assert not storm.is_over()
    assert reply_count(storm, "beta") <= releases(storm, "beta")
    if who in storm.processes:
        storm.kill(who)
    storm.start(who)
    storm.resume_if_failed()
    assert storm.finish() == all_needed.model
    storm.check()


def _largest(folder: Path) -> int:
    return max(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _struck(storm: Storm, who: str) -> bool:
    """Whether a write has failed: SQLite calls it an error of the disk."""
    return "disk I/O error" in storm.log(who) or "audit_failed" in storm.log(who)
