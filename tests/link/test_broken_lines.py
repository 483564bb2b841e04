"""A line that breaks, stalls or comes back costs time and nothing else."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from link.coordinator import LinkGrid
from link.errors import CallRefused
from link.frames import Limits
from link.hospital import State
from link.session import MOST_QUEUED_BYTES
from link.transfers import Incoming
from tests.link.federation_of_certificates import (
    IMPATIENT,
    PATIENCE_S,
    Federation,
    federation,
    wait_until,
)
from tests.lossy_wire import DOWN, UP, LossyWire

SMALL_CHUNKS = Limits(chunk_bytes=64 << 10)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Federation]:
    with federation(tmp_path, limits=SMALL_CHUNKS) as made:
        yield made


def echo(message: Message) -> Message:
    return Message(message.content, reply_to=message)


def model(megabytes: float, seed: int = 0) -> RecordDict:
    values = np.random.default_rng(seed).standard_normal(int(megabytes * (1 << 18))).astype(np.float32)
    return RecordDict({"model": ArrayRecord({"w": Array(values)})})


def ask(grid: LinkGrid, content: RecordDict, timeout: float = PATIENCE_S) -> RecordDict:
    (node,) = grid.get_node_ids()
    (reply,) = grid.send_and_receive([Message(content, node, "train")], timeout=timeout)
    assert reply.has_content(), reply.error
    return reply.content


def same(one: RecordDict, other: RecordDict) -> bool:
    return one.array_records["model"]["w"].data == other.array_records["model"]["w"].data


def test_a_transfer_that_breaks_off_again_and_again_goes_on_where_it_stopped(there: Federation) -> None:
    size = 2 << 20
    with LossyWire(there.port) as wire:
        handled: list[str] = []

        def handle(message: Message) -> Message:
            handled.append(message.metadata.message_id)
            return echo(message)

        lengths = {UP: 0, DOWN: 0}

        def cut_now_and_then(direction: str, passed: int) -> None:
            if passed - lengths[direction] > 200_000:  # about three chunks
                lengths[direction] = passed
                wire.cut()

        there.hospital("alpha", handle, port=wire.port)
        wire.on_pass = cut_now_and_then
        content = model(2)
        assert same(ask(LinkGrid(there.server), content), content)
        assert len(handled) == 1
        assert wire.connections > 10
        # No connection carries more than a tenth of the model: only going on comes to an end.
        assert all(wire.passed[direction] > size for direction in (UP, DOWN))


@pytest.mark.parametrize("swallowed", [(UP,), (DOWN,), (UP, DOWN)])
def test_a_line_that_swallows_one_way_is_given_up_and_the_next_takes_over(
    tmp_path: Path, swallowed: tuple[str, ...]
) -> None:
    with (
        federation(tmp_path, members=lambda: ["alpha"], limits=SMALL_CHUNKS, pace=IMPATIENT) as there,
        LossyWire(there.port) as wire,
    ):
        there.hospital("alpha", echo, port=wire.port)
        wire.swallow(*swallowed)
        done: list[RecordDict] = []
        content = model(1)
        asking = threading.Thread(target=lambda: done.append(ask(LinkGrid(there.server), content)))
        asking.start()
        assert there.wait_for("disconnected", "alpha")
        wire.cut()
        wire.heal()
        asking.join(PATIENCE_S)
        assert done and same(done[0], content)


def test_a_slow_line_is_no_dead_line(there: Federation) -> None:
    with LossyWire(there.port) as wire:
        there.hospital("alpha", echo, port=wire.port)
        wire.delay_s = 0.02
        content = model(1)
        assert same(ask(LinkGrid(there.server), content), content)
        assert wire.connections == 1


def test_an_answer_that_is_ready_while_the_line_is_down_is_sent_once_it_is_up(there: Federation) -> None:
    with LossyWire(there.port) as wire:
        asked, handled = threading.Event(), []

        def handle(message: Message) -> Message:
            handled.append(message)
            asked.set()
            assert there.wait_for("disconnected", "alpha")
            return echo(message)

        there.hospital("alpha", handle, port=wire.port)
        grid = LinkGrid(there.server)
        (node,) = grid.get_node_ids()
        (message_id,) = grid.push_messages([Message(model(0.01), node, "train")])
        assert asked.wait(PATIENCE_S)
        wire.down()
        assert there.wait_for("disconnected", "alpha")
        assert list(grid.pull_messages([message_id])) == []
        wire.up()
        assert grid.wait_for_replies([message_id], PATIENCE_S) == [message_id]
        (reply,) = grid.pull_messages([message_id])
        assert reply.has_content()
        assert len(handled) == 1


def test_a_hospital_that_restarts_before_it_answers_is_asked_again(there: Federation) -> None:
    asked, never = threading.Event(), threading.Event()

    def hang(message: Message) -> Message:
        asked.set()
        never.wait(PATIENCE_S)
        return echo(message)

    first = there.hospital("alpha", hang)
    grid = LinkGrid(there.server)
    (node,) = grid.get_node_ids()
    (message_id,) = grid.push_messages([Message(model(0.01), node, "train")])
    assert asked.wait(PATIENCE_S)
    first.stop(wait=False)
    there.hospital("alpha", echo)
    assert grid.wait_for_replies([message_id], PATIENCE_S) == [message_id]
    never.set()


def test_a_message_to_a_member_that_is_not_there_waits_for_it(tmp_path: Path) -> None:
    with federation(tmp_path, members=lambda: ["alpha"]) as there:
        grid = LinkGrid(there.server)
        (node,) = grid.get_node_ids()
        replies = grid.send_and_receive([Message(RecordDict(), node, "query")], timeout=PATIENCE_S)
        there.hospital("alpha", echo)
        assert len(list(replies)) == 1
        (same_node,) = grid.get_node_ids()
        assert same_node == node


def test_an_answer_that_comes_after_the_deadline_reaches_nobody(there: Federation) -> None:
    late = threading.Event()

    def slow(message: Message) -> Message:
        if message.content.config_records["round"]["number"] == 1:
            late.wait(PATIENCE_S)
        return echo(message)

    there.hospital("alpha", slow)
    grid = LinkGrid(there.server)
    (node,) = grid.get_node_ids()

    def numbered(number: int) -> list[Message]:
        return [Message(RecordDict({"round": ConfigRecord({"number": number})}), node, "train")]

    assert list(grid.send_and_receive(numbered(1), timeout=0.3)) == []
    late.set()
    (reply,) = grid.send_and_receive(numbered(2), timeout=PATIENCE_S)
    assert reply.content.config_records["round"]["number"] == 2
    assert there.wait_for("repeated_answer", "alpha")


def test_a_full_disk_refuses_one_parcel_and_keeps_the_connection(
    there: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.hospital("alpha", echo)
    grid = LinkGrid(there.server)
    (node,) = grid.get_node_ids()
    write = os.pwrite

    def full(file: int, data: bytes, offset: int) -> int:
        if offset > 300_000:
            raise OSError(28, "No space left on device")
        return write(file, data, offset)

    monkeypatch.setattr("link.transfers.os.pwrite", full)
    (reply,) = grid.send_and_receive([Message(model(4), node, "train")], timeout=PATIENCE_S)
    assert reply.has_error()
    assert reply.error.reason == "no_space"
    monkeypatch.undo()
    content = model(4)
    assert same(ask(grid, content), content)
    assert [event for event, _, _ in there.events] == ["connected"]


def test_a_slow_disk_holds_the_sender_back(there: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    write, put, queued = os.pwrite, Incoming.put, [0]

    def slow(file: int, data: bytes, offset: int) -> int:
        time.sleep(0.002)
        return write(file, data, offset)

    def counted(incoming: Incoming, data: memoryview) -> None:
        put(incoming, data)
        queued.append(incoming.queued)

    monkeypatch.setattr("link.transfers.os.pwrite", slow)
    monkeypatch.setattr(Incoming, "put", counted)
    there.hospital("alpha", echo)
    content = model(12)
    assert same(ask(LinkGrid(there.server), content), content)
    assert SMALL_CHUNKS.chunk_bytes < max(queued) <= MOST_QUEUED_BYTES + SMALL_CHUNKS.chunk_bytes


def test_a_second_connection_replaces_the_first(there: Federation) -> None:
    first = there.hospital("alpha", echo)
    second = there.hospital("alpha", echo)
    assert there.wait_for("disconnected", "alpha", "replaced")
    assert second.state.connected or there.wait_for("connected", "alpha", times=3)
    first.stop()
    assert second.wait_until_connected(PATIENCE_S)
    wait_until(lambda: set(there.server.connected()) == {"alpha"})
    content = model(0.5)
    assert same(ask(LinkGrid(there.server), content), content)


def test_waits_grow_to_a_limit_and_begin_anew_after_a_connection(tmp_path: Path) -> None:
    with federation(tmp_path) as there:
        states: list[State] = []
        link = there.hospital("alpha", echo, on_state=states.append)
        waits = [link._wait_s(attempts, "unreachable") for attempts in range(1, 12)]
        settings = link.settings
        for attempt, wait_s in enumerate(waits):
            most = min(settings.first_wait_s * 2**attempt, settings.most_wait_s)
            assert most / 2 <= wait_s <= most
        assert link._wait_s(1, "replaced") >= settings.most_wait_s / 2
        there.server.cut("alpha", "stopping")
        assert there.wait_for("connected", "alpha", times=2)
        assert link.wait_until_connected(PATIENCE_S)
        assert [state.attempts for state in states] == [0, 1, 0]


def test_calls_are_answered_or_refused_with_a_code_over_broken_lines(tmp_path: Path) -> None:
    def serve(kind: str, site: str, payload: bytes) -> bytes:
        if kind == "deny":
            raise CallRefused("not_for_you", "a text that stays here")
        if kind == "fail":
            raise RuntimeError("patient 007")
        return site.encode() + 20 * payload[::-1]  # as a model is: what is asked is small, the answer is not

    with federation(tmp_path, serve=serve, limits=SMALL_CHUNKS) as there, LossyWire(there.port) as wire:
        link = there.hospital("alpha", echo, port=wire.port)
        payload = np.random.default_rng(0).bytes(60_000)
        lengths = {UP: 0, DOWN: 0}

        def cut_now_and_then(direction: str, passed: int) -> None:
            if passed - lengths[direction] > 300_000:
                lengths[direction] = passed
                wire.cut()

        wire.on_pass = cut_now_and_then
        assert link.call("fetch", payload, timeout_s=PATIENCE_S) == b"alpha" + 20 * payload[::-1]
        for kind, code in (("deny", "not_for_you"), ("fail", "internal_error")):
            with pytest.raises(CallRefused) as refused:
                link.call(kind, b"")
            assert refused.value.code == code
            assert "007" not in str(refused.value)
            assert "text" not in str(refused.value)


def test_heads_are_exchanged_in_greetings_and_beats(tmp_path: Path) -> None:
    from_sites: list[tuple[str, bytes]] = []
    from_coordinator: list[bytes] = []
    options = {
        "head": lambda site: b"ours for " + site.encode(),
        "heard": lambda site, head: from_sites.append((site, head)),
    }
    with federation(tmp_path, **options) as there:
        heads = iter([b"one", b"two"])
        again = threading.Event()

        def head() -> bytes:
            return next(heads, b"more")

        def heard(head: bytes) -> None:
            from_coordinator.append(head)
            if len(from_coordinator) > 2:
                again.set()

        there.hospital("alpha", echo, head=head, heard=heard)
        assert again.wait(PATIENCE_S)
    assert set(from_coordinator) == {b"ours for alpha"}
    assert from_sites[:2] == [("alpha", b"one"), ("alpha", b"two")]


def test_an_http_connect_proxy_is_used_where_there_is_one(
    there: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with LossyWire(there.port, connect_proxy=True) as proxy:
        there.hospital("alpha", echo, proxy=f"http://127.0.0.1:{proxy.port}")
        content = model(0.5)
        assert same(ask(LinkGrid(there.server), content), content)
        assert proxy.asked == [f"CONNECT 127.0.0.1:{there.port} HTTP/1.1"]
        assert proxy.passed[DOWN] > content.array_records["model"]["w"].numpy().nbytes
