"""The sites that this process trains together, round after round, in chunks and in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from torch import nn

from client.chunks import COPIES, FLOATS_AT_ONCE, MOST_SITES, chunks, step_floats
from client.crew import WORTH_S, Crew, Made
from client.stacked import Base, Work, Workshop
from client.trainer import windows_of_each
from privacy.noise import NoiseStream
from trust.packed import packed
from trust.plan import Terms
from twin.tasks.protocol import Examples, Task

_HEADER_BYTES: Final = 1 << 14
"""More than stands before the numbers of an update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """What stays the same of a site.

    Attributes:
        stream: of the site's secret, for any context.
        counts_P: windows of each of its patients.
    """

    examples: Examples
    stream: NoiseStream
    counts_P: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts_P", windows_of_each(self.examples))


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A member's part of a round, in words that say nothing of its patients and its secret; see `Work`.

    Attributes:
        context: of its stream in this round.
    """

    site: str
    declared: int
    context: bytes
    wanted: bool = True
    correction: Mapping[str, np.ndarray] | None = None
    steps: int | None = None


class Team:
    """Sites with one network; `close` ends the processes that train them."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        members: Mapping[str, Member],
        processes: int,
        worth_s: float = WORTH_S,
    ) -> None:
        """Args:
        members: by name; with several processes they are copied as they are now.
        processes: that train, with this one; the updates do not hang on how many.
        worth_s: seconds of training in this process after which the others start.
        """
        self.model, self.members = model, members
        self._shop = Workshop(model, task)
        self._sizes: tuple[Terms, dict[str, float]] | None = None
        parameters = self._shop.anatomy.parameters
        together = max(1, min(MOST_SITES, FLOATS_AT_ONCE // (COPIES * parameters)))
        on_processor = all(value.device.type == "cpu" for value in model.parameters())
        self._crew: Crew[Base, tuple[tuple[int, Piece], ...]] = Crew(
            self._trained,
            processes=processes if on_processor else 1,
            room=together * (4 * parameters + _HEADER_BYTES),
            worth_s=worth_s,
        )

    def close(self) -> None:
        """Ends its processes."""
        self._crew.close()

    def fits(self, model: nn.Module, sites: Mapping[str, Examples]) -> bool:
        """Whether it can train these sites with these windows."""
        known = all(
            site in self.members and self.members[site].examples is examples
            for site, examples in sites.items()
        )
        return known and model is self.model

    def round(
        self, base: Base, pieces: Sequence[Piece], most_sites: Callable[[float], int]
    ) -> Iterator[Made]:
        """Chunk after chunk, the place in `pieces` and the release of each wanted site, or why it has none.

        Args:
            most_sites: that go together; see `chunks`.
        """
        size_of = self._sizes_under(base.terms)
        found = chunks([size_of[piece.site] for piece in pieces], FLOATS_AT_ONCE, most_sites)
        parts = [tuple((place, pieces[place]) for place in places) for places in found]
        yield from self._crew.run(base, [part for part in parts if any(piece.wanted for _, piece in part)])

    def _sizes_under(self, terms: Terms) -> dict[str, float]:
        """The size of each member's step under these terms."""
        if self._sizes is None or self._sizes[0] != terms:
            found = {
                site: step_floats(self._shop.anatomy, member.examples, member.counts_P, terms)
                for site, member in self.members.items()
            }
            self._sizes = terms, found
        return self._sizes[1]

    def _trained(self, base: Base, part: Sequence[tuple[int, Piece]]) -> Made:
        """In whichever process it is."""
        made = self._shop.trained(base, [self._work(piece) for _, piece in part])
        return [
            (part[number][0], packed(update) if isinstance(update, dict) else update)
            for number, update in made
        ]

    def _work(self, piece: Piece) -> Work:
        member = self.members[piece.site]
        return Work(
            examples=member.examples,
            declared=piece.declared,
            stream=member.stream.at(piece.context),
            wanted=piece.wanted,
            correction=piece.correction,
            steps=piece.steps,
            known_counts=member.counts_P,
        )
