"""The living twins at work: a part that keeps the ward up to date, forecasts each minute and raises alerts.

Rows come from the custodian once they are on disk. A ward that fails is made anew from the store, while
feeds go on. What the store cannot tell again, alerts and calibration of bands, is kept in it as a snapshot;
so are the notices that wait for a sink.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, cast

import pandas as pd

from client.custodian import Custodian
from client.errors import ClientError
from twin.alerts.alert import Alert, Notice
from twin.alerts.delivery import Delivery
from twin.alerts.rules import Rule
from twin.errors import DataError
from twin.store.erasure import STATE
from twin.ward.forecaster import Forecaster
from twin.ward.twin import Twin
from twin.ward.ward import Ward

REMEMBERED: Final = pd.Timedelta(days=14)
"""A norm remembers a week."""
SNAPSHOT: Final = f"{STATE}ward"
NOTICES: Final = f"{STATE}notices"
_MOST_ROWS: Final = 5_000_000
_CHECKED_AT_ONCE: Final = 200
_AT_MOST_S: Final = 0.5
_RECORD_ROWS: Final = 20_000
_RECORD_S: Final = 5.0
"""So many rows at once are a record of the past, for which the ward may wait so long until it is complete."""

logger = logging.getLogger(f"twinward.{__name__}")

AHEAD: Final = pd.Timedelta(minutes=2)
"""A row that is dated further ahead waits until then: it would hide what is measured meanwhile."""

Models = Callable[[], Iterable[Forecaster]]
"""Gives the forecasters that are new since it was called last."""


@dataclass(frozen=True, slots=True)
class _Erased:
    patient_id: str


class WardRoom:
    """The part that holds the ward; other threads ask it."""

    def __init__(
        self,
        custodian: Custodian,
        delivery: Delivery,
        *,
        rules: tuple[Rule, ...],
        models: Callable[[], Models] = lambda: lambda: (),
        every_s: float = 60.0,
    ) -> None:
        """Args:
        models: makes what gives forecasters, anew for each ward.
        every_s: between two forecasts of everybody.
        """
        self._custodian, self._delivery = custodian, delivery
        self._rules, self._models, self._every_s = rules, models, every_s
        self._waiting: deque[pd.DataFrame | _Erased] = deque()
        self._waiting_rows, self._behind = 0, False
        self._early: list[pd.DataFrame] = []
        self._since_s = 0.0
        self._wake = threading.Event()
        self._lock = threading.RLock()
        self._ward: Ward | None = None
        self._new_models: Models = models()

    @property
    def name(self) -> str:
        return "ward"

    def run(self, stop: threading.Event) -> None:
        """Works until `stop`.

        Raises:
            ClientError: it fell behind; it begins anew from the store.
        """
        with self._lock:
            self._waiting.clear()
            self._waiting_rows, self._behind, self._early = 0, False, []
        self._custodian.listen(self)
        try:
            self._begin()
            due_s = 0.0
            while not stop.is_set():
                if time.monotonic() >= due_s:
                    self._look_after_everybody()
                    due_s = time.monotonic() + self._every_s
                elif self._waiting and not self._may_wait():
                    with self._lock:
                        self._ready()
                if self._behind:
                    raise ClientError("unavailable", "The ward fell behind its feeds.")
                self._wake.wait(_AT_MOST_S)
                self._wake.clear()
        finally:
            self._custodian.leave(self)
            with self._lock:
                if self._ward is not None and stop.is_set():
                    self._keep(self._ward)
                self._ward = None

    # client.custodian.Listener

    def committed(self, observations: pd.DataFrame) -> None:
        """Rows that wait for the ward; does not wait for it."""
        self._waiting_rows += len(observations)
        if self._waiting_rows > _MOST_ROWS:
            self._behind = True  # it begins anew from the store, which has them
            return
        self._waiting.append(observations)
        self._wake.set()

    def erased(self, patient_id: str) -> None:
        """Forgets a patient, on return if there is a ward."""
        self._waiting.append(_Erased(patient_id))
        with self._lock:
            self._delivery.forget(patient_id)
            self.keep_notices()
            if self._ward is not None:
                self._catch_up(self._ward)
                self._keep(self._ward)

    # What others ask

    def twin(self, patient_id: str) -> Twin:
        """A patient's twin, with everything that was committed; raises DataError if nobody has the name."""
        with self._lock:
            return self._ready().twin(patient_id, self._custodian.clock())

    def alerts(self) -> list[Alert]:
        """Every active alert."""
        with self._lock:
            return self._ready().alerts(self._custodian.clock())

    def acknowledge(self, patient_id: str, alert_id: str, *, who: str, why: str) -> Notice:
        """Somebody saw an alert; on disk on return."""
        now = self._custodian.clock()
        with self._lock:
            ward = self._ready()
            return self._told(ward, ward.acknowledge(patient_id, alert_id, who=who, why=why, now=now))

    def snooze(self, patient_id: str, alert_id: str, *, minutes: float, who: str) -> Notice:
        """Nobody is told of an alert for some minutes; on disk on return."""
        now = self._custodian.clock()
        with self._lock:
            ward = self._ready()
            return self._told(ward, ward.snooze(patient_id, alert_id, minutes=minutes, who=who, now=now))

    def counts(self) -> dict[str, int]:
        """Figures without patients; empty while there is no ward."""
        with self._lock:
            return {} if self._ward is None else self._ward.counts()

    def keep_notices(self) -> None:
        """Writes down which notices wait."""
        self._custodian.store.keep_model("", NOTICES, self._delivery.snapshot())

    # Within

    def _begin(self) -> None:
        ward = Ward(rules=self._rules)
        for rows in self._custodian.recent(REMEMBERED):
            ward.update(self._come(rows))
        kept = self._custodian.store.model("", SNAPSHOT)
        self._new_models = self._models()
        self._use_new_models(ward)
        if kept is not None:
            ward.restore(kept)
        with self._lock:
            self._ward = ward

    def _look_after_everybody(self) -> None:
        """New models, forecasts and alerts of all patients."""
        with self._lock:
            ward = self._ready()
            self._use_new_models(ward)
            self._take_early(ward)
            now = self._custodian.clock()
            ward.forecasts(now)
            self._offer(ward.check(now))
            self._keep(ward)

    def _ready(self) -> Ward:
        """The ward with everything that waited.

        Raises:
            ClientError: there is none at the moment.
        """
        if self._ward is None:
            raise ClientError("unavailable", "The ward is being made from the store; ask again in a while.")
        self._catch_up(self._ward)
        return self._ward

    def _catch_up(self, ward: Ward) -> None:
        touched: set[str] = set()
        while self._waiting:
            item = self._next()
            if isinstance(item, _Erased):
                with suppress(DataError):  # it never heard of the patient
                    ward.forget(item.patient_id)
                touched.discard(item.patient_id)
                self._early = [rows[rows["patient_id"] != item.patient_id] for rows in self._early]
                continue
            item = self._come(item)
            ward.update(item)
            if len(touched) <= _CHECKED_AT_ONCE:
                touched.update(item["patient_id"].unique().tolist())
        self._waiting_rows, self._since_s = 0, 0.0
        here = sorted(touched & set(ward.patients())) if len(touched) <= _CHECKED_AT_ONCE else []
        if here:
            notices = ward.check(self._custodian.clock(), here)
            if notices:
                self._offer(notices)
                self._keep(ward)

    def _next(self) -> pd.DataFrame | _Erased:
        """A patient to forget, or all rows that wait before the next one.

        The ward takes many patients' rows in the time of one's, so a record that is read patient by patient
        is better taken whole.
        """
        item = self._waiting.popleft()
        if isinstance(item, _Erased):
            return item
        frames = [item]
        while self._waiting and not isinstance(self._waiting[0], _Erased):
            frames.append(cast("pd.DataFrame", self._waiting.popleft()))
        return item if len(frames) == 1 else pd.concat(frames, ignore_index=True)

    def _come(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows whose time has come; the others wait for it."""
        early_N = rows["time"] > self._custodian.clock() + AHEAD
        if not early_N.any():
            return rows
        self._early.append(rows[early_N])
        return rows[~early_N]

    def _take_early(self, ward: Ward) -> None:
        """Gives the ward the rows whose time has come since."""
        waited = [rows for rows in self._early if len(rows)]
        self._early = []
        if waited:
            ward.update(self._come(pd.concat(waited, ignore_index=True)))
        if left := sum(map(len, self._early)):
            logger.warning("%d rows are dated ahead of this machine's clock; the ward takes them then", left)

    def _may_wait(self) -> bool:
        """Whether what waits is a record of the past that is still being read."""
        if self._waiting_rows < _RECORD_ROWS:
            return False
        if not self._since_s:
            self._since_s = time.monotonic()
        return time.monotonic() - self._since_s < _RECORD_S

    def _use_new_models(self, ward: Ward) -> None:
        for forecaster in self._new_models():
            ward.use(forecaster)
            logger.info("forecasts of %s by model %s", forecaster.task.name, forecaster.version)

    def _offer(self, notices: list[Notice]) -> None:
        if notices:
            self._delivery.offer(notices)
            self.keep_notices()

    def _told(self, ward: Ward, notice: Notice) -> Notice:
        self._offer([notice])
        self._keep(ward)
        return notice

    def _keep(self, ward: Ward) -> None:
        self._custodian.store.keep_model("", SNAPSHOT, ward.snapshot())


@dataclass(slots=True)
class Post:
    """The part that hands notices to sinks."""

    room: WardRoom
    delivery: Delivery
    changed: threading.Event
    every_s: float = 1.0

    @property
    def name(self) -> str:
        return "alerts"

    def run(self, stop: threading.Event) -> None:
        """Works until `stop`; a sink that fails is tried again and holds nobody up."""
        while not stop.wait(self.every_s):
            self.delivery.work(time.time())
            if self.changed.is_set():
                self.changed.clear()
                self.room.keep_notices()
