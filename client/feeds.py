"""A site's feeds: what feeds.toml lists, and how each is driven, batch by batch, into the store.

A batch is committed with the feed's position in one transaction, and only then is the next one asked for,
which tells the source that it may forget. So whatever dies, and whenever, a row is there once.
"""

from __future__ import annotations

import threading
import tomllib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from client.errors import ClientError
from twin.connectors.feed import Batch, Connector
from twin.connectors.feeds import build
from twin.errors import DataError

EXAMPLE: Final = """\
# The feeds of this site, one [[feed]] each: docs/feeds.md. `twinward site feeds check` tries them.
# Passwords and tokens stand in files of their own, named here.

# [[feed]]
# name = "exports"          # any name; it stands beside what the feed brings
# kind = "drop"             # a folder into which people put files
# folder = "/var/lib/twinward/drop"
"""


class Intake(Protocol):
    """Where batches go."""

    def position(self, feed: str) -> str:
        """Up to where a feed is committed; empty if nothing is."""
        ...

    def take(self, batch: Batch, feed: str) -> None:
        """Cleans and commits a batch with its position; durable on return."""
        ...


def read_feeds(path: Path) -> tuple[Connector, ...]:
    """The feeds that feeds.toml lists; none if there is no such file.

    Raises:
        ClientError: home_unreadable, naming every fault of every feed.
    """
    faults: list[str] = []
    feeds: list[Connector] = []
    for entry in _entries(path):
        try:
            feeds.append(_feed(entry))
        except DataError as error:
            faults.append(str(error))
    names = [feed.name for feed in feeds]
    faults += [f"two feeds are called {name!r}" for name in sorted({n for n in names if names.count(n) > 1})]
    if faults:
        raise _unreadable(f"{path}: {' '.join(faults)} See docs/feeds.md.")
    return tuple(feeds)


@dataclass(slots=True)
class FeedPart:
    """One feed at work, for `client.supervisor`.

    Attributes:
        beat: told after each batch, also an empty one, with the rows that it brought.
    """

    connector: Connector
    intake: Intake
    beat: Callable[[str, int], None] = lambda *_: None

    @property
    def name(self) -> str:
        return f"feed {self.connector.name}"

    def run(self, stop: threading.Event) -> None:
        """Takes batches until the feed ends or `stop` is set.

        Raises:
            DataError: the source cannot be used at the moment; it is tried again.
        """
        feed = self.connector.name
        with closing(self.connector.batches(self.intake.position(feed))) as batches:
            for batch in batches:
                if not batch.is_empty or batch.position:
                    self.intake.take(batch, feed)
                self.beat(feed, len(batch.observations))
                if stop.is_set():
                    return


def _entries(path: Path) -> list[Any]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise _unreadable(f"Expected TOML in {path} ({type(error).__name__}); see docs/feeds.md.") from None
    entries = data.pop("feed", [])
    if data or not isinstance(entries, list):
        raise _unreadable(f"Expected in {path} [[feed]] tables and nothing else; found {sorted(data)}.")
    return entries


def _feed(entry: Any) -> Connector:
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("kind"), str)
        or not isinstance(entry.get("name"), str)
    ):
        raise DataError("a [[feed]] lacks a kind or a name.")
    name = entry["name"]
    if not 0 < len(name) <= 64 or not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise DataError(f"feed {name[:64]!r}: a name has up to 64 letters, digits, hyphens and underscores.")
    return build(entry["kind"], {key: value for key, value in entry.items() if key != "kind"})


def _unreadable(text: str) -> ClientError:
    return ClientError("home_unreadable", text)
