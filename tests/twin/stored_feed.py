"""A feed driven into a store; as a program it is killed after a commit, before the acknowledgement."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from twin.connectors.feed import Connector
from twin.connectors.feeds import build
from twin.ingest import Ingest
from twin.store import Store

KEY = bytes(range(32))


def drive(store: Store, feed: Connector, *, until: Callable[[], bool]) -> None:
    """Commits batches until it is enough; what was committed last is not acknowledged."""
    ingest = Ingest(pseudonym=lambda name: hashlib.sha256(name.encode()).hexdigest()[:32], timezone=None)
    with closing(feed.batches(store.position(feed.name))) as batches:
        for batch in batches:
            if not batch.is_empty or batch.position:
                store.commit(ingest.take(batch, feed.name))
            if until():
                return


def _killed() -> None:
    with Store.create(Path(sys.argv[1]), KEY) as store:
        feed = build(sys.argv[2], json.loads(sys.argv[3]))
        drive(store, feed, until=lambda: len(store.site("s", purpose="care").observations) > 0)
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _killed()
