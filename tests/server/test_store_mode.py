"""The file of a run is its coordinator's alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from server.store import Store


def test_the_updates_of_sites_are_readable_by_their_coordinator_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with Store(tmp_path / "run" / "coordinator.sqlite") as store:
            store.put_fact("a", "b")
            modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run").iterdir()}
    finally:
        os.umask(before)
    assert modes == {0o600}
