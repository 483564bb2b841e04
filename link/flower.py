"""Everything of Flower that is not public, in one file; flwr is pinned exactly because of it.

flwr 1.41: `Message(...)` reads the identity of the running task from a class that only Flower's
own processes set, the id of a message has no setter, and a `Run` is needed for a Grid. When flwr is
upgraded, this is the file to look through.
"""

from __future__ import annotations

import time
from typing import cast

from flwr.app import Message, Metadata, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "COORDINATOR_NODE_ID",
    "RUN_ID",
    "Run",
    "RunGrid",
    "identify_coordinator",
    "received_message",
    "reply_to",
    "run_alone",
    "stamp",
]

RUN_ID = 1
COORDINATOR_NODE_ID = 1


def run_alone() -> Run:
    """The `Run` of a grid inside this process, which no SuperLink knows."""
    return Run.create_empty(run_id=RUN_ID)


def identify_coordinator() -> None:
    """Says who sends the messages that this process creates."""
    TaskIdentity.task_id = RUN_ID
    TaskIdentity.run_id = RUN_ID
    TaskIdentity.node_id = COORDINATOR_NODE_ID


def stamp(message: Message, message_id: str) -> None:
    """Gives a message its id, which Flower leaves to the grid that carries it."""
    message.metadata.__dict__["_message_id"] = message_id


def received_message(
    content: RecordDict,
    *,
    message_id: str,
    message_type: str,
    group_id: str,
    node_id: int,
    created_at: float,
    ttl: float,
) -> Message:
    """A message as it arrives at a node, with the metadata that it was sent with.

    Raises:
        ValueError: a type of message that Flower does not know.
    """
    metadata = Metadata(
        run_id=RUN_ID,
        message_id=message_id,
        src_node_id=COORDINATOR_NODE_ID,
        dst_node_id=node_id,
        reply_to_message_id="",
        group_id=group_id,
        created_at=created_at,
        ttl=ttl,
        message_type=message_type,
    )
    return cast("Message", Message(content=content, metadata=metadata))  # type: ignore[call-overload]  # Flower's own form


def reply_to(request: Message, content: RecordDict) -> Message:
    """What `Message(content, reply_to=request)` gives, without a look at all other ways to make one."""
    asked = request.metadata.__dict__
    now_s = time.time()
    metadata = Metadata.__new__(Metadata)
    metadata.__dict__.update(
        _run_id=asked["_run_id"],
        _message_id="",
        _src_node_id=asked["_dst_node_id"],
        _dst_node_id=asked["_src_node_id"],
        _src_task_id=asked["_dst_task_id"],
        _dst_task_id=asked["_src_task_id"],
        _reply_to_message_id=asked["_message_id"],
        _group_id=asked["_group_id"],
        _created_at=now_s,
        _ttl=asked["_created_at"] + asked["_ttl"] - now_s,
        _message_type=asked["_message_type"],
        _delivered_at="",
    )
    message: Message = Message.__new__(Message)
    message.__dict__.update(_metadata=metadata, _content=content, _error=None)
    return message


class RunGrid(Grid):
    """What every grid of ours has alike: a run that no SuperLink knows, and the making of messages."""

    def __init__(self) -> None:
        self._run = run_alone()
        identify_coordinator()

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)
