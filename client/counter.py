"""What goes over the socket between a site's process and the commands that ask it: frames of JSON and Arrow.

A question is one frame of JSON; an answer is one of JSON and, if there is a table, one of Arrow's stream
format. A frame is its length, four bytes big-endian, and its bytes. Nothing here is ever unpickled.
"""

from __future__ import annotations

import io
import json
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa

from client.errors import ClientError

LONGEST_QUESTION_BYTES: Final = 64 << 10
LONGEST_FACTS_BYTES: Final = 16 << 20
LONGEST_TABLE_BYTES: Final = (1 << 32) - 1
PATIENCE_S: Final = 300.0
_LENGTH: Final = struct.Struct(">I")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the site's process says: facts as JSON knows them and, where asked for, a table."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    table: pd.DataFrame | None = None


def ask(path: Path, question: str, /, **words: Any) -> Answer:
    """The answer of the process that runs a site.

    Args:
        path: of its socket; words: arguments of the question, as JSON knows them.

    Raises:
        ClientError: unavailable, if no process answers; else the code and text with which it refuses.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(PATIENCE_S)
            line.connect(str(path))
            send(line, json.dumps({"ask": question, "words": words}).encode())
            facts = json.loads(receive(line, LONGEST_FACTS_BYTES))
            table = receive(line, LONGEST_TABLE_BYTES) if facts.get("table") else None
    except (OSError, ValueError) as error:
        raise ClientError(
            "unavailable",
            f"Expected the site's process at {path} ({type(error).__name__}); start it: `twinward site up`.",
        ) from None
    if "refused" in facts:
        raise ClientError(str(facts["refused"]), str(facts["text"]))
    return Answer(facts=facts["facts"], table=None if table is None else table_of(table))


def reply(line: socket.socket, answer: Answer) -> None:
    """Sends an answer."""
    table = None if answer.table is None else bytes_of(answer.table)
    send(
        line, json.dumps({"facts": dict(answer.facts), "table": table is not None}, allow_nan=False).encode()
    )
    if table is not None:
        send(line, table)


def refuse(line: socket.socket, code: str, text: str) -> None:
    """Sends a refusal."""
    send(line, json.dumps({"refused": code, "text": text}).encode())


def send(line: socket.socket, data: bytes) -> None:
    """One frame out."""
    line.sendall(_LENGTH.pack(len(data)))
    line.sendall(data)


def receive(line: socket.socket, longest: int, *, within_s: float | None = None) -> bytes:
    """One frame in; ValueError if it is longer than allowed or breaks off.

    Args:
        within_s: for all of it; otherwise the line's own patience holds for each part.
    """
    until_s = None if within_s is None else time.monotonic() + within_s
    (length,) = _LENGTH.unpack(_exactly(line, _LENGTH.size, until_s))
    if length > longest:
        raise ValueError(f"Expected a frame of at most {longest} bytes.")
    return _exactly(line, length, until_s)


def bytes_of(table: pd.DataFrame) -> bytes:
    """A table in Arrow's stream format, without its index."""
    sink = io.BytesIO()
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    with pa.ipc.new_stream(sink, arrow.schema) as writer:
        writer.write_table(arrow)
    return sink.getvalue()


def table_of(data: bytes) -> pd.DataFrame:
    """The table in some bytes of Arrow's stream format."""
    with pa.ipc.open_stream(pa.BufferReader(data)) as reader:
        frame: pd.DataFrame = reader.read_all().to_pandas()
    return frame


def _exactly(line: socket.socket, count: int, until_s: float | None) -> bytes:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        if until_s is not None:
            line.settimeout(max(until_s - time.monotonic(), 1e-3))
        got = line.recv_into(view)
        if not got:
            raise ValueError("Expected more bytes; the line was closed.")
        view = view[got:]
    return bytes(data)
