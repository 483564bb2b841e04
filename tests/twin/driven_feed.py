"""A feed in a thread of its own that goes on when its batch is committed, and not before."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from twin.connectors.feed import Batch, Connector

Row = tuple[str, str, float]
PATIENCE_S = 60.0


class Driven:
    """Drives a connector; `rows` is what was committed: (patient, code, value) in order."""

    def __init__(self, feed: Connector, position: str = "") -> None:
        self.rows: list[Row] = []
        self.times: list[str] = []
        self.rejected: dict[str, int] = {}
        self.position = position
        self.error: Exception | None = None
        self.ended = threading.Event()
        self._turns: queue.Queue[bool] = queue.Queue()
        self._batches: queue.Queue[Batch | None] = queue.Queue()
        self._pending: Batch | None = None
        self._thread = threading.Thread(target=self._run, args=(feed, position), daemon=True)
        self._thread.start()
        self._turns.put(True)

    def _run(self, feed: Connector, position: str) -> None:
        batches = feed.batches(position)
        try:
            while self._turns.get():
                self._batches.put(next(batches))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test asks
            self.error = error
            self._batches.put(None)
        finally:
            batches.close()
            self.ended.set()

    def next(self) -> Batch:
        """The next batch that is not empty, not yet committed."""
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            batch = self._batches.get(timeout=PATIENCE_S)
            if batch is None:
                assert self.error is not None
                raise self.error
            if not batch.is_empty or batch.position:
                self._pending = batch
                return batch
            self._turns.put(True)
        raise AssertionError("nothing arrived")

    def commit(self) -> None:
        """Commits the batch in hand, and lets the feed go on."""
        assert self._pending is not None
        batch, self._pending = self._pending, None
        frame = batch.observations
        self.rows += zip(frame["patient"], frame["code"], frame["value"], strict=True)
        self.times += list(frame["time"])
        for reason, count in batch.rejected.items():
            self.rejected[reason] = self.rejected.get(reason, 0) + count
        self.position = batch.position
        self._turns.put(True)

    def until(self, enough: Callable[[], bool]) -> None:
        """Commits batches until there is enough."""
        end_s = time.monotonic() + PATIENCE_S
        while not enough():
            assert time.monotonic() < end_s, "it did not come"
            self.next()
            self.commit()

    def step(self, patience_s: float) -> None:
        """Commits a batch if one comes in time."""
        try:
            batch = self._batches.get(timeout=patience_s)
        except queue.Empty:
            return
        assert batch is not None, self.error
        if batch.is_empty and not batch.position:
            self._turns.put(True)
            return
        self._pending = batch
        self.commit()

    def close(self) -> None:
        """Ends the feed; what is in hand is not committed."""
        self._turns.put(False)
        assert self.ended.wait(PATIENCE_S)

    @property
    def values(self) -> list[float]:
        """Of the rows."""
        return [value for _, _, value in self.rows]
