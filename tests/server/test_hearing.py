"""What sites say of the logs, taken by a coordinator that is slower than they talk."""

from __future__ import annotations

import threading

from server.hearing import Hearing
from trust.witness import LARGEST_BYTES


def test_of_a_site_that_talks_without_end_the_newest_word_alone_is_kept() -> None:
    told: list[tuple[str, bytes]] = []
    busy, go_on = threading.Event(), threading.Event()

    def slow(site: str, data: bytes) -> None:
        told.append((site, data[:8]))
        busy.set()
        assert go_on.wait(60)

    hearing = Hearing(slow)
    hearing.heard("alpha", b"first")
    assert busy.wait(60)
    for number in range(1000):
        hearing.heard("alpha", b"%d" % number)
    hearing.heard("beta", b"mine")
    go_on.set()
    hearing.close()
    assert told == [("alpha", b"first"), ("alpha", b"999"), ("beta", b"mine")]


def test_a_word_that_is_too_long_keeps_no_more_than_shows_it() -> None:
    sizes: list[int] = []
    hearing = Hearing(lambda _, data: sizes.append(len(data)))
    hearing.heard("alpha", bytes(1 << 20))
    hearing.close()
    assert sizes == [LARGEST_BYTES + 1]
