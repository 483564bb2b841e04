"""SIGTERM ends a process within seconds, whatever it waits for and whoever waits for it."""

from __future__ import annotations

import signal
import socket
import threading
from contextlib import suppress

from cli.coordinator import coordinator_of
from client.agent import read_status
from server.errors import ServerError
from tests.faults.conftest import Copies, Prepared
from tests.faults.storm import COORDINATOR, Storm
from tests.faults.test_lines import wires
from tests.lossy_wire import DOWN, UP

SECONDS = 15.0
"""Half of what the longest of the waits below would last."""


def ends(storm: Storm, name: str) -> int:
    """Tells a process to end; how it did, in time."""
    codes: list[int] = []

    def over() -> bool:
        codes.extend([code] if (code := storm.ended(name)) is not None else [])
        return bool(codes)

    storm.tell(name, signal.SIGTERM)
    storm.wait_for(over, SECONDS)
    return codes[0]


def test_a_coordinator_ends_that_waits_for_sites_and_for_which_others_wait(
    copy: Copies, all_needed: Prepared
) -> None:
    storm = copy(all_needed)
    settings = storm.home.settings()
    with wires(storm, "beta") as lines:
        storm.start(COORDINATOR)
        storm.start_sites("gamma")  # so the run waits
        storm.wait_for(lambda: storm.status()["connected"] == ["alpha", "beta"])
        lines["beta"].swallow(UP, DOWN)
        waiting = threading.Thread(target=_wait_for_changes, args=(storm,), daemon=True)
        waiting.start()
        ports = (settings.hospitals_port, settings.enrolment_port, settings.operators_port)
        strangers = [socket.create_connection(("127.0.0.1", port)) for port in (*ports, settings.health_port)]
        assert ends(storm, COORDINATOR) == 0, storm.log(COORDINATOR)
        for stranger in strangers:
            stranger.close()
        waiting.join(SECONDS)
        assert not waiting.is_alive()


def _wait_for_changes(storm: Storm) -> None:
    """What `coordinator watch` does, until the coordinator is gone."""
    with suppress(ServerError), coordinator_of(storm.home.operators / "founder") as at:
        while True:
            at.call("wait", seen=at.call("status", run="run-0001")["changes"], timeout_s=30.0)


def test_a_site_ends_while_its_coordinator_neither_refuses_nor_greets(
    copy: Copies, all_needed: Prepared
) -> None:
    storm = copy(all_needed)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        storm.dial("alpha", silent.getsockname()[1])
        storm.start("alpha")
        silent.accept()
        storm.wait_for(lambda: bool(read_status(storm.site("alpha"))))
        assert ends(storm, "alpha") == 0, storm.log("alpha")


def test_a_site_ends_whose_line_swallows_everything(copy: Copies, all_needed: Prepared) -> None:
    storm = copy(all_needed)
    with wires(storm, "alpha") as lines:
        storm.start(COORDINATOR)
        storm.start("alpha")
        storm.wait_for(lambda: "alpha" in storm.status()["connected"])
        lines["alpha"].swallow(UP, DOWN)
        assert ends(storm, "alpha") == 0, storm.log("alpha")
