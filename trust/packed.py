"""Named arrays that lie in their canonical bytes, read where they lie.

The canonical bytes are those of trust/digest.py. What a site's ledger keeps, what travels, what the
coordinator checks and writes to disk is this one piece of memory: nobody encodes it anew or hashes it
twice. It is laid into a file of numpy's format, an array of bytes, because that is what a message carries.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, Final

import numpy as np
from safetensors.numpy import save

from trust.errors import TrustError

Specs = tuple[tuple[str, str, tuple[int, ...]], ...]
_LONGEST_KEPT: Final = 1 << 16
LONGEST_HEADER, MOST_ARRAYS, MOST_AXES, LONGEST_AXIS = 1 << 20, 10_000, 16, 1 << 40
"""What arrays in bytes may be; link/frames.py takes no more arrays in a message either."""
_KINDS: Final = {
    "BOOL": "|b1",
    "U8": "|u1",
    "I8": "|i1",
    **{f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "UI" for size in (2, 4, 8)},
    **{f"F{8 * size}": f"<f{size}" for size in (2, 4, 8)},
    "C64": "<c8",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where the arrays of some names, types and shapes lie.

    Attributes:
        header: the bytes before the arrays.
        order: names in the order in which they lie. found: type, begin and number of numbers by name.
        shapes: by name, sorted.
        total: length of the whole. alike: whether all are float32, so that they are one vector.
    """

    header: bytes
    order: tuple[str, ...]
    found: dict[str, tuple[str, int, int]]
    shapes: dict[str, tuple[int, ...]]
    total: int
    alike: bool


class Packed(Mapping[str, np.ndarray]):
    """Arrays by name, sorted; they can be read and not written."""

    __slots__ = ("_begin", "_layout", "_sha256", "_squares", "npy")

    def __init__(self, npy: bytes, begin: int, layout: _Layout) -> None:
        """Args:
        npy: a file in numpy's format, of one axis of bytes, which from `begin` on are the canonical bytes.
        """
        self.npy, self._begin, self._layout = npy, begin, layout
        self._sha256: str | None = None
        self._squares: float | None = None

    def __reduce__(self) -> tuple[Callable[[bytes], Packed], tuple[bytes]]:
        return packed_from_npy, (self.npy,)  # another process looks at the bytes for itself

    def __getitem__(self, name: str) -> np.ndarray:
        kind, begin, size = self._layout.found[name]
        flat = np.frombuffer(self.npy, kind, size, self._begin + begin) if size else np.zeros(0, kind)
        return flat.reshape(self._layout.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout.shapes)

    def __len__(self) -> int:
        return len(self._layout.order)

    @property
    def data(self) -> memoryview:
        """The canonical bytes."""
        return memoryview(self.npy)[self._begin :]

    @property
    def sha256(self) -> str:
        """Of the canonical bytes, worked out once."""
        if self._sha256 is None:
            self._sha256 = hashlib.sha256(self.data).hexdigest()
        return self._sha256

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each array, sorted by name."""
        return self._layout.shapes

    @property
    def flat(self) -> np.ndarray | None:
        """All numbers as one vector, in the order in which they lie; None unless all are float32."""
        if not self._layout.alike:
            return None
        return np.frombuffer(self.npy, "<f4", offset=self._begin + len(self._layout.header))

    @property
    def squares(self) -> float | None:
        """The sum of squares of all numbers, worked out once; None unless all are float32.

        It is summed in float32, so it is rough, and not finite if a number is not.
        """
        flat = self.flat if self._squares is None else None
        if flat is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                self._squares = float(np.dot(flat, flat))
        return self._squares

    def in_place_of(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of which `flat`, in the order of this one's `flat`, holds the numbers."""
        cuts = np.cumsum([self._layout.found[name][2] for name in self._layout.order])[:-1]
        parts = dict(zip(self._layout.order, np.split(flat, cuts), strict=True))
        return {name: parts[name].reshape(shape) for name, shape in self._layout.shapes.items()}


def packed(arrays: Mapping[str, np.ndarray]) -> Packed:
    """The arrays in their canonical bytes; the same object if they are there already."""
    if isinstance(arrays, Packed):
        return arrays
    laid = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
    layout = _layout(tuple((name, array.dtype.str, array.shape) for name, array in laid.items()))
    before = _before(layout.total)
    pieces = (laid[name].astype(layout.found[name][0], copy=False).reshape(-1) for name in layout.order)
    npy = b"".join((before, layout.header, *(piece.data for piece in pieces if piece.size)))
    return Packed(npy, len(before), layout)


def packed_from_bytes(data: bytes | memoryview) -> Packed:
    """The arrays whose canonical bytes these are.

    Raises:
        TrustError: they are not safetensors, or not in the canonical form.
    """
    return packed_from_npy(_before(len(data)) + data)


def packed_from_npy(npy: bytes, sha256: str | None = None) -> Packed:
    """The arrays of `Packed.npy`, not copied.

    Args:
        sha256: of the canonical bytes, if somebody who is trusted worked it out.

    Raises:
        TrustError: it is no such file. Nothing is ever unpickled.
    """
    begin = len(_before(0))
    before = _before(len(npy) - begin) if len(npy) > begin else b""
    if not before or not npy.startswith(before) or len(before) >= len(npy):
        raise TrustError("Expected an array of bytes in numpy's format; it does not parse.")
    begin = len(before)
    length = begin + 8 + struct.unpack("<Q", npy[begin : begin + 8].ljust(8, b"\0"))[0]
    # Only short headers are remembered: a peer chooses them.
    known = _KNOWN.get(npy[begin:length]) if length - begin <= _LONGEST_KEPT else None
    layout = known or _read_layout(npy[begin:])
    if begin + layout.total != len(npy) or npy[begin:length] != layout.header:
        raise TrustError("Expected arrays in their canonical bytes; these are in another form.")
    if len(layout.header) <= _LONGEST_KEPT and known is None:
        # Of a copy: another thread may change it meanwhile.
        for oldest in list(_KNOWN)[: max(0, len(_KNOWN) - _MOST_KNOWN + 1)]:
            _KNOWN.pop(oldest, None)
        _KNOWN[layout.header] = layout
    found = Packed(npy, begin, layout)
    found._sha256 = sha256
    return found


_KNOWN: Final[dict[bytes, _Layout]] = {}
_MOST_KNOWN: Final = 16


def _read_layout(data: bytes) -> _Layout:
    """The layout that a header tells, if it and the length of `data` agree.

    Attack: whoever gets `data` from a peer stands still or falls over what a header promises: types that
    numpy has not, axes beyond all bounds, a million arrays of nothing. So all of it is checked
    before anything is made of it, and nothing greater than `data` is.
    """
    length = struct.unpack("<Q", data[:8].ljust(8, b"\0"))[0]
    if not 0 < length <= min(LONGEST_HEADER, len(data) - 8):
        raise TrustError(f"Expected a header of arrays of at most {LONGEST_HEADER} bytes; it does not parse.")
    try:
        told = json.loads(data[8 : 8 + length])
        specs = tuple(_spec(name, told[name]) for name in sorted(told))
        sizes = [math.prod(shape) * np.dtype(kind).itemsize for _, kind, shape in specs]
        if len(specs) > MOST_ARRAYS or sum(sizes) != len(data) - 8 - length:
            raise ValueError
        return _layout(specs)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise TrustError("Expected the bytes of a safetensors file; they do not parse.") from None


def _spec(name: str, told: dict[str, Any]) -> tuple[str, str, tuple[int, ...]]:
    """Raises ValueError, TypeError or KeyError for an array that nobody has."""
    kind, shape = _KINDS[told["dtype"]], tuple(told["shape"])
    whole = all(type(axis) is int and 0 <= axis <= LONGEST_AXIS for axis in shape)
    if not whole or len(shape) > MOST_AXES:
        raise ValueError(name)
    return name, kind, shape


@lru_cache(maxsize=16)
def _layout(specs: Specs) -> _Layout:
    """Where safetensors puts arrays of these names, types and shapes: it is asked once."""
    whole = bytes(save({name: np.zeros(shape, kind) for name, kind, shape in specs}))
    start = 8 + int(struct.unpack("<Q", whole[:8])[0])

    told = json.loads(whole[8:start])
    little = {name: np.dtype(kind).newbyteorder("<").str for name, kind, _ in specs}
    shapes = {name: shape for name, _, shape in specs}
    offsets = {name: told[name]["data_offsets"] for name in shapes}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    return _Layout(
        header=whole[:start],
        order=tuple(sorted(shapes, key=lambda name: (offsets[name], name))),
        found={name: (little[name], start + offsets[name][0], sizes[name]) for name in shapes},
        shapes=shapes,
        total=len(whole),
        alike=all(kind == "<f4" for kind in little.values()),
    )


@lru_cache(maxsize=16)
def _before(size: int) -> bytes:
    """What numpy writes before one axis of `size` bytes."""
    file = BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
    return file.getvalue()
