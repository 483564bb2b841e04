"""Which sites are trained together: chunks of sites that are alike in size, bounded in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

from client.anatomy import Anatomy
from trust.plan import Terms
from twin.tasks.protocol import Examples

FLOATS_AT_ONCE: Final = 2**22
"""Bound on the numbers that one step of a chunk of sites may hold at a time."""
COPIES: Final = 4
"""Of a site's weights that a step holds: where they start, where they are, their gradient, the update."""
MOST_SITES: Final = 32
_FEWEST_SITES: Final = 4
_FEWEST_LIGHT_SITES: Final = 8
"""Of sites with so little work that most of a chunk's time goes by whatever their number."""
_LIGHT: Final = 2**17
"""Numbers that a step of such a site holds at most."""
_CHUNKS: Final = 4


def most_together(asked: int, floats: float) -> int:
    """How many sites go together where a plan asks so many, so that chunks can train side by side.

    Args:
        asked: sites in the round, and not those that are left after a crash: else others would go together.
        floats: of the greatest that goes with them, `step_floats`.
    """
    fewest = _FEWEST_LIGHT_SITES if floats <= _LIGHT else _FEWEST_SITES
    return min(MOST_SITES, max(fewest, -(-asked // _CHUNKS)))


def chunks(sizes: Sequence[float], floats: float, most: Callable[[float], int]) -> Iterator[list[int]]:
    """Places of sites that go together, small sites first.

    A chunk ends before a site of some size, and would end before any greater one: so when some chunks are
    done, those that are left are made of the same sites again.

    Args:
        sizes: of each site, `step_floats`. floats: most of them together.
        most: sites that go with one of that size, not more for a greater one.
    """
    chunk: list[int] = []
    for place in sorted(range(len(sizes)), key=lambda place: (sizes[place], place)):
        size, together = sizes[place], len(chunk) + 1
        # The last is the greatest, and padding makes all others as great.
        if chunk and (together > most(size) or together * size > floats):
            yield chunk
            chunk = []
        chunk.append(place)
    if chunk:
        yield chunk


def step_floats(anatomy: Anatomy, examples: Examples, counts_P: np.ndarray, terms: Terms) -> float:
    """About how many numbers a step of a site holds: windows with what layers see, gradients, weights."""
    patients, most = len(counts_P), min(int(counts_P.max(initial=0)), terms.windows_per_patient)
    windows, steps = most * patients * terms.sampling_rate, max(1, examples.series_NTC.shape[1])
    explicit = anatomy.parameters * patients * terms.sampling_rate if most * steps > 1 else 0
    return (
        2.0 * windows * anatomy.seen * steps
        + (explicit if terms.private else 0)
        + COPIES * anatomy.parameters
    )
