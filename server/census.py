"""Before the first round: which sites are there, how many patients they declare, who accepts the plan."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from link.errors import LinkError
from link.wire import ACCEPT, DECLARE, Answer, plan_request, read_answer
from server.admission import FOREIGN_SITE, MALFORMED, code_of
from server.errors import ServerError
from server.store import Store
from trust.errors import PlanError
from trust.plan import Plan

DEADLINE_S = 3600.0

Sign = Callable[[str], str]

logger = logging.getLogger(f"twinward.{__name__}")


def unsigned(_: str) -> str:
    """The signature of a simulation, which has nobody to convince."""
    return ""


def take_census(grid: Grid, store: Store, offer: Plan, sign: Sign = unsigned) -> dict[str, int]:
    """The node of each site that takes part; the plan and its participants are in the store.

    Sites are told apart by the name that they answer with, since nodes have random ids: after a
    crash the same sites are found at other nodes. Who takes part is asked once and stays so.

    Args:
        sign: the coordinator's signature over a plan's JSON.

    Raises:
        ServerError: no site takes part, two nodes claim one site, or a participant is not there.
    """
    nodes, declared, fewer, refused = _declarations(grid, store, offer, sign)
    plan = store.plan()
    if plan is None:
        if not declared:
            raise ServerError(
                f"Expected at least one site to take the plan; all refused it: {_told(refused)}."
            )
        plan = offer.with_participants(declared, fewer)
        store.declare(plan, refused)
    missing = sorted(set(plan.sites) - set(nodes))
    if missing:
        raise ServerError(
            f"Expected the plan's participants {list(plan.sites)}; {missing} are not there now."
        )
    if store.fact("accepted") is None:
        store.accept(_acceptances(grid, {site: nodes[site] for site in plan.sites}, plan, sign))
    taking_part = [site for site, (_, code) in store.sites().items() if not code]
    if not taking_part:
        refused = {site: code for site, (_, code) in store.sites().items()}
        raise ServerError(f"Expected at least one site to accept the plan; all refused it: {_told(refused)}.")
    return {site: nodes[site] for site in taking_part}


def _told(refused: Mapping[str, str]) -> str:
    """Each code with the sites that gave it; of many the first five."""
    lists: dict[str, list[str]] = {}
    for site, code in refused.items():
        lists.setdefault(code, []).append(site)
    return "; ".join(f"{code} ({_some(sites)})" for code, sites in lists.items()) or "none came"


def _some(sites: Sequence[str]) -> str:
    more = f" and {len(sites) - 5} more" if len(sites) > 5 else ""
    return ", ".join(sorted(sites)[:5]) + more


def declares(said: Answer, offer: Plan) -> bool:
    """Whether an answer to `declare` is one: what it says may stand in a plan."""
    # Attack: a number that no plan can hold would end the census for all who take part.
    try:
        offer.with_participants({said.site: said.patients}, {said.site: said.steps} if said.steps else None)
    except PlanError:
        return False
    return True


def _declarations(
    grid: Grid, store: Store, offer: Plan, sign: Sign
) -> tuple[dict[str, int], dict[str, int], dict[str, int], dict[str, str]]:
    nodes: dict[str, int] = {}
    fewer: dict[str, int] = {}
    declared: dict[str, int] = {}
    refused: dict[str, str] = {}
    ids = sorted(_node_ids(grid))
    for node, said in _ask(grid, DECLARE, offer.to_json(), ids, sign):
        if said is None:
            store.refuse(0, "", MALFORMED)
            continue
        if said.site and said.site in nodes:
            raise ServerError(f"Expected one node per site; two of them say that they are {said.site!r}.")
        if said.error:
            if said.site:
                nodes[said.site] = node
                refused[said.site] = code_of(said.error)
            store.refuse(0, said.site, code_of(said.error))
        elif not said.site or not declares(said, offer):
            store.refuse(0, said.site, MALFORMED)
        else:
            nodes[said.site], declared[said.site] = node, said.patients
            if said.steps:
                fewer[said.site] = said.steps
    return nodes, declared, fewer, refused


def _acceptances(grid: Grid, nodes: dict[str, int], plan: Plan, sign: Sign) -> dict[str, str]:
    """The sites that do not accept the plan, by code; one that does not answer is among them."""
    refused = dict.fromkeys(nodes, "no_answer")
    by_node = {node: site for site, node in nodes.items()}
    for node, said in _ask(grid, ACCEPT, plan.to_json(), sorted(by_node), sign):
        site = by_node[node]
        if said is None:
            refused[site] = MALFORMED
        elif said.error:
            refused[site] = code_of(said.error)
        elif said.site != site or said.plan != plan.hash:
            refused[site] = FOREIGN_SITE
        else:
            del refused[site]
    for site, code in refused.items():
        logger.warning("site %s does not take part: %s", site, code)
    return refused


def _ask(
    grid: Grid, kind: str, plan_json: str, ids: Iterable[int], sign: Sign
) -> list[tuple[int, Answer | None]]:
    """Each node that was asked and answered, in order of node ids; None is a malformed answer."""
    asked = list(ids)
    signature = sign(plan_json)
    messages = [Message(plan_request(plan_json, signature), node, kind, group_id="0") for node in asked]
    answers: dict[int, Answer | None] = {}
    for reply in grid.send_and_receive(messages, timeout=DEADLINE_S):
        node = reply.metadata.src_node_id
        if node not in asked:
            continue
        try:
            answers[node] = read_answer(reply.content)[0] if reply.has_content() else None
        except LinkError:
            answers[node] = None
    return sorted(answers.items())


def _node_ids(grid: Grid) -> list[int]:
    ids = list(grid.get_node_ids())
    if not ids:
        raise ServerError("Expected at least one node in the grid; none is connected.")
    return ids
