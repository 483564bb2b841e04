"""The updates of many sites turned on their side: all sites' values of some coordinates at a time.

A rule that sorts sites coordinate by coordinate needs them all at once. They are written to an unnamed
temporary file, site after site, and read back a block of coordinates at a time, so that memory does not
grow with sites times parameters. (S sites, B coordinates of a block.)
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from strategies.errors import StrategyError
from strategies.rule import Arrays, checked_weights

BLOCK_NUMBERS = 1 << 19
"""Numbers of a block over all sites: 4 MiB as float64."""

Reduce = Callable[[np.ndarray], np.ndarray]


def reduced(
    updates: Sequence[Mapping[str, np.ndarray]],
    weights: Sequence[float],
    reduce: Reduce,
    block_numbers: int = BLOCK_NUMBERS,
) -> Arrays:
    """What `reduce` makes of each coordinate, float64, in the arrays of an update.

    Args:
        updates: of each site, float32, each looked up once.
        weights: are checked, and count for nothing.
        reduce: from values_SB (float64) to one number for each coordinate, B.

    Raises:
        StrategyError: no update, or wrong weights, or updates of other arrays than the first.
    """
    checked_weights(len(updates), weights)
    with tempfile.TemporaryFile() as file:
        shapes: dict[str, tuple[int, ...]] = {}
        for place in range(len(updates)):
            update = updates[place]
            found = {name: np.shape(update[name]) for name in sorted(update)}
            shapes = shapes or found
            if found != shapes:
                raise StrategyError("expected the same names and shapes in all updates")
            for name in shapes:
                file.write(np.ascontiguousarray(update[name], dtype="<f4").tobytes())
        sizes = [int(np.prod(shape)) for shape in shapes.values()]
        total = sum(sizes)
        flat = np.empty(total)
        width = max(1, block_numbers // len(updates))
        for low in range(0, total, width):
            high = min(total, low + width)
            values_SB = np.empty((len(updates), high - low))
            for place in range(len(updates)):
                file.seek(4 * (place * total + low))
                values_SB[place] = np.frombuffer(file.read(4 * (high - low)), "<f4")
            flat[low:high] = reduce(values_SB)
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
