"""The in-process grid keeps Flower's contract: ids, one reply per message, errors as answers."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from link.errors import LinkError
from link.local import LocalGrid
from link.wire import (
    Answer,
    PlanRequest,
    answer,
    plan_request,
    read_answer,
    read_plan_request,
    read_train_request,
)

echo = ClientApp()


@echo.query()
def _echo(message: Message, context: Context) -> Message:
    number = int(context.node_config["partition-id"])
    seen = context.state.config_records["seen"]["count"] if "seen" in context.state else 0
    assert isinstance(seen, int)
    context.state["seen"] = ConfigRecord({"count": seen + 1})
    said = ConfigRecord({"partition": number, "seen": seen + 1, "word": str(context.run_config["word"])})
    return Message(RecordDict({"said": said}), reply_to=message)


@echo.query("fail")
def _fail(message: Message, context: Context) -> Message:
    raise RuntimeError(f"patient {7:03d}")


def _grid() -> LocalGrid:
    return LocalGrid(echo, {"word": "hello"}, [2, 0])


def _message(node: int, kind: str = "query") -> Message:
    return Message(RecordDict(), node, kind)


def test_each_message_is_answered_once_by_its_node_with_its_id() -> None:
    grid = _grid()
    nodes = list(grid.get_node_ids())
    ids = list(grid.push_messages([_message(node) for node in reversed(nodes)]))
    assert len(set(ids)) == 2
    replies = {reply.metadata.reply_to_message_id: reply for reply in grid.pull_messages(ids)}
    assert list(replies) == ids
    assert [reply.metadata.src_node_id for reply in replies.values()] == nodes[::-1]
    assert [reply.content.config_records["said"]["partition"] for reply in replies.values()] == [0, 2]
    assert list(grid.pull_messages(ids)) == []


def test_a_nodes_state_and_run_configuration_stay_with_it() -> None:
    grid = _grid()
    node = next(iter(grid.get_node_ids()))
    for time in (1, 2):
        (reply,) = grid.send_and_receive([_message(node)])
        said = reply.content.config_records["said"]
        assert (said["seen"], said["word"]) == (time, "hello")


def test_a_node_that_fails_answers_with_an_error_and_its_text_reaches_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    grid = _grid()
    node = next(iter(grid.get_node_ids()))
    (reply,) = grid.send_and_receive([_message(node, "query.fail")])
    assert reply.has_error()
    assert "007" not in str(reply.error)
    assert "RuntimeError" in caplog.text
    assert "007" not in caplog.text


def test_a_message_for_an_unknown_node_is_refused() -> None:
    with pytest.raises(LinkError, match="node 77"):
        _grid().send_and_receive([_message(77)])


def test_answers_come_back_as_they_were_said() -> None:
    said = Answer(site="alpha", plan="p", round=3, base="b")
    update = {"b": np.ones((), np.float32), "a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    back, arrays = read_answer(answer(said, update))
    assert back == said
    assert arrays is not None
    for name, array in update.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].shape == array.shape


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"answer": ConfigRecord({"site": "alpha"})}),
        RecordDict(
            {
                "answer": ConfigRecord(
                    {"site": 1, "plan": "", "round": 0, "base": "", "patients": 0, "error": ""}
                )
            }
        ),
        RecordDict(
            {
                "answer": ConfigRecord(
                    {"site": "", "plan": "", "round": True, "base": "", "patients": 0, "error": ""}
                )
            }
        ),
    ],
)
def test_answers_of_another_form_are_refused(content: RecordDict) -> None:
    with pytest.raises(LinkError):
        read_answer(content)


def test_requests_of_another_form_are_refused() -> None:
    assert read_plan_request(plan_request("{}", "s")) == PlanRequest(plan="{}", signature="s")
    for read in (read_plan_request, read_train_request):
        with pytest.raises(LinkError):
            read(RecordDict({"code": ConfigRecord({"run": "import os"})}))
