"""What every Grid keeps, in one process or over the link: one suite for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from link.coordinator import LinkGrid
from link.errors import LinkError
from link.flower import RUN_ID
from link.local import LocalGrid
from tests.link.federation_of_certificates import PATIENCE_S, federation

NAMES = ("alpha", "beta", "gamma")

app = ClientApp()


@app.query()
def _echo(message: Message, context: Context) -> Message:
    seen = int(context.state.config_records["seen"]["count"]) if "seen" in context.state else 0
    context.state["seen"] = ConfigRecord({"count": seen + 1})
    content = RecordDict({name: message.content[name] for name in message.content})
    content["said"] = ConfigRecord({"partition": int(context.node_config["partition-id"]), "seen": seen + 1})
    return Message(content, reply_to=message)


@app.query("fail")
def _fail(message: Message, context: Context) -> Message:
    raise RuntimeError(f"patient {7:03d}")


def local_grid(stack: ExitStack, root: Path) -> Grid:
    return LocalGrid(app, {}, range(len(NAMES)))


def link_grid(stack: ExitStack, root: Path) -> Grid:
    there = stack.enter_context(federation(root))
    for number, name in enumerate(NAMES):
        there.hospital(name, _handler(number))
    return LinkGrid(there.server)


def _handler(number: int) -> Callable[[Message], Message]:
    context = Context(
        run_id=RUN_ID,
        node_id=number,
        node_config={"partition-id": number},
        state=RecordDict(),
        run_config={},
    )
    return lambda message: app(message, context)


@pytest.fixture(params=[local_grid, link_grid])
def grid(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Grid]:
    with ExitStack() as stack:
        yield request.param(stack, tmp_path)


def content() -> RecordDict:
    """Every kind of value that travels."""
    draws = np.random.default_rng(0)
    arrays = {
        "scalar": np.array(3.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "matrix": draws.standard_normal((5, 7)).astype(np.float32),
        "columns": np.asfortranarray(draws.standard_normal((5, 7))),
        "flags": draws.integers(0, 2, 9).astype(bool),
        "big-endian": np.arange(6, dtype=">i4"),
        "long": draws.standard_normal(50_000).astype(np.float32),
    }
    config = {
        "integer": -3,
        "number": 1.5,
        "truth": True,
        "text": "Grüße",
        "data": b"\0\xff",
        "integers": [1, -2],
        "numbers": [0.5],
        "truths": [True, False],
        "texts": ["a", ""],
        "datas": [b"", b"x"],
    }
    return RecordDict(
        {
            "model": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
            "round": ConfigRecord(config),  # type: ignore[arg-type]  # dict is invariant
            "metrics": MetricRecord({"loss": 0.25, "count": 4, "path": [1.0, 2.0]}),
        }
    )


def test_content_of_every_kind_comes_back_as_it_was(grid: Grid) -> None:
    sent = content()
    for reply in grid.send_and_receive([Message(sent, node, "query") for node in grid.get_node_ids()]):
        for name, array in sent.array_records["model"].items():
            back = reply.content.array_records["model"][name].numpy()
            np.testing.assert_array_equal(back, array.numpy())
            assert back.shape == array.numpy().shape
            assert back.dtype.newbyteorder("=") == array.numpy().dtype.newbyteorder("=")
        assert reply.content["round"] == sent["round"]
        assert reply.content["metrics"] == sent["metrics"]
        types = {name: type(value) for name, value in reply.content.config_records["round"].items()}
        assert types == {name: type(value) for name, value in sent.config_records["round"].items()}


def test_each_message_is_answered_once_by_its_own_node(grid: Grid) -> None:
    nodes = list(grid.get_node_ids())
    assert nodes == sorted(nodes)
    assert len(set(nodes)) == 3
    messages = [Message(RecordDict(), node, "query", group_id="4") for node in reversed(nodes)]
    replies = list(grid.send_and_receive(messages, timeout=PATIENCE_S))
    by_id = {reply.metadata.reply_to_message_id: reply for reply in replies}
    assert len(by_id) == len(replies) == 3
    for message in messages:
        reply = by_id[message.metadata.message_id]
        assert reply.metadata.src_node_id == message.metadata.dst_node_id
        assert reply.metadata.dst_node_id == message.metadata.src_node_id
        assert reply.metadata.group_id == "4"
        assert reply.metadata.message_type == "query"
    assert sorted(reply.content.config_records["said"]["partition"] for reply in replies) == [0, 1, 2]


def test_a_node_is_the_same_in_every_round(grid: Grid) -> None:
    places = []
    for _ in range(3):
        replies = grid.send_and_receive(
            [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
        )
        said = {reply.metadata.src_node_id: reply.content.config_records["said"] for reply in replies}
        places.append({node: record["partition"] for node, record in said.items()})
    assert places[0] == places[1] == places[2]


def test_replies_are_pulled_once_and_by_the_ids_that_push_gave(grid: Grid) -> None:
    node = next(iter(grid.get_node_ids()))
    ids = list(grid.push_messages([Message(RecordDict(), node, "query") for _ in range(2)]))
    assert len(set(ids)) == 2
    found: list[Message] = []
    while len(found) < 2:
        found += list(grid.pull_messages(ids))
    assert sorted(reply.metadata.reply_to_message_id for reply in found) == sorted(ids)
    assert list(grid.pull_messages(ids)) == []


def test_a_node_that_fails_answers_with_an_error_without_its_text(grid: Grid) -> None:
    node = next(iter(grid.get_node_ids()))
    (reply,) = grid.send_and_receive([Message(RecordDict(), node, "query.fail")])
    assert reply.has_error()
    assert reply.error.code == 2
    assert "007" not in str(reply.error)


def test_a_message_for_an_unknown_node_is_refused(grid: Grid) -> None:
    with pytest.raises(LinkError, match="node 77"):
        grid.send_and_receive([Message(RecordDict(), 77, "query")])


def test_create_message_makes_a_message_that_can_be_sent(grid: Grid) -> None:
    node = next(iter(grid.get_node_ids()))
    message = grid.create_message(RecordDict(), "query", node, "1", ttl=60)
    (reply,) = grid.send_and_receive([message])
    assert reply.metadata.reply_to_message_id == message.metadata.message_id
