"""The logs of a coordinator and a hospital that run as processes watch each other over the link."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.heart_hospitals import SITES, write_folder
from tests.server.federation_of_processes import Federation, federation, wait_until
from trust.audit import AuditLog
from trust.verification import verify

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("daemon")]

SITE = SITES[0]


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Federation]:
    with federation(tmp_path, write_folder(tmp_path / "data"), (SITE,)) as there:
        yield there


def kinds(path: Path) -> list[str]:
    with AuditLog(path) as log:
        return [record.kind for record in log.records()]


def test_a_hospital_whose_whole_folder_was_restored_learns_it_from_the_coordinator_and_stops(
    there: Federation, tmp_path: Path
) -> None:
    site = there.sites[SITE]
    there.hospital(SITE)
    wait_until(
        lambda: "heads_exchanged" in kinds(site.audit) and "heads_exchanged" in kinds(there.home.audit)
    )
    there.kill(SITE)
    shutil.copytree(site.directory, tmp_path / "backup")
    there.hospital(SITE)  # a day's work, of which the backup knows nothing
    wait_until(lambda: held_size(there) > backup_size(tmp_path))
    there.kill(SITE)
    assert verify(site.audit) == verify(there.home.audit) == []
    shutil.rmtree(site.directory)
    shutil.copytree(tmp_path / "backup", site.directory)

    there.hospital(SITE)
    wait_until(lambda: there.processes[SITE].poll() is not None)
    assert there.processes.pop(SITE).returncode != 0
    assert "old copy" in (tmp_path / f"{SITE}.log").read_text()
    assert "own_log_refused" in kinds(site.audit)
    with AuditLog(there.home.audit) as log:
        held = log.held("peer", SITE)
    assert held is not None
    assert verify(site.audit) == []
    assert verify(site.audit, heads=[held])


def held_size(there: Federation) -> int:
    with AuditLog(there.home.audit) as log:
        held = log.held("peer", SITE)
    return 0 if held is None else held.head.size


def backup_size(tmp_path: Path) -> int:
    """How many records the backup has."""
    with AuditLog(tmp_path / "backup" / "audit.sqlite") as log:
        return log.size
