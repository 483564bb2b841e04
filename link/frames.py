"""Flower's messages as parcels, and back: a small header and a body of arrays, both checked.

The header (protobuf) is measured before it is parsed and holds names, settings and, of each array,
name, dtype, shape and SHA-256. The body is the arrays' raw little-endian bytes, back to back. Nothing
is ever unpickled: dtypes come from a short list, and what does not fit its declaration is refused.
What a header says about its sender is not here: identity comes from the certificate alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from google.protobuf.message import DecodeError

from link.errors import LinkError
from link.flower import received_message
from link.generated import link_pb2 as pb
from link.values import read_values, write_values

DTYPES = frozenset(
    ["bool", "float16", "float32", "float64"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)
MOST_AXES = 16
LONGEST_NAME = 512
STYPE = "numpy.ndarray"
LARGE_BYTES, HASHING_THREADS = 4 << 20, 2

APP_RAISED = 2  # Flower's own code of a ClientApp that raised
ANSWER_ROOM = 1 << 20
"""Bytes of arrays that an answer may have beyond those of the message: an update is as long as its model."""
CALL_ROOM = 4 << 20
BAD_HEADER, BAD_BODY, TOO_LARGE = "bad_header", "bad_body", "too_large"


class Source(Protocol):
    """A body of known bytes, wherever it lies."""

    def read_into(self, offset: int, place: memoryview) -> None:
        """Copies the bytes from `offset` on into `place`, all of it."""


class InMemory:
    """A body in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_into(self, offset: int, place: memoryview) -> None:
        place[:] = memoryview(self._data)[offset : offset + place.nbytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one side takes from the other, in bytes or numbers.

    Attributes:
        header_bytes: of a parcel's header.
        inline_bytes: of a body that rides in its offer.
        chunk_bytes: of one chunk of a body.
        body_bytes: of a whole body.
        arrays: in one parcel.
        pending: parcels of one hospital that wait to be answered, each way.
        calls: of one hospital that wait for their results, or for their results to be fetched.
    """

    header_bytes: int = 1 << 20
    inline_bytes: int = 64 << 10
    chunk_bytes: int = 1 << 20
    body_bytes: int = 2 << 30
    arrays: int = 10_000
    pending: int = 64
    calls: int = 4

    @property
    def frame_bytes(self) -> int:
        """The longest frame; gRPC refuses a longer one by its length, before it reads it."""
        return max(self.header_bytes + self.inline_bytes, self.chunk_bytes) + 4096


class FrameError(LinkError):
    """A parcel that is refused; `code` is what the peer is told."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{text} [{code}]")
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """What one side sends: a serialised header and the pieces of its body, not copied.

    Attributes:
        answer_bytes: most that the body of an answer to it may be; None is what the link takes at all.
    """

    id: str
    header: bytes
    pieces: tuple[memoryview, ...] = ()
    total: int = 0
    answer_bytes: int | None = None

    def part(self, offset: int, size: int) -> bytes:
        """The body from `offset` on, at most `size` bytes of it."""
        return b"".join(self.views(offset, size))

    def views(self, offset: int, size: int) -> list[memoryview]:
        """The same, not copied."""
        found: list[memoryview] = []
        start = 0
        for piece in self.pieces:
            end = start + piece.nbytes
            if end > offset and start < offset + size:
                found.append(piece[max(0, offset - start) : offset + size - start])
            start = end
            if start >= offset + size:
                break
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A header that holds what it promises.

    Attributes:
        content: SHA-256 over names, dtypes, shapes and hashes of all arrays: the same content has the
            same, whatever message brings it.
        lengths, digests: bytes and SHA-256 of each array, in the order of the body.
    """

    header: pb.Header
    content: str
    lengths: tuple[int, ...]
    digests: tuple[bytes, ...]

    @property
    def total(self) -> int:
        return sum(self.lengths)


class Packer:
    """Makes parcels; a record of arrays that goes to many sites is hashed once."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[ArrayRecord, pb.ArrayList, list[memoryview]]] = {}

    def request(self, message: Message) -> Parcel:
        """A message for a hospital's app. Its answer is no longer than what it carries, but for some room."""
        metadata = message.metadata
        parcel = self._parcel(
            pb.Header(
                kind=pb.Header.REQUEST,
                id=metadata.message_id,
                type=metadata.message_type,
                group=metadata.group_id,
                node=metadata.dst_node_id,
                created_s=metadata.created_at,
                lifetime_s=metadata.ttl,
            ),
            message.content,
        )
        return replace(parcel, answer_bytes=parcel.total + ANSWER_ROOM)

    def reply(self, id_: str, request: str, answer: Message | None) -> Parcel:
        """The answer of a hospital's app; of an error only its number leaves. None: the app raised."""
        header = pb.Header(kind=pb.Header.REPLY, id=id_, reply_to=request)
        if answer is not None and answer.has_content():
            return self._parcel(header, answer.content)
        header.error = "app_error"
        header.error_number = APP_RAISED if answer is None else answer.error.code
        return self._parcel(header, None)

    def call(self, id_: str, name: str, payload: bytes, answer_bytes: int | None = CALL_ROOM) -> Parcel:
        """A call of a hospital, such as `renew`; None takes an answer as long as the link takes any."""
        parcel = self._parcel(pb.Header(kind=pb.Header.CALL, id=id_, type=name), payload_record(payload))
        return replace(parcel, answer_bytes=answer_bytes)

    def result(self, id_: str, call: str, payload: bytes | None, error: str = "") -> Parcel:
        """The answer to a call: bytes, or a code."""
        header = pb.Header(kind=pb.Header.RESULT, id=id_, reply_to=call, error=error)
        return self._parcel(header, None if payload is None else payload_record(payload))

    def content(self, header: pb.Header, content: RecordDict) -> Parcel:
        """Records under a header that is made already."""
        return self._parcel(header, content)

    def _parcel(self, header: pb.Header, content: RecordDict | None) -> Parcel:
        pieces: list[memoryview] = []
        for name in sorted(content or {}):
            record = content[name] if content is not None else None
            if isinstance(record, ArrayRecord):
                listed, views = self._arrays(record)
                header.records.append(pb.Record(name=name, arrays=listed))
                pieces += views
            elif isinstance(record, MetricRecord):
                header.records.append(pb.Record(name=name, metrics=write_values(record)))
            elif isinstance(record, ConfigRecord):
                header.records.append(pb.Record(name=name, config=write_values(record)))
        header.total = sum(view.nbytes for view in pieces)
        return Parcel(
            id=header.id, header=header.SerializeToString(), pieces=tuple(pieces), total=header.total
        )

    def _arrays(self, record: ArrayRecord) -> tuple[pb.ArrayList, list[memoryview]]:
        if id(record) not in self._seen:
            listed = pb.ArrayList()
            raw = [_raw(array) for array in record.values()]
            views = [view for _, _, view in raw]
            for name, (dtype, shape, _), digest in zip(record, raw, _digests(views), strict=True):
                listed.entries.append(pb.ArrayInfo(name=name, dtype=dtype, shape=shape, sha256=digest))
            self._seen[id(record)] = (record, listed, views)
        _, listed, views = self._seen[id(record)]
        return listed, views


def open_header(data: bytes, limits: Limits) -> Manifest:
    """The checked header of an offer.

    1. Length before parsing. 2. Arrays: number, names each once, dtype of the list, shape. 3. Declared
    total: what the shapes add up to, and no more than is allowed; nothing is allocated for it before.

    Raises:
        FrameError: bad_header or too_large.
    """
    if len(data) > limits.header_bytes:
        raise FrameError(TOO_LARGE, f"Expected a header of at most {limits.header_bytes} bytes.")
    header = pb.Header()
    try:
        header.ParseFromString(data)
    except DecodeError:
        raise FrameError(BAD_HEADER, "Expected a header in the form of link.proto.") from None
    infos = [info for record in header.records for info in record.arrays.entries]
    if len(infos) > limits.arrays:
        raise FrameError(TOO_LARGE, f"Expected at most {limits.arrays} arrays; {len(infos)} came.")
    _check_names(header)
    lengths = tuple(_length(info) for info in infos)
    if sum(lengths) > limits.body_bytes:
        raise FrameError(TOO_LARGE, f"Expected a body of at most {limits.body_bytes} bytes.")
    if sum(lengths) != header.total:
        raise FrameError(BAD_HEADER, "Expected the total that the arrays' shapes add up to.")
    content = hashlib.sha256()
    for record in header.records:
        if record.HasField("arrays"):
            content.update(pb.Record(name=record.name, arrays=record.arrays).SerializeToString())
    return Manifest(
        header=header,
        content=content.hexdigest(),
        lengths=lengths,
        digests=tuple(info.sha256 for info in infos),
    )


def open_request(manifest: Manifest, source: Source) -> Message:
    """The message for the hospital's app.

    Raises:
        FrameError: a record or type that Flower does not know.
    """
    header = manifest.header
    try:
        return received_message(
            _content(manifest, source),
            message_id=header.id,
            message_type=header.type,
            group_id=header.group,
            node_id=header.node,
            created_at=header.created_s,
            ttl=header.lifetime_s,
        )
    except (TypeError, ValueError, KeyError):
        raise FrameError(BAD_HEADER, "Expected a message that Flower can build.") from None


def open_reply(manifest: Manifest, source: Source, request: Message) -> Message:
    """The answer to `request`; who sent it and to whom follows from the request alone.

    Raises:
        FrameError: as `open_request`.
    """
    header = manifest.header
    if header.error:
        return Message(Error(code=int(header.error_number), reason=""), reply_to=request)
    try:
        return Message(_content(manifest, source), reply_to=request)
    except (TypeError, ValueError, KeyError):
        raise FrameError(BAD_HEADER, "Expected a message that Flower can build.") from None


def open_payload(manifest: Manifest, source: Source) -> bytes:
    """The bytes of a call or of its result."""
    data = bytearray(manifest.total)
    source.read_into(0, memoryview(data))
    return bytes(data)


def _content(manifest: Manifest, source: Source) -> RecordDict:
    content = RecordDict()
    offset = 0
    for record in manifest.header.records:
        kind = record.WhichOneof("content")
        if kind == "arrays":
            arrays: dict[str, Array] = {}
            for info in record.arrays.entries:
                length = _length(info)
                arrays[info.name] = _array(info, source, offset, length)
                offset += length
            content[record.name] = ArrayRecord(arrays)
        elif kind == "metrics":
            content[record.name] = MetricRecord(read_values(record.metrics))
        elif kind == "config":
            content[record.name] = ConfigRecord(read_values(record.config))
        else:
            raise ValueError(kind)
    return content


def _raw(array: Array) -> tuple[str, tuple[int, ...], memoryview]:
    """Dtype, shape and bytes of Flower's array, which holds them in numpy's file format."""
    if array.stype != STYPE:
        raise LinkError(f"Expected arrays of kind {STYPE!r}; {array.stype!r} came.")
    file = BytesIO(array.data)
    try:
        version = np.lib.format.read_magic(file)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = reader[version](file)
    except (ValueError, KeyError):
        raise LinkError("Expected arrays in numpy's format; the bytes do not parse.") from None
    if dtype.name not in DTYPES:
        raise LinkError(f"Expected one of the dtypes {sorted(DTYPES)}; {dtype.name} came.")
    if fortran or not dtype.isnative:
        plain = np.ascontiguousarray(array.numpy(), dtype=dtype.newbyteorder("<"))
        return dtype.name, shape, memoryview(plain.tobytes())
    return dtype.name, shape, memoryview(array.data)[file.tell() :]


def _digests(views: list[memoryview]) -> list[bytes]:
    """The SHA-256 of each; of a large model in two threads, since hashing lets others run."""
    if sum(view.nbytes for view in views) < LARGE_BYTES:
        return [hashlib.sha256(view).digest() for view in views]
    with ThreadPoolExecutor(HASHING_THREADS, thread_name_prefix="link-hash") as pool:
        return list(pool.map(lambda view: hashlib.sha256(view).digest(), views))


def _array(info: pb.ArrayInfo, source: Source, offset: int, length: int) -> Array:
    """Flower's array, in numpy's file format; its bytes are copied once, into their place."""
    file = BytesIO()
    shape = tuple(int(size) for size in info.shape)
    descr = np.lib.format.dtype_to_descr(np.dtype(info.dtype))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    start = file.tell()
    if length:
        file.seek(start + length - 1)
        file.write(b"\0")
        with file.getbuffer() as place:
            source.read_into(offset, place[start:])
    return Array(dtype=info.dtype, shape=shape, stype=STYPE, data=file.getvalue())


def payload_record(payload: bytes) -> RecordDict:
    """Bytes of a call or of its result, as what parcels are made of."""
    return RecordDict({"payload": ArrayRecord({"bytes": Array(np.frombuffer(payload, np.uint8))})})


def _length(info: pb.ArrayInfo) -> int:
    if info.dtype not in DTYPES or len(info.shape) > MOST_AXES or len(info.sha256) != 32:
        raise FrameError(BAD_HEADER, "Expected arrays of a known dtype and shape, each with its SHA-256.")
    return math.prod(int(size) for size in info.shape) * int(np.dtype(info.dtype).itemsize)


def _check_names(header: pb.Header) -> None:
    groups: list[Iterable[str]] = [[record.name for record in header.records]]
    groups += [[info.name for info in record.arrays.entries] for record in header.records]
    for group in groups:
        names = list(group)
        if len(set(names)) != len(names) or any(not 0 < len(name) <= LONGEST_NAME for name in names):
            raise FrameError(BAD_HEADER, "Expected names of records and arrays, each once and not empty.")
    if header.kind == pb.Header.NONE or not 0 < len(header.id) <= LONGEST_NAME:
        raise FrameError(BAD_HEADER, "Expected a kind and an id.")
