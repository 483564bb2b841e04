"""Chunk frames without needless copies: the same bytes that protobuf writes and reads, by hand.

A model is copied once on its way out and not at all on its way in; protobuf would copy it three
times each way. What does not look as expected is left to protobuf, which is the judge of frames.
"""

from __future__ import annotations

from collections.abc import Iterable

from link.generated import link_pb2 as pb

_LENGTH_DELIMITED = 2
_CHUNK = pb.Frame.CHUNK_FIELD_NUMBER << 3 | _LENGTH_DELIMITED
_DATA = pb.Chunk.DATA_FIELD_NUMBER << 3 | _LENGTH_DELIMITED
_MOST_VARINT_BYTES = 10


def write_chunk(number: int, offset: int, pieces: Iterable[memoryview]) -> bytes:
    """A frame with a chunk whose data are the pieces, back to back."""
    views = list(pieces)
    start = pb.Chunk(number=number, offset=offset).SerializeToString()
    size = sum(view.nbytes for view in views)
    inner = start + bytes((_DATA,)) + _varint(size)
    return b"".join((bytes((_CHUNK,)), _varint(len(inner) + size), inner, *views))


def read_chunk(frame: bytes) -> tuple[int, int, memoryview] | None:
    """Number, offset and data of a frame that `write_chunk` wrote; None of any other."""
    try:
        if frame[0] != _CHUNK:
            return None
        size, place = _read_varint(frame, 1)
        if place + size != len(frame):
            return None
        start = place
        while frame[place] != _DATA:
            if frame[place] & 7:  # only numbers stand before the data
                return None
            _, place = _read_varint(frame, place + 1)
        head = pb.Chunk.FromString(frame[start:place])
        size, place = _read_varint(frame, place + 1)
    except IndexError:
        return None
    if place + size != len(frame):
        return None
    return head.number, head.offset, memoryview(frame)[place:]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(_MOST_VARINT_BYTES):
        byte = data[place + shift]
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, place + shift + 1
    raise IndexError
