"""The sites that this process trains together, round after round, in chunks and in several processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from torch import nn

from client.crew import WORTH_S, Crew, Made
from client.stacked import FLOATS_AT_ONCE, MOST_SITES, Work, Workshop, chunks
from client.trainer import trainable
from conf.schema import Strategy
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
    """

    examples: Examples
    stream: NoiseStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What the sites of a round have in common."""

    state: Mapping[str, np.ndarray]
    terms: Terms
    strategy: Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """A site's `Work`, in words that say nothing of its patients and its secret.

    Attributes:
        place: in the round's works.
        context: of its stream in this round.
    """

    site: str
    place: int
    declared: int
    context: bytes
    wanted: bool
    correction: Mapping[str, np.ndarray] | None
    steps: int | None


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
        self._task = task
        self._shop: tuple[Base, Workshop] | None = None
        parameters = sum(value.numel() for value in trainable(model).values())
        together = max(1, min(MOST_SITES, FLOATS_AT_ONCE // (3 * parameters)))
        on_processor = all(value.device.type == "cpu" for value in model.parameters())
        self._crew: Crew[Base, tuple[_Piece, ...]] = Crew(
            self._trained,
            processes=processes if on_processor else 1,
            room=together * (4 * parameters + _HEADER_BYTES),
            worth_s=worth_s,
        )

    def close(self) -> None:
        """Ends its processes."""
        self._crew.close()

    def fits(self, model: nn.Module, works: Mapping[str, Work]) -> bool:
        """Whether it can train these sites, with all its processes."""
        known = all(
            site in self.members and self.members[site].examples is work.examples
            for site, work in works.items()
        )
        return known and model is self.model and self._crew.is_whole

    def round(self, base: Base, works: Mapping[str, Work], most_sites: int) -> Iterator[Made]:
        """Chunk after chunk, the place in `works` and the release of each wanted site, or why it has none.

        Args:
            works: by name of a member.
            most_sites: that go together.
        """
        listed = list(works.values())
        pieces = [
            _Piece(
                site=site,
                place=place,
                declared=work.declared,
                context=work.stream.context,
                wanted=work.wanted,
                correction=work.correction,
                steps=work.steps,
            )
            for place, (site, work) in enumerate(works.items())
        ]
        found = chunks(self.model, listed, base.terms, FLOATS_AT_ONCE, most_sites)
        parts = [tuple(pieces[place] for place in places) for places in found]
        yield from self._crew.run(base, [part for part in parts if any(piece.wanted for piece in part)])

    def _trained(self, base: Base, part: Sequence[_Piece]) -> Made:
        """In whichever process it is."""
        if self._shop is None or self._shop[0] is not base:
            shop = Workshop(self.model, base.state, self._task, base.terms, base.strategy)
            self._shop = base, shop
        works = [self._work(piece) for piece in part]
        made = self._shop[1].trained(works)
        return [
            (part[number].place, packed(update) if isinstance(update, dict) else update)
            for number, update in made
        ]

    def _work(self, piece: _Piece) -> Work:
        member = self.members[piece.site]
        return Work(
            examples=member.examples,
            declared=piece.declared,
            stream=member.stream.at(piece.context),
            wanted=piece.wanted,
            correction=piece.correction,
            steps=piece.steps,
        )
