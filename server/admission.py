"""Which answers to a round's requests are admitted: one decision without I/O, with its reason.

Checks, in this order:
1. malformed: the reply is not of the agreed form, or a record is missing or too much.
2. foreign_site: it comes from a node that was not asked, or speaks for another site.
3. site_error:CODE: the site could not or would not answer.
4. foreign_plan, late, foreign_base: it answers another plan, an earlier round, another model.
5. replayed: the site has answered this round already.
6. malformed: names, shapes or type of the update are not those of the model's trainable arrays, or a
   loss that came with it cannot be one.
7. nonfinite: a number of the update is not finite; one NaN would poison the sum for all.
8. too_long: its norm is beyond what clipping and noise can give; one giant would outweigh all others.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from flwr.app import Message

from link.errors import LinkError
from link.wire import Answer, read_answer
from strategies.bound import fault_of
from strategies.loss_release import NAME, possible
from trust.packed import Packed

MALFORMED = "malformed"
FOREIGN_SITE = "foreign_site"
FOREIGN_PLAN = "foreign_plan"
FOREIGN_BASE = "foreign_base"
LATE = "late"
REPLAYED = "replayed"
SITE_ERROR = "site_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What an answer to this round must be.

    Attributes:
        plan: hash of the plan; round: number; base: SHA-256 of the model that was sent.
        sites: name of the site at each node that was asked.
        shapes: shape of each array of an update.
        norms: greatest L2 norm of the update of a site; a site that is not named has no bound.
        most_loss: greatest loss that an update may hold, if `shapes` has one.
        bases: of sites that were sent another model than `base`.
    """

    plan: str
    round: int
    base: str
    sites: Mapping[int, str]
    shapes: Mapping[str, tuple[int, ...]]
    norms: Mapping[str, float] = field(default_factory=dict)
    bases: Mapping[str, str] = field(default_factory=dict)
    most_loss: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """An update, or the reason why there is none; site is empty if it is not known."""

    site: str
    update: Packed | None
    reason: str


def judge(reply: Message, expected: Expected, answered: Collection[str]) -> Verdict:
    """The verdict on one reply, given the sites that have answered already."""
    site = expected.sites.get(reply.metadata.src_node_id, "")
    if not reply.has_content():
        return Verdict(site=site, update=None, reason=f"{SITE_ERROR}:no_answer" if site else FOREIGN_SITE)
    try:
        said, update = read_answer(reply.content)
    except LinkError:
        return Verdict(site=site, update=None, reason=MALFORMED)
    reason = _fault(said, update, site, expected, answered)
    return Verdict(site=site, update=None if reason else update, reason=reason)


def code_of(text: str) -> str:
    """A site's error code as it may be recorded: short, lower case, or `malformed`."""
    return text if re.fullmatch(r"[a-z][a-z0-9_]{0,63}", text) else MALFORMED


def _fault(
    said: Answer, update: Packed | None, site: str, expected: Expected, answered: Collection[str]
) -> str:
    if not site or (said.site != site and not said.error):
        return FOREIGN_SITE
    if said.error:
        return f"{SITE_ERROR}:{code_of(said.error)}"
    if said.plan != expected.plan:
        return FOREIGN_PLAN
    if said.round != expected.round:
        return LATE if said.round < expected.round else MALFORMED
    if said.base != expected.bases.get(site, expected.base):
        return FOREIGN_BASE
    if site in answered:
        return REPLAYED
    if update is not None and NAME in update and not possible(update[NAME], expected.most_loss):
        return MALFORMED
    return MALFORMED if update is None else _array_fault(update, expected.shapes, expected.norms.get(site))


def _array_fault(update: Packed, shapes: Mapping[str, tuple[int, ...]], norm: float | None) -> str:
    if update.squares is None or update.shapes != shapes:
        return MALFORMED
    return fault_of(update, norm)
