"""SIGKILL at each step of coordinator and site: the model is the undisturbed one, each round charged once."""

from __future__ import annotations

import random
import signal
import time
from typing import Any

import pytest

from tests.faults.conftest import Copies, Prepared
from tests.faults.storm import COORDINATOR, LONG

FILES = ("coordinator.sqlite", "audit.sqlite", "runs.sqlite") if LONG else ("coordinator.sqlite",)


@pytest.mark.parametrize("file", FILES)
def test_a_coordinator_that_dies_before_and_after_each_commit(
    copy: Copies, all_needed: Prepared, file: str
) -> None:
    storm = copy(all_needed)
    storm.start_sites()
    deaths = 0
    while True:
        # Every commit is died at twice: once before it, so that all is done again, and once after it.
        fault = {
            "file": file,
            "at": 1 + deaths // 2 % (2 if file == "coordinator.sqlite" else 9),
            "after": deaths % 2 == 1,
        }
        storm.start(COORDINATOR, commit=fault)
        storm.wait_for(lambda: COORDINATOR not in storm.processes or _over(storm))
        if COORDINATOR in storm.processes:
            break
        deaths += 1
        assert deaths < 500
    assert deaths >= (10 if file == "coordinator.sqlite" else 3)
    storm.kill(COORDINATOR)  # its fault would strike at the last record
    storm.start(COORDINATOR)
    assert storm.finish() == all_needed.model
    storm.check()


LAST_STEPS = {
    "the final model": {"target": "server.store:Store.finish", "nth": 1, "after": True},
    "the registry": {"target": "server.registry:Registry.add", "nth": 1, "after": True},
    "the state of the run": {"target": "server.queue:Queue.move", "nth": 3, "after": True},
}


@pytest.mark.parametrize("step", LAST_STEPS)
def test_a_coordinator_that_dies_after_each_of_the_last_steps(
    copy: Copies, all_needed: Prepared, step: str
) -> None:
    storm = copy(all_needed)
    storm.start_sites()
    storm.start(COORDINATOR, call=LAST_STEPS[step])
    assert storm.wait_for_end(COORDINATOR) == -signal.SIGKILL, storm.log(COORDINATOR)
    storm.start(COORDINATOR)
    assert storm.finish() == all_needed.model
    storm.check()


def _over(storm: Any) -> bool:
    """Whether it has died (and is no process of the storm any more), or the run is over."""
    return storm.ended(COORDINATOR) is not None or storm.is_over()


def test_a_coordinator_that_dies_at_random_instants(copy: Copies, all_needed: Prepared) -> None:
    storm, draws = copy(all_needed), random.Random(7)
    storm.start_sites()
    for _ in range(200 if LONG else 6):
        storm.start(COORDINATOR)
        time.sleep(draws.uniform(0.0, 1.0))
        storm.kill(COORDINATOR)
    storm.start(COORDINATOR)
    assert storm.finish() == all_needed.model
    storm.check()


POINTS = {
    "before reserve": {"target": "client.ledger:Ledger.reserve", "nth": 1, "after": False},
    "after reserve": {"target": "client.ledger:Ledger.reserve", "nth": 1, "after": True},
    "in training": {"target": "client.app:train", "nth": 1, "after": True},
    "before complete": {"target": "client.ledger:Ledger.complete", "nth": 2, "after": False},
    "after complete": {"target": "client.ledger:Ledger.complete", "nth": 2, "after": True},
    "before the record": {"target": "client.hospital:Hospital.released", "nth": 3, "after": False},
    "after the record": {"target": "client.hospital:Hospital.released", "nth": 3, "after": True},
    "after the answer": {"target": "client.agent:Agent._handle", "nth": 3, "after": True, "delay_s": 0.05},
}


@pytest.mark.parametrize("point", POINTS)
def test_a_site_that_dies(copy: Copies, all_needed: Prepared, point: str) -> None:
    storm = copy(all_needed)
    storm.start(COORDINATOR)
    storm.start_sites("beta")
    storm.start("beta", call=POINTS[point])
    assert storm.wait_for_end("beta") == -signal.SIGKILL, storm.log("beta")
    storm.start("beta")
    assert storm.finish() == all_needed.model
    storm.check()


def test_all_die_at_once_again_and_again(copy: Copies, all_needed: Prepared) -> None:
    storm, draws = copy(all_needed), random.Random(3)
    for _ in range(20 if LONG else 3):
        storm.start(COORDINATOR)
        storm.start_sites()
        time.sleep(draws.uniform(0.5, 2.5))
        for name in list(storm.processes):
            storm.kill(name)
    storm.start(COORDINATOR)
    storm.start_sites()
    assert storm.finish() == all_needed.model
    storm.check()


def test_a_second_coordinator_and_a_second_site_on_one_folder_are_refused(
    copy: Copies, all_needed: Prepared
) -> None:
    storm = copy(all_needed)
    storm.start(COORDINATOR)
    storm.start_sites()
    first = dict(storm.processes)
    storm.wait_for(lambda: storm.site("alpha").is_running)
    for name in (COORDINATOR, "alpha"):
        kind = ["coordinator", "serve"] if name == COORDINATOR else ["site", "run"]
        home = storm.home.directory if name == COORDINATOR else storm.site(name).directory
        second = storm.zygote.start([*kind, f"--home={home}"], storm.directory / "second.log", {})
        codes: list[int | None] = []
        storm.wait_for(lambda second=second, codes=codes: _ended(storm, second, codes))  # type: ignore[misc]  # bound now
        assert codes[-1] == 1
    assert storm.log("second").count("Another process") == 2
    assert storm.processes == first
    assert storm.finish() == all_needed.model
    storm.check()


def _ended(storm: Any, process: int, codes: list[int | None]) -> bool:
    codes.append(storm.zygote.poll(process))
    return codes[-1] is not None
