from __future__ import annotations

import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import hl7
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ports import free_port
from tests.twin.connectors.local_tls import authority_with
from twin.connectors.feed import Batch
from twin.connectors.hl7v2_mllp import Hl7v2Mllp
from twin.connectors.mllp_frames import Frames, TooLarge, framed
from twin.errors import DataError

TEXT = (
    "MSH|^~\\&|MON|ICU|TW|H|20240301100000+0100||ORU^R01|{}|P|2.5\r"
    "PID|1||222^^^HOSP^MR\rOBR|1|||X|||20240301095500\r"
    "OBX|1|NM|8867-4^Heart rate^LN||{}|/min|||||F\r"
)


PATIENCE_S = 60.0


def said(answer: bytes) -> tuple[str, str]:
    """(code, control id) of an acknowledgement in its frame."""
    assert answer[:1] == b"\x0b" and answer[-2:] == b"\x1c\r"
    acknowledgement = hl7.parse(answer[1:-2].decode())[1]
    return str(acknowledgement[1]), str(acknowledgement[2])


def hear(connection: socket.socket) -> bytes:
    connection.settimeout(PATIENCE_S)
    found = b""
    while not found.endswith(b"\x1c\r"):
        more = connection.recv(4096)
        if not more:
            return found
        found += more
    return found


class Driven:
    """A feed in a thread; `commit` lets it go on once."""

    def __init__(self, feed: Hl7v2Mllp, position: str = "") -> None:
        self.batches: queue.Queue[Batch | Exception] = queue.Queue()
        self._go: queue.Queue[bool] = queue.Queue()
        self._thread = threading.Thread(target=self._run, args=(feed.batches(position),), daemon=True)
        self._thread.start()
        self.commit()

    def _run(self, batches: Iterator[Batch]) -> None:
        try:
            while self._go.get():
                self.batches.put(next(batches))
        except Exception as error:  # noqa: BLE001  whatever it is, who waits is told
            self.batches.put(error)
        batches.close()  # type: ignore[attr-defined]  # a generator

    def commit(self) -> None:
        self._go.put(True)

    def wait(self) -> Batch:
        """The next batch that holds something, not yet committed."""
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            batch = self.batches.get(timeout=PATIENCE_S)
            if isinstance(batch, Exception):
                raise batch
            if not batch.is_empty:
                return batch
            self.commit()
        raise AssertionError("nothing arrived")

    def close(self) -> None:
        self._go.put(False)
        self._thread.join(timeout=PATIENCE_S)
        assert not self._thread.is_alive()


@pytest.fixture
def port() -> int:
    return free_port()


def connect(port: int) -> socket.socket:
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise AssertionError("the feed does not listen")


def test_a_message_is_acknowledged_only_after_its_batch_is_committed(port: int) -> None:
    feed = Driven(Hl7v2Mllp(name="t", port=port))
    with connect(port) as sender:
        sender.sendall(framed(TEXT.format(7, 72).encode()))
        batch = feed.wait()
        sender.settimeout(0.8)
        with pytest.raises(TimeoutError):
            sender.recv(1)
        feed.commit()
        assert said(hear(sender)) == ("AA", "7")
    assert list(batch.observations["value"]) == [72.0]
    feed.close()


def test_what_was_not_committed_stays_unanswered_and_what_was_is_not_read_again(port: int) -> None:
    lost = Driven(Hl7v2Mllp(name="t", port=port))
    with connect(port) as sender:
        sender.sendall(framed(TEXT.format(1, 72).encode()))
        lost.wait()
        lost.close()
        assert hear(sender) == b""
    feed = Driven(Hl7v2Mllp(name="t", port=port))
    with connect(port) as sender:
        sender.sendall(framed(TEXT.format(1, 72).encode()))
        committed = feed.wait()
        assert list(committed.observations["value"]) == [72.0]
        feed.commit()
        assert said(hear(sender)) == ("AA", "1")
    feed.close()
    again = Driven(Hl7v2Mllp(name="t", port=port), committed.position)
    with connect(port) as sender:
        sender.sendall(framed(TEXT.format(1, 72).encode()) + framed(TEXT.format(1, 73).encode()))
        fresh = again.wait()  # the first one is known; the second has its control id and is another
        again.commit()
        assert list(fresh.observations["value"]) == [73.0]
        answers = hear(sender)
        while answers.count(b"MSA|") < 2:
            answers += hear(sender)
        assert answers.count(b"MSA|AA|1") == 2
    again.close()


def test_what_cannot_be_read_is_answered_so_and_the_connection_goes_on(port: int) -> None:
    feed = Driven(Hl7v2Mllp(name="t", port=port))
    with connect(port) as sender:
        for text, answer in (
            (TEXT.format(1, 72).replace("PID", "ZID"), ("AE", "1")),
            (TEXT.format(2, 72).replace("ORU^R01", "ADT^A01"), ("AR", "2")),
            ("what is this", ("AR", "")),
            (TEXT.format(3, 74), ("AA", "3")),
        ):
            sender.sendall(framed(text.encode()))
            feed.wait()
            feed.commit()
            assert said(hear(sender)) == answer
    feed.close()


def test_only_networks_that_are_allowed_may_connect(port: int) -> None:
    feed = Driven(Hl7v2Mllp(name="t", port=port, allow=("192.0.2.0/24",)))
    with connect(port) as sender:
        assert sender.recv(1) == b""
    assert feed.wait().rejected == {"connection from an address that is not allowed": 1}
    feed.close()


def test_with_an_authority_only_its_clients_are_heard(port: int, tmp_path: Path) -> None:
    ca = authority_with(tmp_path, "server", "client")
    other = tmp_path / "other"
    other.mkdir()
    authority_with(other, "client")
    feed = Driven(
        Hl7v2Mllp(
            name="t",
            port=port,
            cert_file=tmp_path / "server.pem",
            key_file=tmp_path / "server.key",
            client_ca_file=ca,
        )
    )
    stranger = ssl.create_default_context(cafile=ca)
    stranger.load_cert_chain(other / "client.pem", other / "client.key")
    with connect(port) as plain:
        assert _refused(stranger, plain)
    assert feed.wait().rejected == {"connection that failed in TLS": 1}
    feed.commit()
    known = ssl.create_default_context(cafile=ca)
    known.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
    with connect(port) as plain, known.wrap_socket(plain, server_hostname="localhost") as sender:
        sender.sendall(framed(TEXT.format(2, 73).encode()))
        assert list(feed.wait().observations["value"]) == [73.0]
        feed.commit()
        assert said(hear(sender)) == ("AA", "2")
    feed.close()


def _refused(context: ssl.SSLContext, plain: socket.socket) -> bool:
    """Whether the server ends it; in TLS 1.3 a client learns that only when it reads."""
    try:
        with context.wrap_socket(plain, server_hostname="localhost") as sender:
            sender.sendall(framed(TEXT.format(1, 72).encode()))
            return sender.recv(1) == b""
    except OSError:
        return True


def test_a_feed_that_anybody_could_reach_is_refused(tmp_path: Path) -> None:
    for feed, text in (
        (Hl7v2Mllp(name="t", host="0.0.0.0"), "for everybody"),
        (Hl7v2Mllp(name="t", cert_file=tmp_path / "x"), "key_file"),
        (Hl7v2Mllp(name="t", cert_file=tmp_path / "x", key_file=tmp_path / "y"), "FileNotFoundError"),
        (Hl7v2Mllp(name="t", allow=("somewhere",)), "networks"),
    ):
        with pytest.raises(DataError, match=text):
            next(feed.batches(""))


def test_a_message_beyond_its_limit_closes_the_connection_and_is_counted(port: int) -> None:
    feed = Driven(Hl7v2Mllp(name="t", port=port, most_bytes=1000))
    with connect(port) as sender:
        sender.sendall(b"\x0b" + b"x" * 1500)
        assert sender.recv(1) == b""
    assert feed.wait().rejected == {"frame too large": 1}
    feed.close()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.binary(max_size=40).map(lambda one: one.translate(None, b"\x0b\x1c")), max_size=6),
    st.lists(st.integers(0, 300), max_size=8),
)
def test_frames_do_not_depend_on_how_the_bytes_arrive(messages: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(framed, messages))
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    frames, found = Frames(most_bytes=1000), list[bytes]()
    for start, end in pairwise(places):
        found += frames.feed(stream[start:end])
    assert found == messages and not +frames.faults and not frames.is_within


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_fuzz_junk_between_frames_costs_none_of_them(junk: bytes) -> None:
    frames = Frames(most_bytes=100)
    found = frames.feed(framed(b"one") + junk + framed(b"two"))
    assert found[0] == b"one" and found[-1] == b"two"


def test_a_frame_that_never_ends_is_bounded() -> None:
    frames = Frames(most_bytes=100)
    frames.feed(b"\x0b" + b"x" * 90)
    with pytest.raises(TooLarge):
        frames.feed(b"x" * 30)
