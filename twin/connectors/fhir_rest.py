"""FHIR R4 from a live server: searches by `_lastUpdated`, again and again, page by page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlencode

from msgspec import Raw

from twin.connectors.feed import Batch
from twin.connectors.fhir_auth import Client
from twin.connectors.fhir_http import Answer, Server
from twin.connectors.fhir_models import (
    TYPES,
    Bundle,
    Head,
    Refused,
    next_link,
    read_bundle,
    read_entry,
    read_head,
)
from twin.connectors.fhir_rows import Reader
from twin.connectors.rows import Rows
from twin.errors import DataError

RESOURCES: Final = (
    "Patient",
    "Encounter",
    "Condition",
    "Observation",
    "MedicationAdministration",
    "MedicationStatement",
)
_TURN_S: Final = 0.5
_MOST_SEEN: Final = 200_000
_MOST_IDS: Final = 50
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class FhirRest:
    """Asks a server for what changed, and never ends.

    The server's own clock (meta.lastUpdated) says what is new; each round asks again for the last
    `overlap_s` before the newest resource, for servers whose writes become visible late. What comes twice
    is left out by its version, and after a restart recognised by the store. The position moves with every
    page where the server sorts as asked, else at the end of a search.

    Attributes:
        name: of the feed.
        url: base address of the server, https.
        resources: types that are asked for, in this order.
        search: more of a type's search, for instance {"Observation": "category=vital-signs,laboratory"}.
        identifier, waveforms: see `twin.connectors.fhir_rows.Reader`.
        count: resources on a page.
        every_s: between the ends of a round and the next one.
        overlap_s: see above.
        token_url, client_id, client_secret_file, private_key_file, key_id, scope: see
            `twin.connectors.fhir_auth.Client`; without token_url no token is asked for.
        ca_file, proxy, timeout_s, attempts, first_wait_s, most_bytes: see `twin.connectors.fhir_http.Server`.
    """

    name: str
    url: str
    resources: tuple[str, ...] = RESOURCES
    search: Mapping[str, str] = field(default_factory=dict)
    identifier: str = ""
    waveforms: bool = False
    count: int = 500
    every_s: float = 60.0
    overlap_s: float = 300.0
    token_url: str = ""
    client_id: str = ""
    client_secret_file: Path | None = None
    private_key_file: Path | None = None
    key_id: str = ""
    scope: str = "system/*.read"
    ca_file: Path | None = None
    proxy: str = ""
    timeout_s: float = 60.0
    attempts: int = 8
    first_wait_s: float = 1.0
    most_bytes: int = 64 * 1024 * 1024

    def batches(self, position: str) -> Iterator[Batch]:
        """Everything that changed after `position`, see `twin.connectors.feed.Connector`."""
        unknown = [kind for kind in (*self.resources, *self.search) if kind not in TYPES]
        if unknown:
            raise DataError(f"feed {self.name!r}: unknown resources; there are: {', '.join(TYPES)}.")
        server, state = self._server(), _State.of(position)
        server.open()
        reader = Reader(identifier=self.identifier, waveforms=self.waveforms)
        pool = ThreadPoolExecutor(1, thread_name_prefix="fhir")
        try:
            names = set(self.resources) & {"Patient", "Medication"}
            fresh = dict.fromkeys(names, "") if self.identifier else {}  # who is who is not in the position
            while True:
                for kind in self.resources:
                    since = fresh.pop(kind, state.since.get(kind, ""))
                    yield from self._search(kind, since, server, reader, state, pool)
                pause = pool.submit(server.closing.wait, self.every_s)
                yield from _meanwhile(pause)
        finally:
            server.close()
            pool.shutdown(wait=False, cancel_futures=True)

    def _server(self) -> Server:
        client = None
        if self.token_url:
            client = Client(
                token_url=self.token_url,
                client_id=self.client_id,
                client_secret_file=self.client_secret_file,
                private_key_file=self.private_key_file,
                key_id=self.key_id,
                scope=self.scope,
            )
        return Server(
            base=self.url.rstrip("/"),
            client=client,
            ca_file=self.ca_file,
            proxy=self.proxy,
            timeout_s=self.timeout_s,
            attempts=self.attempts,
            first_wait_s=self.first_wait_s,
            most_bytes=self.most_bytes,
        )

    def _search(
        self,
        kind: str,
        since: str,
        server: Server,
        reader: Reader,
        state: _State,
        pool: ThreadPoolExecutor,
    ) -> Iterator[Batch]:
        """The batches of one search, a page each."""
        url, asked = self._first(kind, since, server.base), set[str]()
        newest, before, first_date_s, sorted_so_far = since, "", None, True
        while url:
            if url in asked:
                raise DataError("The FHIR server's links to next pages go round in a circle.")
            asked.add(url)
            answer = yield from _meanwhile(pool.submit(server.get, url))
            first_date_s = first_date_s or answer.date_s
            page = _Page.of(answer, kind)
            sorted_so_far, before = sorted_so_far and page.is_sorted_after(before), page.newest
            newest = max(newest, page.newest, key=_moment)
            rows, bundle = Rows(rejected=Counter(page.refused)), page.new(state)
            for strangers in _portions(reader.strangers(bundle)):
                asked_for = f"{server.base}/Patient?{urlencode({'_id': ','.join(strangers)})}"
                found = yield from _meanwhile(pool.submit(server.get, asked_for))
                reader.take_bundle(_Page.of(found, "Patient").new(state), rows)
            reader.take_bundle(bundle, rows)
            url = server.next_url(url, page.next) if page.next else ""
            if not url:
                newest = newest or _text(first_date_s)
            if first_date_s is not None:  # a resource from the future must not hide what comes before it
                newest = min(newest, _text(first_date_s), key=_moment)
            if newest and (sorted_so_far or not url):
                state.since[kind] = max(state.since.get(kind, ""), newest, key=_moment)
            yield rows.batch(str(state))

    def _first(self, kind: str, since: str, base: str) -> str:
        pairs = {"_count": str(self.count), "_sort": "_lastUpdated"}
        if since:
            begin = _moment(since) - timedelta(seconds=self.overlap_s)
            pairs["_lastUpdated"] = f"ge{begin.isoformat(timespec='milliseconds')}"
        if kind.startswith("Medication") and kind != "Medication":
            pairs["_include"] = f"{kind}:medication"
        more = self.search.get(kind, "").strip("&")
        return f"{base}/{kind}?{urlencode(pairs)}" + (f"&{more}" if more else "")


@dataclass(slots=True, kw_only=True)
class _State:
    """The newest lastUpdated of each type, which is the position; and what was seen lately, which is not."""

    since: dict[str, str] = field(default_factory=dict)
    seen: dict[tuple[str, str, str, str], None] = field(default_factory=dict)

    @classmethod
    def of(cls, position: str) -> _State:
        try:
            found = json.loads(position or "{}").get("since", {})
            since = {str(kind): str(time) for kind, time in found.items()}
            for time in since.values():
                datetime.fromisoformat(time)
        except (ValueError, AttributeError, TypeError):
            raise DataError("The position of a FHIR feed is damaged; start the feed anew.") from None
        return cls(since=since)

    def __str__(self) -> str:
        return json.dumps({"since": self.since})

    def is_new(self, head: Head) -> bool:
        """Whether this version of a resource has not been seen lately."""
        meta = head.meta
        if meta is None or not head.id or not (meta.versionId or meta.lastUpdated):
            return True
        key = (head.resourceType, head.id, meta.versionId, meta.lastUpdated)
        if key in self.seen:
            return False
        if len(self.seen) >= _MOST_SEEN:
            for old in list(self.seen)[: _MOST_SEEN // 2]:
                del self.seen[old]
        self.seen[key] = None
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """One page of a search."""

    entries: list[tuple[bytes, Head]]
    refused: list[str]
    next: str
    times: list[str]

    @classmethod
    def of(cls, answer: Answer, kind: str) -> _Page:
        """The page of an answer; its times are those of the resources of this kind.

        Raises:
            DataError: it is no bundle.
        """
        entries: list[tuple[bytes, Head]] = []
        refused: list[str] = []
        try:
            bundle = read_bundle(answer.body)
            following = next_link(bundle)
        except Refused:
            raise DataError("The FHIR server's answer is no bundle of FHIR; check url.") from None
        for entry in bundle.entry:
            try:
                head = read_head(read_entry(entry).resource)
            except Refused as reason:
                refused.append(str(reason))
            else:
                entries.append((bytes(entry), head))
        times = [
            head.meta.lastUpdated
            for _, head in entries
            if head.resourceType == kind and head.meta and head.meta.lastUpdated
        ]
        return cls(entries=entries, refused=refused, next=following, times=times)

    @property
    def newest(self) -> str:
        return max(self.times, key=_moment, default="")

    def is_sorted_after(self, before: str) -> bool:
        """Whether the server sorts: nothing is older than what stands before it."""
        moments = [_moment(time) for time in ([before] if before else []) + self.times]
        return bool(self.times) and all(one <= other for one, other in pairwise(moments))

    def new(self, state: _State) -> Bundle:
        """What has not been seen lately."""
        return Bundle(entry=[Raw(text) for text, head in self.entries if state.is_new(head)])


def _meanwhile(future: Future[_Result]) -> Generator[Batch, None, _Result]:
    """The future's result; empty batches until it is there."""
    while not wait({future}, timeout=_TURN_S).done:
        yield Batch()
    return future.result()


def _portions(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + _MOST_IDS] for start in range(0, len(ids), _MOST_IDS))


def _moment(time: str) -> datetime:
    """For an order of times; what is none comes first."""
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _text(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat() if seconds is not None else ""
