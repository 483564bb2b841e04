"""The ward of a site's process: what it takes of what the store has, and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from client.custodian import Custodian
from client.errors import ClientError
from client.wardroom import WardRoom
from tests.server.federation_of_processes import wait_until
from twin.alerts.delivery import Delivery
from twin.alerts.rules import DEFAULT_RULES
from twin.connectors.feed import OBSERVATIONS, Batch
from twin.store import Store

NOON = pd.Timestamp("2026-03-01T12:00:00Z")


class Clock:
    """Says what it is told."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> pd.Timestamp:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store.duckdb", bytes(32)) as made:
        yield made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def custodian(store: Store, clock: Clock, tmp_path: Path) -> Custodian:
    made = Custodian(store, pseudonym=str, codes=tmp_path / "codes.toml", clock=clock)
    made.position("f")
    return made


def glucose(*rows: tuple[int, float]) -> Batch:
    """Rows of one patient: (minutes after noon, mg/dL)."""
    told = [
        ("p", (NOON + pd.Timedelta(minutes=at)).isoformat(), "twinward", "glucose", value, "mg/dL", "")
        for at, value in rows
    ]
    return Batch(observations=pd.DataFrame(told, columns=list(OBSERVATIONS)), position="1")


@contextmanager
def at_work(custodian: Custodian) -> Iterator[WardRoom]:
    room, stop = WardRoom(custodian, Delivery([]), rules=DEFAULT_RULES, every_s=0.1), threading.Event()
    thread = threading.Thread(target=room.run, args=(stop,), daemon=True)
    thread.start()
    try:
        wait_until(lambda: _is_made(room))
        yield room
    finally:
        stop.set()
        thread.join(60.0)


def _is_made(room: WardRoom) -> bool:
    try:
        room.alerts()
    except ClientError:
        return False
    return True


@pytest.mark.parametrize("restarted", [False, True])
def test_a_row_of_tomorrow_does_not_hide_what_is_measured_today(
    custodian: Custodian, clock: Clock, restarted: bool
) -> None:
    batches = [glucose((300, 180.0)), glucose((-10, 80.0), (-5, 60.0), (0, 50.0))]
    if restarted:
        for batch in batches:
            custodian.take(batch, "f")
    with at_work(custodian) as room:
        if not restarted:
            for batch in batches:
                custodian.take(batch, "f")
        assert [reading.value for reading in room.twin("p").readings] == [50.0]
        assert "very-low-glucose" in {alert.rule for alert in room.alerts()}
        clock.now = NOON + pd.Timedelta(minutes=301)
        wait_until(lambda: [reading.value for reading in room.twin("p").readings] == [180.0])


def test_a_patient_who_was_erased_does_not_come_back_with_rows_of_tomorrow(
    custodian: Custodian, clock: Clock
) -> None:
    with at_work(custodian) as room:
        custodian.take(glucose((0, 90.0), (300, 180.0)), "f")
        assert len(room.twin("p").readings) == 1
        custodian.erase("p")
        clock.now = NOON + pd.Timedelta(minutes=301)
        time.sleep(0.5)
        assert room.counts()["patients"] == 0
