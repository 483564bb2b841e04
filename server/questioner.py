"""Puts questions to sites until each has answered, refused, or its time is over: one thread for all of them.

A site that lets a person decide, or is away, is asked again with growing pauses, as for a plan
(server/asking.py). Questions train nothing, so they wait for no run and no run waits for them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from conf.errors import TwinwardError
from link.errors import LinkError
from link.wire import QUESTION, Answer, Counts, plan_request, read_question_answer
from privacy.questions import MOST_COUNT, SUPPRESSED
from server.admission import FOREIGN_SITE, MALFORMED, code_of
from server.asking import FIRST_PAUSE_S, LONGEST_PAUSE_S, NOT_A_MEMBER, WAITING
from server.errors import Halted, ServerError
from server.post import Post
from server.questions import ASKING, DONE, Asked, Questions, Said
from server.record import Record
from trust.question import Question

STEP_S = 0.5
IDLE_S = 30.0
AFTER_FAULT_S = 5.0

logger = logging.getLogger(f"twinward.{__name__}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How sites are reached.

    Attributes:
        grid: makes a grid over their connections.
        sites: names of the members.
        node_of: the node of a site.
        sign: the coordinator's signature over a question's JSON.
        record: writes into the audit log.
        clock: seconds since 1970; only deadlines are told by it.
        first_pause_s: before a site that let wait is asked again; each further pause is twice as long.
    """

    grid: Callable[[], Grid]
    sites: Callable[[], Collection[str]]
    node_of: Callable[[str], int]
    sign: Callable[[str], str]
    record: Record
    clock: Callable[[], float] = time.time
    first_pause_s: float = FIRST_PAUSE_S


@dataclass(slots=True)
class _Due:
    """When a site is asked next, by the monotonic clock; infinite while it is being asked."""

    pause_s: float
    at_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class Survey:
    """One question under way; `step` is called until it returns True."""

    asked: Asked
    questions: Questions
    reach: Reach
    post: Post
    _due: dict[str, _Due] = field(init=False)
    _nodes: dict[int, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        waiting = [site for site, said in self.asked.said.items() if said.code in WAITING]
        self._due = {site: _Due(self.reach.first_pause_s) for site in waiting}

    def step(self, timeout_s: float) -> bool:
        """True once no site is waited for; waits at most `timeout_s` for answers.

        Raises:
            Halted: see `Post.receive`.
        """
        ends_s = self.asked.asked_s + self.asked.approval_s
        if not self._due or self.reach.clock() >= ends_s:
            self.post.drop()
            return True
        self._send(timeout_s)
        soonest_s = min((due.at_s for due in self._due.values()), default=0.0) - time.monotonic()
        for reply in self.post.receive(max(0.0, min(timeout_s, soonest_s))):
            self._read(reply)
        return not self._due

    def _send(self, timeout_s: float) -> None:
        text, members = self.asked.question.to_json(), self.reach.sites()
        for site, due in list(self._due.items()):
            if site not in members:  # also one that was revoked, or left, while it was being asked
                self._note(site, Said(code=NOT_A_MEMBER))
            elif due.at_s <= time.monotonic():
                node = self.reach.node_of(site)
                self._nodes[node] = site
                request = plan_request(text, self.reach.sign(text))
                self.post.send([Message(request, node, QUESTION, group_id="0")], timeout_s)
                due.at_s = float("inf")

    def _read(self, reply: Message) -> None:
        site = self._nodes.get(reply.metadata.src_node_id, "")
        due = self._due.get(site)
        if due is None:
            return
        said = self._judge(site, reply)
        self._note(site, said)
        if said.code in WAITING:
            due.at_s, due.pause_s = time.monotonic() + due.pause_s, min(2 * due.pause_s, LONGEST_PAUSE_S)

    def _judge(self, site: str, reply: Message) -> Said:
        name, said = read_said(reply, self.asked.question)
        return said if said.code or name == site else Said(code=FOREIGN_SITE)

    def _note(self, site: str, said: Said) -> None:
        if self.asked.said[site].code != said.code:
            logger.info("site %s to %s: %s", site, self.asked.id, said.code or "answers")
        if said.code not in WAITING:
            self._due.pop(site)
            self.reach.record(
                "question_answered", who="coordinator", question=self.asked.id, site=site, code=said.code
            )
        self.questions.note(self.asked.id, site, said)


class Questioner:
    """The thread; `start` and `stop` once each."""

    def __init__(self, questions: Questions, reach: Reach) -> None:
        self._questions, self._reach = questions, reach
        self._stopping = threading.Event()
        self._surveys: dict[str, Survey] = {}
        self._thread = threading.Thread(target=self._loop, name="questions", daemon=True)

    def start(self) -> None:
        """Goes on with whatever is not answered."""
        self._thread.start()

    def stop(self) -> None:
        """Lets the thread end; nothing is lost."""
        self._stopping.set()
        self._questions.touch()
        self._thread.join()
        for survey in self._surveys.values():
            survey.post.drop()

    def alive(self) -> bool:
        """Whether the thread is at work."""
        return self._thread.is_alive()

    def work(self) -> bool:
        """Asks a little for every question; False if there is none."""
        open_ = self._questions.asking()
        for gone in set(self._surveys) - {asked.id for asked in open_}:
            self._surveys.pop(gone).post.drop()
        for asked in open_:
            try:
                self._ask(asked, STEP_S / len(open_))
            except Halted:
                self._let_go(asked.id)
        return bool(open_)

    def _ask(self, asked: Asked, timeout_s: float) -> None:
        survey = self._surveys.get(asked.id) or self._begin(asked)
        if not survey.step(timeout_s):
            return
        self._let_go(asked.id)
        answered = len(self._questions.get(asked.id).counts)
        self._reach.record("question_ended", who="coordinator", question=asked.id, sites=answered)
        self._questions.end(asked.id, DONE)

    def _begin(self, asked: Asked) -> Survey:
        self._reach.record("question_sent", who="coordinator", question=asked.id, plan=asked.question.hash)
        halted: Callable[[], bool] = lambda: (  # noqa: E731  a name for what Post asks
            self._stopping.is_set() or self._questions.get(asked.id).state != ASKING
        )
        post = Post(self._reach.grid(), halted=halted)
        survey = Survey(asked=asked, questions=self._questions, reach=self._reach, post=post)
        self._surveys[asked.id] = survey
        return survey

    def _let_go(self, question: str) -> None:
        survey = self._surveys.pop(question, None)
        if survey is not None:
            survey.post.drop()

    def _loop(self) -> None:
        while True:
            seen = self._questions.changes()  # before the look at `stop`, whose touch is else not waited for
            if self._stopping.is_set():
                return
            try:
                if not self.work():
                    self._questions.wait(seen, IDLE_S)
            except TwinwardError as error:
                logger.warning("asking failed: %s; it goes on in %g s", error, AFTER_FAULT_S)
                self._stopping.wait(AFTER_FAULT_S)
            except Exception:  # a full disk, say: the question keeps its state, and is asked again
                logger.exception("asking failed; it goes on in %g s", AFTER_FAULT_S)
                self._stopping.wait(AFTER_FAULT_S)


def ask_once(grid: Grid, question: Question, sign: Callable[[str], str], timeout_s: float) -> dict[str, Said]:
    """What the sites at all nodes of a grid say, by the names that they give; nobody is asked again.

    Raises:
        ServerError: two nodes say that they are one site.
    """
    text = question.to_json()
    request = plan_request(text, sign(text))
    messages = [Message(request, node, QUESTION, group_id="0") for node in sorted(grid.get_node_ids())]
    found: dict[str, Said] = {}
    for reply in grid.send_and_receive(messages, timeout=timeout_s):
        site, said = read_said(reply, question)
        if site in found:
            raise ServerError(f"Expected one node per site; two of them say that they are {site!r}.")
        if site:
            found[site] = said
    return found


def read_said(reply: Message, question: Question) -> tuple[str, Said]:
    """The name that a site gives itself, empty if it gave none, and what it says to a question."""
    if not reply.has_content():
        return "", Said()
    try:
        said, told = read_question_answer(reply.content)
    except LinkError:
        return "", Said(code=MALFORMED)
    if told is None:
        return said.site, Said(code=code_of(said.error))
    if said != Answer(site=said.site, plan=question.hash):
        return said.site, Said(code=FOREIGN_SITE)
    fits = _fits(told, question)
    return said.site, Said(counts=told.counts, smallest=told.smallest, code="" if fits else MALFORMED)


def _fits(told: Counts, question: Question) -> bool:
    """Whether counts are what a site may tell; one that lies within this form lies about itself alone."""
    return (
        len(told.counts) == question.cells
        and told.smallest >= 1
        and all(
            value == SUPPRESSED or told.smallest <= value <= MOST_COUNT * question.cells
            for value in told.counts
        )
    )
