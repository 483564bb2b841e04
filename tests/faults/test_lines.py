"""Lines that are cut, stall, swallow or are slow, and members that go away: nothing but time is lost."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

import pytest

from server.members import Members
from tests.faults.conftest import Copies, Prepared
from tests.faults.storm import COORDINATOR, LONG, Storm
from tests.heart_hospitals import SITES
from tests.lossy_wire import DOWN, UP, LossyWire


@contextmanager
def wires(storm: Storm, *sites: str) -> Iterator[dict[str, LossyWire]]:
    """A line of the test's own between each of these sites and the coordinator."""
    port = storm.home.settings().hospitals_port
    with ExitStack() as stack:
        made = {site: stack.enter_context(LossyWire(port)) for site in sites}
        for site, wire in made.items():
            storm.dial(site, wire.port)
        yield made


def test_lines_that_flap(copy: Copies, all_needed: Prepared) -> None:
    storm, draws = copy(all_needed), random.Random(5)
    with wires(storm, *SITES) as lines:
        storm.start(COORDINATOR)
        storm.start_sites()
        for _ in range(100 if LONG else 10):
            time.sleep(draws.uniform(0.0, 0.3))
            draws.choice(list(lines.values())).cut()
        assert storm.finish() == all_needed.model
    storm.check()


@pytest.mark.parametrize("swallowed", [(UP,), (DOWN,), (UP, DOWN)])
def test_a_line_that_swallows(copy: Copies, all_needed: Prepared, swallowed: tuple[str, ...]) -> None:
    storm = copy(all_needed)
    with wires(storm, "beta") as lines:
        lines["beta"].on_pass = lambda _, passed: lines["beta"].swallow(*swallowed) if passed > 3000 else None
        storm.start(COORDINATOR)
        storm.start_sites()
        storm.wait_for(lambda: lines["beta"].passed[UP] > 3000 or lines["beta"].passed[DOWN] > 3000)
        time.sleep(1.0)
        assert not storm.is_over()
        lines["beta"].on_pass = lambda _, __: None
        lines["beta"].cut()
        lines["beta"].heal()
        assert storm.finish() == all_needed.model
    storm.check()


def test_a_slow_site_is_waited_for(copy: Copies, all_needed: Prepared) -> None:
    storm = copy(all_needed)
    with wires(storm, "gamma") as lines:
        lines["gamma"].delay_s = 0.1
        storm.start(COORDINATOR)
        storm.start_sites()
        assert storm.finish() == all_needed.model
    storm.check()


def test_a_site_that_goes_away_is_done_without_where_a_quorum_is_enough(
    copy: Copies, two_suffice: Prepared
) -> None:
    storm = copy(two_suffice)
    storm.start(COORDINATOR)
    storm.start("gamma", call={"target": "client.agent:Agent._handle", "nth": 3, "after": False})
    storm.start_sites("gamma")
    storm.wait_for_end("gamma")
    model = storm.finish()
    assert model != two_suffice.model  # others took part
    storm.check()


def test_a_site_that_is_revoked_in_a_round_is_cut_off_and_the_others_go_on(
    copy: Copies, two_suffice: Prepared
) -> None:
    storm = copy(two_suffice)
    with wires(storm, "gamma") as lines:
        storm.start(COORDINATOR)
        storm.start_sites()
        lines["gamma"].on_pass = lambda _, passed: lines["gamma"].swallow(UP) if passed > 6000 else None
        storm.wait_for(lambda: "gamma" in storm.status()["connected"])
        with Members(storm.home.members) as members:
            members.end("gamma", "revoked", "stolen", datetime.now(UTC))
        # Long before a line that is silent counts as dead: a minute.
        storm.wait_for(lambda: "gamma" not in storm.status()["connected"], 30.0)
        lines["gamma"].on_pass = lambda _, __: None
        lines["gamma"].heal()
        storm.finish()
    storm.check()
