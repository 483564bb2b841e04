"""A Flower Grid over the hospitals' connections, for one run of a ServerApp."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from itertools import count

from flwr.app import Message

from link.errors import LinkError
from link.flower import RunGrid, stamp
from link.frames import Packer
from link.listener import Answered, LinkServer


class Box:
    """Where the answers to one grid's messages arrive."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ready: dict[str, Answered] = {}
        self._closed = False

    def put(self, id_: str, answer: Answered) -> None:
        with self._changed:
            self._ready[id_] = answer
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, wanted: Iterable[str]) -> list[Answered]:
        """The answers that are there."""
        with self._changed:
            return [self._ready.pop(id_) for id_ in wanted if id_ in self._ready]

    def wait(self, wanted: set[str], deadline_s: float | None) -> tuple[str, Answered] | None:
        """The next answer to one of the messages; None at the deadline (monotonic clock).

        Raises:
            LinkError: the listener was stopped.
        """
        with self._changed:
            while True:
                for id_ in self._ready:
                    if id_ in wanted:
                        return id_, self._ready.pop(id_)
                if self._closed:
                    raise LinkError("Expected a listener that runs; it was stopped.")
                left_s = None if deadline_s is None else deadline_s - time.monotonic()
                if left_s is not None and left_s <= 0:
                    return None
                self._changed.wait(left_s)

    def ready(self, wanted: Collection[str], timeout_s: float) -> list[str]:
        """Which of the messages have an answer, as soon as one has; none once the time is over.

        Raises:
            LinkError: the listener was stopped.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or any(id_ in wanted for id_ in self._ready), timeout_s
            )
            found = [id_ for id_ in self._ready if id_ in wanted]
            if self._closed and not found:
                raise LinkError("Expected a listener that runs; it was stopped.")
            return found

    def drop(self) -> None:
        """Lets go of the answers that nobody pulled."""
        with self._changed:
            left = list(self._ready.values())
            self._ready.clear()
        for answer in left:
            answer.close()


class LinkGrid(RunGrid):
    """Carries messages to hospitals and their answers back; the ServerApp sees no difference.

    A node's id follows from its site's name, so it is the same after any restart. A message to a
    member that is not connected waits for it, until its sender's timeout.
    """

    def __init__(self, server: LinkServer, sites: Iterable[str] | None = None) -> None:
        """Args:
        server: a listener that runs.
        sites: names to which the grid is limited; None is every member that trains.
        """
        self._server = server
        self._sites = None if sites is None else frozenset(sites)
        self._box = Box()
        super().__init__()
        self._ids = count(1)
        self._prefix = secrets.token_hex(8)

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self._names())

    def site_of(self, node: int) -> str:
        """The name of the site at a node.

        Raises:
            LinkError: there is none.
        """
        names = self._names()
        if node not in names:
            raise LinkError(f"Expected one of the nodes {sorted(names)}; a message for node {node} came.")
        return names[node]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        names, packer, entries = self._names(), Packer(), []
        for message in messages:
            node = message.metadata.dst_node_id
            if node not in names:
                raise LinkError(f"Expected one of the nodes {sorted(names)}; a message for node {node} came.")
            stamp(message, f"{self._prefix}-{next(self._ids)}")
            entries.append((names[node], message, packer.request(message)))
        self._server.post(entries, self._box)
        return [message.metadata.message_id for _, message, _ in entries]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [answer.open() for answer in self._box.take(message_ids)]

    def wait_for_replies(self, message_ids: Collection[str], timeout_s: float) -> list[str]:
        """Those of the messages that have a reply to pull, as soon as one has; none after `timeout_s`.

        Raises:
            LinkError: the listener was stopped.
        """
        return self._box.ready(message_ids, timeout_s)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """The replies one by one, as they come in; memory holds one of them at a time.

        Messages are sent at once. Those that are not answered within `timeout` seconds, or when the
        caller stops reading, are withdrawn.
        """
        deadline_s = None if timeout is None else time.monotonic() + timeout
        return self._replies(set(self.push_messages(messages)), deadline_s)

    def withdraw(self, message_ids: Iterable[str]) -> None:
        """Waits no longer for these answers; they are refused if they come."""
        self._server.withdraw(message_ids)

    def close(self) -> None:
        """Withdraws whatever is unanswered."""
        self._server.forget(self._box)
        self._box.drop()

    def _replies(self, waiting: set[str], deadline_s: float | None) -> Iterator[Message]:
        try:
            while waiting and (found := self._box.wait(waiting, deadline_s)) is not None:
                waiting.discard(found[0])
                yield found[1].open()
        finally:
            self._server.withdraw(waiting)
            for late in self._box.take(waiting):
                late.close()

    def _names(self) -> dict[int, str]:
        wanted = self._sites
        names = [name for name in self._server.training_sites() if wanted is None or name in wanted]
        return {node_id(name): name for name in names}


def node_id(site: str) -> int:
    """The node of a site: 62 bits of the hash of its name, and never one of the small ids in use."""
    return 1 << 62 | int.from_bytes(hashlib.sha256(site.encode()).digest()[:8], "big") >> 2
