"""The rounds of many sites of one process, worked out together before each site is asked for its answer.

Every site takes its request as its app does (`client.app.checked`), all rounds are reserved in the sites'
ledgers before anything is computed, and those that are to train go through the stacked trainer, chunk after
chunk. A chunk's releases are completed in the ledgers, and its sites' apps are asked at once: each finds
its round in `client.app.READY` and answers with it through the egress gate. So no more than a chunk's
releases wait in memory. What cannot be done here (a site that refuses, an update that is not finite) is
left to the app, which says why.

Who goes with whom moves the last bits of floats. A chunk is completed whole or not at all, and chunks are
made of what is not complete, so after a crash the same sites go together as before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial

from flwr.app import Context, Message

from client.anatomy import can_stack
from client.app import READY, Begun, checked, complete, reserve
from client.chunks import most_together
from client.crew import Made, processes_here
from client.site import OpenSite, sites_open
from client.stacked import Base
from client.team import Member, Piece, Team
from conf.errors import TwinwardError
from link.stopwatch import phase
from link.wire import TRAIN
from privacy.noise import NoiseStream
from strategies.loss_release import releases
from trust.packed import Packed

logger = logging.getLogger(f"twinward.{__name__}")

Place = tuple[int, Begun]


class TrainAhead:
    """Trains the sites of a simulated federation together; `close` ends what it started."""

    def __init__(self) -> None:
        self._team: Team | None = None

    def close(self) -> None:
        """Ends the processes that train."""
        if self._team is not None:
            self._team.close()
            self._team = None

    def __call__(self, requests: Sequence[tuple[Message, Context]]) -> Iterator[list[int]]:
        """Places of requests, each once, in the order in which they are best delivered: group by group.

        Requests of a group have their rounds worked out, as far as possible, when it is given; the group must
        be delivered before the next one is asked for.
        """
        groups: dict[tuple[str, int, str], list[Place]] = {}
        rest = set(range(len(requests)))
        stackable: dict[int, bool] = {}  # simulated sites share a model
        for place, (message, context) in enumerate(requests):
            begun = _checked(message, context)
            if begun is None or begun.correction is not None or releases(begun.plan.strategy):
                continue
            model = begun.site.model
            if id(model) not in stackable:
                stackable[id(model)] = can_stack(model)
            if stackable[id(model)]:
                key = (begun.plan.hash, begun.request.round, begun.request.base)
                groups.setdefault(key, []).append((place, begun))
        for group in groups.values():
            if len(group) > 1:
                for part in self._together(group):
                    rest -= set(part)
                    yield part
        yield sorted(rest)

    def _together(self, group: Sequence[Place]) -> Iterator[list[int]]:
        """Places whose rounds are in their ledgers: those that are complete there, then chunk after chunk."""
        answers = list(zip(group, reserve([begun for _, begun in group]), strict=True))
        yield from _held([(entry, found) for entry, found in answers if isinstance(found, Packed)])
        yield from self._trained([entry for entry, found in answers if found is None])

    def _trained(self, group: Sequence[Place]) -> Iterator[list[int]]:
        if not group:
            return
        chunks = self._chunks([begun for _, begun in group])
        while True:
            with phase("training"):
                chunk = next(chunks, None)
            if chunk is None:
                return
            made = [(group[number], release) for number, release in chunk if isinstance(release, Packed)]
            if made:
                complete([begun for (_, begun), _ in made], [release for _, release in made])
                yield from _held([(entry, release) for entry, release in made])

    def _chunks(self, rounds: Sequence[Begun]) -> Iterator[Made]:
        first = rounds[0]
        pieces = [
            Piece(
                site=begun.site.name,
                declared=begun.plan.patients_of(begun.site.name),
                context=begun.context,
                steps=begun.plan.steps_of(begun.site.name),
            )
            for begun in rounds
        ]
        base = Base(state=first.model, terms=first.plan.terms, strategy=first.plan.strategy)
        together = partial(most_together, len(first.plan.asked(first.request.round)))
        return self._team_for([begun.site for begun in rounds]).round(base, pieces, together)

    def _team_for(self, sites: Sequence[OpenSite]) -> Team:
        """The team that is there, or another of all sites that are open."""
        first, windows = sites[0], {site.name: site.examples for site in sites}
        if self._team is None or not self._team.fits(first.model, windows):
            self.close()
            members = {
                own.name: Member(examples=own.examples, stream=NoiseStream(own.secret, b""))
                for own in sites_open()
            }
            self._team = Team(first.model, first.task, members, processes_here(first.config.engine.processes))
        return self._team


def _checked(message: Message, context: Context) -> Begun | None:
    if message.metadata.message_type != TRAIN:
        return None
    try:
        return checked(message, context)
    except (TwinwardError, OSError) as error:
        logger.debug("left to the site's app: %s", type(error).__name__)
        return None


def _held(entries: Sequence[tuple[Place, Packed]]) -> Iterator[list[int]]:
    """The places of the entries, which the apps find in READY as long as they are being delivered."""
    if not entries:
        return
    for (_, begun), release in entries:
        READY[id(begun.message)] = (begun, release)
    try:
        yield [place for (place, _), _ in entries]
    finally:
        for (_, begun), _ in entries:
            READY.pop(id(begun.message), None)
