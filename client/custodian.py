"""The one owner of a site's store: what comes in from feeds, what patients say, what is forgotten.

Each feed has an ingest of its own, which begins anew whenever the feed does, warmed from the store: so a
batch whose commit failed leaves nothing behind. What was committed goes to listeners (the ward), in order,
after it is on disk. Erasing a patient keeps every feed out until the store and the listeners were told.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

import pandas as pd

from twin.codes import Codes
from twin.connectors.feed import Batch
from twin.ingest import Ingest
from twin.site import Site
from twin.store import Store
from twin.store.reading import Purpose

WARM: Final = pd.Timedelta(days=2)
_PATIENTS_AT_ONCE: Final = 500


class Listener(Protocol):
    """Whoever lives on what is committed; both calls return at once."""

    def committed(self, observations: pd.DataFrame) -> None:
        """New or corrected rows, as `twin.ingested.OBSERVATIONS`."""
        ...

    def erased(self, patient_id: str) -> None:
        """A patient is to be forgotten."""
        ...


@dataclass(slots=True)
class _Feed:
    ingest: Ingest
    lock: threading.Lock = field(default_factory=threading.Lock)
    rows: int = 0
    batches: int = 0
    last: pd.Timestamp | None = None


class Custodian:
    """Owns an open store; threads may share it."""

    def __init__(
        self,
        store: Store,
        *,
        pseudonym: Callable[[str], str],
        codes: Path,
        timezone: str | None = None,
        live: Collection[str] = (),
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], pd.Timestamp] = lambda: pd.Timestamp.now("UTC"),
    ) -> None:
        """Args:
        pseudonym: of a source's identifier. codes: the site's codes.toml.
        timezone: of times that carry none.
        live: feeds whose rows arrive as they are made, so that the clocks of their devices can be judged.
        changed: called after each consent and erasure; lets go of what was read before.
        """
        self.store = store
        self._pseudonym, self._codes, self._timezone = pseudonym, codes, timezone
        self._live, self._on_change, self.clock = frozenset(live), changed, clock
        self._feeds: dict[str, _Feed] = {}
        self._lock, self._exclusive = threading.Lock(), threading.RLock()
        self._listeners: tuple[Listener, ...] = ()
        self._words = 0

    # Feeds (client.feeds.Intake)

    def position(self, feed: str) -> str:
        """Up to where a feed is committed; it begins there, with an ingest that knows the rows before."""
        with self._exclusive:
            at = self.store.position(feed)
            ingest = self._warmed(feed) if at else self._ingest()
            with self._lock:
                known = self._feeds.get(feed)
                self._feeds[feed] = _Feed(ingest) if known is None else replace(known, ingest=ingest)
        return at

    def take(self, batch: Batch, feed: str) -> None:
        """Cleans and commits a batch with its position; durable on return."""
        with self._lock:
            found = self._feeds[feed]
        with found.lock:
            received = self.clock() if feed in self._live else None
            done = self.store.commit(found.ingest.take(batch, feed, received))
            found.rows += len(batch.observations)
            found.batches += 1
            found.last = self.clock()
            self._tell(done.observations)

    def feeds(self) -> dict[str, dict[str, object]]:
        """Of each feed that began: rows and batches of this process, and when the last one came."""
        with self._lock:
            found = dict(self._feeds)
        return {
            name: {"rows": feed.rows, "batches": feed.batches, "last": feed.last and feed.last.isoformat()}
            for name, feed in found.items()
        }

    # Listeners

    def listen(self, listener: Listener) -> None:
        """Tells the listener of everything that is committed from now on."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

    def leave(self, listener: Listener) -> None:
        """Tells the listener no more."""
        with self._lock:
            self._listeners = tuple(other for other in self._listeners if other is not listener)

    def recent(self, span: pd.Timedelta) -> Iterator[pd.DataFrame]:
        """The last `span` of every stream, some patients at a time."""
        return self._recent(span)

    # What comes back from quarantine

    def requeue(self) -> dict[str, int]:
        """Takes quarantined rows whose codes are known now; rows by what became of them."""
        codes = Codes.read(self._codes)
        waiting = self.store.quarantine()
        known = [
            (str(row.system), str(row.code))
            for row in waiting.itertuples()
            if codes.signal_of(str(row.system), str(row.code)) is not None
        ]
        told = {"taken": 0, "stored": 0, "known already": 0}
        with self._alone():
            ingests: dict[str, Ingest] = {}
            # All before the first: what is put aside again, for its unit, would else come again and again.
            for rows in list(self.store.requeue(known)):
                feed = str(rows["feed"].iloc[0])
                if feed not in ingests:
                    ingests[feed] = self._warmed(feed)
                done = self.store.commit(ingests[feed].again(rows, feed), requeued=rows)
                told["taken"] += len(rows)
                told["stored"] += len(done.observations)
                told["known already"] += done.duplicates
                self._tell(done.observations)
            for name, found in self._feeds.items():  # they know the new codes, and these rows, from now on
                found.ingest = ingests.get(name) or self._warmed(name)
        return told

    # Patients' words

    @property
    def words(self) -> int:
        """How many consents and erasures there were in this process."""
        return self._words

    def consent(self, patient_id: str, research: bool) -> None:
        """Records a patient's word; it holds for whatever is read from now on.

        Raises:
            StoreError: the patient is not known.
        """
        self.store.consent(patient_id, research, self.clock())
        self._changed()

    def erase(self, patient_id: str) -> dict[str, int]:
        """Erases a patient from the memory of feeds and listeners, which keep that, and then from the store.

        Raises:
            StoreError: the patient is not known.
        """
        with self._alone():
            self.store.check_known(patient_id)
            for feed in self._feeds.values():
                feed.ingest.forget(patient_id)
            for listener in self._listeners:  # first, since what they keep for the whole site stays
                listener.erased(patient_id)
            gone = self.store.erase(patient_id)
            for listener in self._listeners:  # one that was reading the store meanwhile
                listener.erased(patient_id)
        self._changed()
        return gone

    def site(self, name: str, purpose: Purpose, patients: Collection[str] | None = None) -> Site:
        """What training, questions and exports may read, or what care may."""
        return self.store.site(name, purpose=purpose, patients=patients)

    def allowed(self, purpose: Purpose) -> list[str]:
        """Whom a purpose allows, sorted."""
        return self.store.allowed(purpose)

    def pseudonym(self, identifier: str) -> str:
        """Under which the store knows whom a source calls so."""
        return self._pseudonym(identifier)

    # Within

    def _ingest(self) -> Ingest:
        codes = Codes.read(self._codes)
        return Ingest(pseudonym=self._pseudonym, timezone=self._timezone, codes=codes, clock=self.clock)

    def _warmed(self, feed: str) -> Ingest:
        ingest = self._ingest()
        for rows in self._recent(WARM):
            own = rows["source"].eq(feed) | rows["source"].str.startswith(f"{feed}/")
            ingest.warm(rows[own])
        return ingest

    def _recent(self, span: pd.Timedelta) -> Iterator[pd.DataFrame]:
        names = list(self.store.patients().index)
        for first in range(0, len(names), _PATIENTS_AT_ONCE):
            yield self.store.recent(span, names[first : first + _PATIENTS_AT_ONCE])

    def _tell(self, observations: pd.DataFrame) -> None:
        for listener in self._listeners if len(observations) else ():
            listener.committed(observations)

    def _changed(self) -> None:
        with self._lock:
            self._words += 1
        self._on_change()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps all feeds out, between two of their batches."""
        with ExitStack() as stack:
            stack.enter_context(self._exclusive)
            for feed in self._feeds.values():
                stack.enter_context(feed.lock)
            yield
