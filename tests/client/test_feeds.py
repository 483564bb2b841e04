"""A batch is committed before its source may forget it, whatever dies in between."""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest

from client.errors import ClientError
from client.feeds import EXAMPLE, FeedPart, read_feeds
from twin.connectors.feed import OBSERVATIONS, Batch


@dataclass
class Queue:
    """A source that hands out numbered messages, and forgets one only when it is acknowledged."""

    name: str = "queue"
    waiting: list[int] = field(default_factory=lambda: list(range(10)))

    def batches(self, position: str) -> Generator[Batch, None, None]:
        while self.waiting:
            number = self.waiting[0]
            row = ("p", "2024-01-01T00:00:00Z", "twinward", "glucose", str(number), "mg/dL", "")
            yield Batch(
                observations=pd.DataFrame([row], columns=list(OBSERVATIONS), dtype="str"),
                position=str(number),
            )
            self.waiting.pop(0)


@dataclass
class Disk:
    """Commits into a list; dies before or after the commit of one of them, once."""

    dies_at: int = -1
    after: bool = False
    rows: list[str] = field(default_factory=list)
    at: str = ""

    def position(self, feed: str) -> str:
        return self.at

    def take(self, batch: Batch, feed: str) -> None:
        dies, self.dies_at = (
            self.dies_at == len(self.rows),
            -1 if self.dies_at == len(self.rows) else self.dies_at,
        )
        if dies and not self.after:
            raise OSError("power")
        self.rows += list(batch.observations["value"])
        self.at = batch.position
        if dies:
            raise OSError("power")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("dies_at", range(10))
def test_nothing_is_lost_and_what_comes_twice_is_what_was_not_acknowledged(dies_at: int, after: bool) -> None:
    source, disk = Queue(), Disk(dies_at, after)
    part = FeedPart(source, disk)
    with pytest.raises(OSError, match="power"):
        part.run(threading.Event())
    part.run(threading.Event())
    assert source.waiting == [] and set(disk.rows) == {str(number) for number in range(10)}
    assert len(disk.rows) == 10 + after  # the batch that was committed and not acknowledged came again


def test_a_feed_that_is_told_to_stop_commits_what_it_has_and_goes_on_there_later() -> None:
    source, disk, stop = Queue(), Disk(), threading.Event()
    beats: list[int] = []

    def beat(_: str, rows: int) -> None:
        beats.append(rows)
        if len(beats) == 3:
            stop.set()

    FeedPart(source, disk, beat).run(stop)
    assert disk.rows == ["0", "1", "2"] and beats == [1, 1, 1]
    assert source.waiting[0] == 2  # not acknowledged, so it comes again, and the store knows it


def test_every_fault_of_every_feed_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "feeds.toml"
    assert read_feeds(path) == ()
    path.write_text(EXAMPLE)
    assert read_feeds(path) == ()
    path.write_text(
        '[[feed]]\nkind = "carrier pigeon"\nname = "a"\n[[feed]]\nname = "b"\n'
        '[[feed]]\nkind = "fhir_files"\nname = "c d"\n'
    )
    with pytest.raises(ClientError) as refused:
        read_feeds(path)
    for part in ("'carrier pigeon'", "lacks a kind", "'c d'", "docs/feeds.md"):
        assert part in str(refused.value)
    for text in ("[[feed]", "[feeds]\n", 'feed = "x"\n'):
        path.write_text(text)
        with pytest.raises(ClientError, match="Expected"):
            read_feeds(path)
