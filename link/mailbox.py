"""What one side owes the other, over as many connections as it takes.

A question (a request, a call) is sent until it is answered; an answer until the peer has it. After a
reconnect each side says which questions it holds already, so nothing is asked twice, and what the
peer lost in a restart is sent again. Questions and answers are known by their ids: one that comes a
second time is acknowledged and does nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from link.frames import TOO_LARGE, Limits, Manifest, Parcel
from link.generated import link_pb2 as pb
from link.session import Session
from link.transfers import Body

KEPT_IDS = 4096
UNKNOWN, TOO_MANY, FOREIGN = "unknown_question", "too_many", "foreign_kind"

Take = Callable[[Manifest, Body], None]
TakeAnswer = Callable[[str, Manifest, Body], None]
Fail = Callable[[str, str], None]


@dataclass(slots=True, kw_only=True)
class Mailbox:
    """Questions and answers between this side and one peer; used on the loop only.

    Attributes:
        asks: the kind of the peer's questions; answers: the kind of its answers.
        on_question: takes a question of the peer; `answer` ends it.
        on_answer: takes the answer to a question of ours, with that question's id.
        on_failed: told that a question of ours, by id, was refused with a code.
        accepts: a code under which a question of the peer is refused at once; None if it is taken.
    """

    asks: pb.Header.Kind
    answers: pb.Header.Kind
    limits: Limits
    on_question: Take
    on_answer: TakeAnswer
    on_failed: Fail
    accepts: Callable[[pb.Header], str | None]
    session: Session | None = None
    questions: OrderedDict[str, Parcel] = field(default_factory=OrderedDict)
    replies: OrderedDict[str, Parcel] = field(default_factory=OrderedDict)
    _taken: dict[str, str] = field(default_factory=dict)
    _done: OrderedDict[str, None] = field(default_factory=OrderedDict)

    @property
    def held(self) -> list[str]:
        """Questions of the peer that are being worked on, or whose answer it does not have yet."""
        return sorted(self._taken)

    def attach(self, session: Session, held: Iterable[str]) -> None:
        """Sends over a new connection what the peer does not hold."""
        self.session = session
        known = set(held)
        for parcel in self.replies.values():
            session.send(parcel)
        for id_, parcel in self.questions.items():
            if id_ not in known:
                session.send(parcel)

    def detach(self, session: Session) -> None:
        if self.session is session:
            self.session = None

    def ask(self, parcel: Parcel) -> None:
        """Sends a question until it is answered, withdrawn or refused."""
        self.questions[parcel.id] = parcel
        if self.session is not None:
            self.session.send(parcel)

    def withdraw(self, id_: str) -> None:
        """Forgets a question; an answer to it is acknowledged and dropped."""
        if self.questions.pop(id_, None) is not None:
            self._remember(id_)
            if self.session is not None:
                self.session.forget(id_)

    def answer(self, question: str, parcel: Parcel) -> None:
        """Sends the answer to a question of the peer until the peer has it."""
        self._taken[question] = parcel.id
        self.replies[parcel.id] = parcel
        if self.session is not None:
            self.session.send(parcel)

    def refusal(self, header: pb.Header) -> str | None:
        """Whether a parcel of the peer is taken; see `link.session.Owner.refusal`."""
        if header.kind == self.asks:
            if header.id in self._taken or header.id in self._done:
                return ""
            return TOO_MANY if len(self._taken) >= self.limits.pending else self.accepts(header)
        if header.kind != self.answers:
            return FOREIGN
        question = self.questions.get(header.reply_to)
        if question is not None:
            if question.answer_bytes is None or header.total <= question.answer_bytes:
                return None
            # Attack: gigabytes for each question, which somebody has to hold before they are looked at.
            self.rejected(header, TOO_LARGE)
            return TOO_LARGE
        return "" if header.reply_to in self._done else UNKNOWN

    def deliver(self, manifest: Manifest, body: Body) -> None:
        header = manifest.header
        if header.kind == self.asks:
            self._taken[header.id] = ""
            self.on_question(manifest, body)
        elif self.questions.pop(header.reply_to, None) is None:  # withdrawn while its answer came
            body.close()
        else:
            self._remember(header.reply_to)
            self.on_answer(header.reply_to, manifest, body)

    def rejected(self, header: pb.Header, code: str) -> None:
        """An answer that could not be taken ends its question; it would come no better."""
        if header.kind == self.answers and self.questions.pop(header.reply_to, None) is not None:
            self._remember(header.reply_to)
            self.on_failed(header.reply_to, code)

    def settled(self, parcel: str, code: str) -> None:
        """The peer has a parcel, or refused it."""
        if self.replies.pop(parcel, None) is not None:
            for question in [key for key, reply in self._taken.items() if reply == parcel]:
                del self._taken[question]
                self._remember(question)
        elif code and self.questions.pop(parcel, None) is not None:
            self._remember(parcel)
            self.on_failed(parcel, code)

    def _remember(self, id_: str) -> None:
        self._done[id_] = None
        while len(self._done) > KEPT_IDS:
            self._done.popitem(last=False)
