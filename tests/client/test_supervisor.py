"""One part's crash is its own affair: it begins anew, and the others never notice."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from client.errors import ClientError
from client.supervisor import PartBroken, Supervisor
from tests.server.federation_of_processes import wait_until


@dataclass
class Worker:
    """Does what it was given, run after run; the last of it again and again."""

    name: str
    deeds: list[Callable[[threading.Event], None]]
    runs: int = 0
    seen: list[threading.Event] = field(default_factory=list)

    def run(self, stop: threading.Event) -> None:
        deed = self.deeds[min(self.runs, len(self.deeds) - 1)]
        self.runs += 1
        deed(stop)


def _work(stop: threading.Event) -> None:
    stop.wait()


def _fail(error: Exception) -> Callable[[threading.Event], None]:
    def deed(_: threading.Event) -> None:
        raise error

    return deed


def test_a_part_that_crashes_begins_anew_alone_and_its_text_stays_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shaky = Worker(
        "feed ward", [_fail(ValueError("Kirk: 61 %")), _fail(ClientError("malformed", "told")), _work]
    )
    steady = Worker("store", [_work])
    supervisor = Supervisor([shaky, steady], first_wait_s=0.01)
    supervisor.start()
    wait_until(lambda: shaky.runs == 3 and supervisor.is_sound)
    standing = supervisor.standings()
    assert standing["feed ward"].crashes == 2 and "told" in standing["feed ward"].why
    assert standing["store"].crashes == 0 and steady.runs == 1
    assert supervisor.stop() == []
    assert {entry.state for entry in supervisor.standings().values()} == {"stopped"}
    assert "ValueError" in caplog.text and "Kirk" not in caplog.text


def test_a_part_that_cannot_work_stays_down_and_one_that_has_ended_is_sound(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)
    broken = Worker("feed x", [_fail(PartBroken("feeds.toml: no such host"))])
    done = Worker("feed files", [lambda _: None])
    supervisor = Supervisor([broken, done], first_wait_s=0.01)
    supervisor.start()
    wait_until(lambda: {s.state for s in supervisor.standings().values()} == {"broken", "ended"})
    assert (broken.runs, done.runs) == (1, 1)
    assert not supervisor.is_sound and "feeds.toml" in caplog.text
    supervisor.stop()


def test_waits_grow_to_the_longest_and_differ() -> None:
    waits = [Supervisor([], first_wait_s=1.0, most_wait_s=8.0)._wait_s(failures) for failures in range(1, 40)]
    assert all(0.5 * min(2.0**n, 8.0) <= wait <= min(2.0**n, 8.0) for n, wait in enumerate(waits))
    assert len(set(waits)) > 1


def test_a_part_that_does_not_stop_is_named_and_does_not_hold_the_process() -> None:
    hold = threading.Event()
    deaf = Worker("deaf", [lambda _: hold.wait(30.0) and None])
    supervisor = Supervisor([deaf])
    supervisor.start()
    wait_until(lambda: deaf.runs == 1)
    assert supervisor.stop(timeout_s=0.05) == ["deaf"]
    hold.set()


def test_two_parts_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="different names"):
        Supervisor([Worker("a", [_work]), Worker("a", [_work])])
