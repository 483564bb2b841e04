"""The queue of runs: order, states, repeated requests, and SIGKILL at any instant."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import client.app
from conf.load import to_json
from link.local import LocalGrid
from server.errors import ServerError
from server.home import CoordinatorHome
from server.queue import (
    ASKING,
    DONE,
    FAILED,
    PAUSED,
    QUEUED,
    READY,
    RUNNING,
    STATES,
    STOPPED,
    WORKING,
    Conditions,
    Queue,
)
from server.registry import Registry
from server.worker import Means, Worker
from tests.heart_hospitals import settings as settings_of
from tests.heart_hospitals import write_folder

ROOT = Path(__file__).parents[2]
NUMBERS = itertools.count()


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    queue = Queue(tmp_path / "runs.sqlite", clock=lambda: 1000.0)
    yield queue
    queue.close()


def launched(queue: Queue, request: str = "one") -> str:
    return queue.launch("{}", Conditions(), who="ann", request=request).id


def test_runs_keep_the_order_of_their_launch(queue: Queue) -> None:
    ids = [launched(queue, request) for request in ("c", "a", "b")]
    assert [run.id for run in queue.runs()] == ids == ["run-0001", "run-0002", "run-0003"]
    queue.move(ids[0], PAUSED)
    first = queue.first(QUEUED)
    assert first is not None
    assert first.id == ids[1]
    queue.move(ids[0], QUEUED)
    first = queue.first(QUEUED)
    assert first is not None
    assert first.id == ids[0]  # a run that comes back has its place again


def test_a_launch_that_is_repeated_makes_one_run(queue: Queue) -> None:
    assert launched(queue) == launched(queue)
    assert len(queue.runs()) == 1
    with pytest.raises(ServerError, match="new request"):
        queue.launch('{"seed": 1}', Conditions(), who="ann", request="one")
    with pytest.raises(ServerError, match="new request"):
        queue.launch("{}", Conditions(quorum=3), who="ann", request="one")


def test_what_was_launched_is_read_back(tmp_path: Path) -> None:
    conditions = Conditions(quorum=3, round_s=60.0, approval_s=100.0, sites=("a", "b", "c"))
    first = Queue(tmp_path / "runs.sqlite")
    run = first.launch('{"rounds": 3}', conditions, who="ann", request="r")
    first.move(run.id, PAUSED, "lunch")
    first.close()
    again = Queue(tmp_path / "runs.sqlite").run(run.id)
    assert (again.config, again.conditions, again.who) == ('{"rounds": 3}', conditions, "ann")
    assert (again.state, again.reason) == (PAUSED, "lunch")


@pytest.mark.parametrize("final", [STOPPED, DONE])
def test_what_is_over_stays_over(queue: Queue, final: str) -> None:
    run = launched(queue)
    for state in (ASKING, READY, RUNNING, final):
        queue.move(run, state)
    for state in STATES:
        with pytest.raises(ServerError, match="only one that is"):
            queue.move(run, state)
    assert queue.state(run) == final


@given(steps=st.lists(st.sampled_from(STATES), max_size=20))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_run_is_done_only_by_way_of_asking_ready_and_running(queue: Queue, steps: list[str]) -> None:
    run = launched(queue, request=f"drawn-{next(NUMBERS)}")
    passed = [QUEUED]
    for state in steps:
        try:
            queue.move(run, state)
        except ServerError:
            assert queue.state(run) == passed[-1]  # a refused call changes nothing
        else:
            passed.append(state)
    if DONE in passed:
        assert passed[-2:] == [RUNNING, DONE]
        assert READY in passed
    for before, after in itertools.pairwise(passed):
        assert (before in WORKING) or after in (QUEUED, STOPPED)


@pytest.mark.parametrize("name", ["run-9999", "7", "", "run-", "run--1", "../../etc", "run-1e3", "9" * 30])
def test_a_run_that_is_not_there_is_refused(queue: Queue, name: str) -> None:
    launched(queue)
    for call in (queue.run, queue.state, queue.begin, lambda run: queue.move(run, PAUSED)):
        with pytest.raises(ServerError, match="run"):
            call(name)


@pytest.mark.parametrize(
    "bad",
    [
        {"quorum": 0},
        {"round_s": 0.0},
        {"approval_s": float("inf")},
        {"round_s": float("nan")},
        {"sites": ("a",), "quorum": 2},
        {"sites": ("a", "a"), "quorum": 2},
    ],
)
def test_conditions_that_nobody_can_meet_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ServerError):
        Conditions(**bad)  # type: ignore[arg-type]  # some are of the right type


def test_a_run_is_begun_early_only_while_sites_are_asked(queue: Queue) -> None:
    run = launched(queue)
    assert queue.begin(run).begin
    for state in (ASKING, READY):
        queue.move(run, state)
    with pytest.raises(ServerError, match="asking"):
        queue.begin(run)


def test_who_waits_is_woken_by_a_change(queue: Queue) -> None:
    seen = queue.changes()
    found: list[int] = []
    waiter = threading.Thread(target=lambda: found.append(queue.wait(seen, 60.0)))
    waiter.start()
    launched(queue)
    waiter.join(timeout=30.0)
    assert found == [seen + 1]


KILLED = """
import sys
from pathlib import Path
from server.queue import *
queue = Queue(Path(sys.argv[1]))
print("ready", flush=True)
number = 0
while True:
    run = queue.launch("{}", Conditions(), who="ann", request=f"{sys.argv[2]}-{number}").id
    print("launched", run, flush=True)
    for state in (ASKING, READY, RUNNING, DONE):
        queue.move(run, state)
        print(state, run, flush=True)
    number += 1
"""


def test_no_acknowledged_change_is_lost_to_a_sigkill(tmp_path: Path) -> None:
    path, draws = tmp_path / "runs.sqlite", random.Random(5)
    told: dict[str, str] = {}
    for life in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path), str(life)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        lines = [child.stdout.readline() for _ in range(draws.randint(1, 40))]
        time.sleep(draws.uniform(0.0, 0.01))
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().splitlines(keepends=True)
        words = [line.split() for line in lines if line.endswith("\n")]
        child.wait()
        child.stdout.close()
        told |= {run: QUEUED if state == "launched" else state for state, run in words}
    queue = Queue(path)
    found = {run.id: run.state for run in queue.runs()}
    queue.close()
    order = [QUEUED, ASKING, READY, RUNNING, DONE]
    assert len(told) > 6
    assert set(told) <= set(found)
    # At most one step further than was said: written, and killed before it could say so.
    assert all(order.index(found[run]) - order.index(state) in (0, 1) for run, state in told.items())
    assert FAILED not in found.values()


def test_a_run_that_fails_as_nobody_expected_does_not_keep_the_others_waiting(
    queue: Queue, tmp_path: Path
) -> None:
    config, alone = to_json(settings_of(write_folder(tmp_path / "data"))), Conditions(quorum=1)
    ids = [queue.launch(config, alone, who="ann", request=request).id for request in ("one", "two")]
    home, recorded = CoordinatorHome(tmp_path / "coordinator"), list[str]()
    faults = iter([ValueError("patient 7")])

    def sites() -> list[str]:
        for error in faults:
            raise error
        return ["alpha"]

    worker = Worker(
        Means(
            home=home,
            federation="north",
            queue=queue,
            registry=Registry(tmp_path / "models.sqlite"),
            grid=lambda: LocalGrid(client.app.app, {}, [0]),
            sites=sites,
            node_of=lambda _: 2,
            sign=lambda _: "",
            record=lambda kind, **_: recorded.append(kind),
            clock=lambda: 1000.0,
        )
    )
    worker._ask_all()
    first, second = (queue.run(id_) for id_ in ids)
    assert (first.state, second.state) == (FAILED, ASKING)
    assert "ValueError" in first.reason
    assert "patient 7" not in first.reason
    assert recorded == ["plan_offered", "run_failed", "plan_offered"]
    worker._let_go(second.id)
