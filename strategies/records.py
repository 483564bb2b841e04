"""Flower's records from entries whose types are known, without a check of each entry; arrays of small cost.

flwr 1.41 keeps the entries of a record in `_data` of its instance dictionary, and checks the type of each
key and value that is set: 12 microseconds for the six words of an answer, a third of what a message of a
simulated site costs. What comes over a network is read elsewhere and checked there. When flwr is
upgraded, this is a file to look through, with link/flower.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from typing import Final, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from trust.packed import Packed


def words(values: Mapping[str, str | int]) -> ConfigRecord:
    """A record of settings."""
    return _holding(_WORDS, values)


def arrays(values: Mapping[str, Array]) -> ArrayRecord:
    """A record of arrays."""
    return _holding(_ARRAYS, values)


def content(records: Mapping[str, ArrayRecord | ConfigRecord]) -> RecordDict:
    """The content of a message."""
    return _holding(_CONTENT, records)


Kind = TypeVar("Kind", ConfigRecord, ArrayRecord, RecordDict)
_WORDS, _ARRAYS, _CONTENT = ConfigRecord(), ArrayRecord(), RecordDict()


def _holding(empty: Kind, values: Mapping[str, object]) -> Kind:
    """An empty record's twin with these entries."""
    made = empty.__class__.__new__(empty.__class__)
    made.__dict__.update(empty.__dict__, _data=dict(values))
    return made


def array(values: np.ndarray) -> Array:
    """What `Array(values)` gives, of float32 without writing the same header again and again."""
    if values.dtype != np.dtype("<f4") or not values.flags.c_contiguous:
        return Array(values)
    made = Array.__new__(Array)
    data = _float32_head(values.shape) + values.tobytes()
    made.__dict__.update(dtype="float32", shape=tuple(values.shape), stype="numpy.ndarray", data=data)
    return made


def laid(whole: Packed) -> Array:
    """Packed arrays as one array of bytes, which remembers within its process what was laid into it.

    So what one owner worked out about them (hash, layout) the next one need not.
    """
    array = Array.__new__(Array)
    array.__dict__.update(
        dtype="uint8", shape=(len(whole.data),), stype="numpy.ndarray", data=whole.npy, _laid=whole
    )
    return array


def unlaid(array: Array) -> Packed | None:
    """The arrays that `laid` laid into an array; None of any other array, or if its bytes are others now."""
    whole = array.__dict__.get("_laid")
    return whole if type(whole) is Packed and whole.npy is array.data else None


_MAGIC: Final = b"\x93NUMPY\x01\x00"
_LONGEST_HEADER: Final = 1024


def values(array: Array) -> np.ndarray:
    """What `Array.numpy` gives, float32 arrays without reading the same header again and again.

    Raises:
        TypeError, ValueError, EOFError: as `Array.numpy`.
    """
    data = array.data
    length = int.from_bytes(data[8:10], "little") if data[:8] == _MAGIC else _LONGEST_HEADER
    if array.stype == "numpy.ndarray" and length < _LONGEST_HEADER and len(data) >= 10 + length:
        shape = _float32_shape(bytes(data[: 10 + length]))
        if shape is not None and len(data) - 10 - length == 4 * int(np.prod(shape)):
            return np.frombuffer(data, np.float32, offset=10 + length).reshape(shape).copy()
    return np.asarray(array.numpy())


@lru_cache(maxsize=256)
def _float32_head(shape: tuple[int, ...]) -> bytes:
    """What numpy writes before rows of float32."""
    stream = BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


@lru_cache(maxsize=256)
def _float32_shape(head: bytes) -> tuple[int, ...] | None:
    """The shape in a file's header if what follows are rows of float32; None of anything else."""
    stream = BytesIO(head)
    np.lib.format.read_magic(stream)
    shape, by_columns, kind = np.lib.format.read_array_header_1_0(stream)
    return None if by_columns or kind != np.dtype("<f4") else shape
