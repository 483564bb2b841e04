"""Two logs that hold each other's heads, so that neither is rewritten, cut or restored unseen.

With each beat a side says three things: its own signed head, a proof that the log only grew since the
head that the other side holds, and the head of the other side's log that it holds itself. So each side
learns both that the other's log was only extended, and that its own is not an old copy.

What each check stops, in the order in which they are made:
1. a message that is too long or malformed: nothing of it is taken;
2. a head signed by another key: nobody speaks for another, and a log keeps its key;
3. our own head, shown by the peer, that our log does not have: our file was restored or changed;
4. a peer's head that is smaller, or of the same size with another root: its log went back, or forked;
5. a peer's head without a proof from the head that we hold: its log was rewritten. A peer may know of
   an older head than we hold, because a message was lost; that settles itself with the next message,
   and a peer that never gives a fitting proof is refused after `_PATIENCE` of them.

A refused head stands in our log, with the head that it contradicts: both are signed, so the two lines
prove to anybody that the peer showed two histories.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

from trust.audit import AuditLog
from trust.errors import TrustError
from trust.heads import SignedHead
from trust.merkle import HASH_BYTES, is_consistent
from trust.record import Fact, canonical

Whose = Literal["own", "peer"]

LARGEST_BYTES: Final = 16384
_LONGEST_PROOF: Final = 128
_PATIENCE: Final = 5
_RECORD_EVERY_S: Final = 3600.0


class ProofMissing(TrustError):
    """A head that comes without a proof from the head that is held; the next message may bring it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reported:
    """The last refused head of a peer that was recorded, and how many more were refused since."""

    root: str
    time_s: float
    more: int = 0


class Witness:
    """Holds heads of other logs for one log; threads may share it.

    Args:
        log: with a signer.
        keys: public keys (64 hexadecimal digits) that a peer's heads may be signed with; without them
            the key of a peer's first head stays its key.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        log: AuditLog,
        *,
        keys: Collection[str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._log, self._keys, self._clock = log, keys, clock
        self._lock = threading.Lock()
        self._reported: dict[tuple[str, str], _Reported] = {}
        self._unproved: dict[str, int] = {}
        self._said_at: dict[str, float] = {}

    def say(self, peer: str) -> bytes:
        """What to send a peer with the next greeting or beat."""
        signed, known = self._log.signed_head(), self._log.held("own", peer)
        since = 0 if known is None else known.head.size
        held = self._log.held("peer", peer)
        message = {
            "head": signed.to_dict(),
            "since": since,
            "proof": [entry.hex() for entry in self._log.proof(since, signed.head.size)],
            "held": None if held is None else held.to_dict(),
        }
        return canonical(message).encode()

    def hear(self, peer: str, data: bytes) -> None:
        """Takes what `say` of a peer gave.

        Raises:
            TrustError: the peer's log or ours is not what it was; both sides should stop working
                together until people have looked. Stands in our log, if it could be checked.
        """
        signed, since, proof, held = _parse(data)
        with self._lock:
            if held is not None:
                self._returned(peer, held)
            try:
                self._observe(peer, signed, proof, since)
                self._unproved.pop(peer, None)
            except ProofMissing:
                self._unproved[peer] = self._unproved.get(peer, 0) + 1
                if self._unproved[peer] >= _PATIENCE:
                    raise
            self._record(peer)

    def observe(self, peer: str, signed: SignedHead, proof: Sequence[bytes]) -> None:
        """Takes a newer head of a peer's log, if the proof shows that it extends the head that is held.

        Raises:
            TrustError: it does not; that stands in our log.
        """
        with self._lock:
            held = self._log.held("peer", peer)
            self._observe(peer, signed, proof, 0 if held is None else held.head.size)

    def _observe(self, peer: str, signed: SignedHead, proof: Sequence[bytes], since: int) -> None:
        held = self._log.held("peer", peer)
        keys = self._keys if self._keys is not None or held is None else {held.key}
        try:
            signed.check(keys)
            if held is not None:
                _check_extends(held, signed, proof, since)
        except TrustError as error:
            if not isinstance(error, ProofMissing) or self._unproved.get(peer, 0) + 1 >= _PATIENCE:
                self._report("peer_log_refused", peer, signed, held, str(error))
            raise
        if held is None or (held.head.size, held.key) != (signed.head.size, signed.key):
            self._hold("peer", peer, signed, first=held is None)

    def _returned(self, peer: str, signed: SignedHead) -> None:
        """Compares a head of our log that a peer holds with what our log is."""
        own = self._log.signed_head()
        signed.check({own.key})
        head = signed.head
        if head.size > own.head.size or self._log.root_at(head.size) != head.root:
            text = (
                f"{peer} holds a signed head of this log with {head.size} records, which this log does not"
                " have: it is an old copy, or it was changed."
            )
            self._report("own_log_refused", peer, signed, None, text)
            raise TrustError(text)
        known = self._log.held("own", peer)
        if known is None or known.head.size < head.size or known.key != signed.key:
            self._hold("own", peer, signed, first=known is None)

    def _hold(self, whose: Whose, peer: str, signed: SignedHead, *, first: bool) -> None:
        self._log.hold(whose, peer, signed)
        if first:  # also after people have accepted a new log
            self._said_at[peer] = -math.inf
            self._reported.pop(("peer_log_refused" if whose == "peer" else "own_log_refused", peer), None)

    def _record(self, peer: str) -> None:
        """Writes down which heads were exchanged, the first time and then at most once an hour.

        Were each one recorded, two logs would lengthen each other for ever.
        """
        theirs, own = self._log.held("peer", peer), self._log.held("own", peer)
        if theirs is None or own is None:
            return
        if peer not in self._said_at:
            self._said_at |= {
                str(record.facts["peer"]): datetime.fromisoformat(record.time).timestamp()
                for record in self._log.records(kinds=("heads_exchanged",))
            }
            self._said_at.setdefault(peer, -math.inf)
        if abs(self._clock() - self._said_at[peer]) < _RECORD_EVERY_S:  # a clock may go backwards
            return
        self._log.append(
            "heads_exchanged",
            who=peer,
            peer=peer,
            size=theirs.head.size,
            root=theirs.head.root,
            own_size=own.head.size,
            own_root=own.head.root,
        )
        self._said_at[peer] = self._clock()

    def _report(self, kind: str, peer: str, signed: SignedHead, held: SignedHead | None, why: str) -> None:
        """Records a refused head: the first of a peer, then one an hour, with how many came in between.

        Attack: a peer that signs a new contradiction with each beat, to fill the log.
        """
        now_s, place = self._clock(), (kind, peer)
        last = self._reported.get(place)
        if last is not None:
            if signed.head.root == last.root:
                return
            if abs(now_s - last.time_s) < _RECORD_EVERY_S:
                self._reported[place] = replace(last, more=last.more + 1)
                return
            if last.more:
                why = f"{why} So did {last.more} others of its heads since the last record of this kind."
        facts: dict[str, Fact] = {"peer": peer, "size": signed.head.size, "root": signed.head.root}
        facts |= {"time": signed.head.time, "key": signed.key, "signature": signed.signature}
        if held is not None:
            facts |= {f"held_{name}": value for name, value in held.to_dict().items()}
        self._log.append(kind, who=peer, why=why, **facts)
        self._reported[place] = _Reported(root=signed.head.root, time_s=now_s)


def _check_extends(held: SignedHead, new: SignedHead, proof: Sequence[bytes], since: int) -> None:
    old_size, new_size = held.head.size, new.head.size
    if new_size < old_size:
        raise TrustError(
            f"Expected a log of at least {old_size} records, as it had before; it has {new_size}: it was"
            " restored or cut."
        )
    if new_size == old_size and held.head.root != new.head.root:
        raise TrustError(f"Expected the log of {old_size} records that was seen before; it is another.")
    if new_size == old_size:
        return
    if since != old_size:
        raise ProofMissing(f"Expected a proof from {old_size} records on; it begins at {since}.")
    if not is_consistent(old_size, new_size, held.head.root_bytes, new.head.root_bytes, proof):
        raise TrustError(
            f"Expected a log of {new_size} records that begins with the {old_size} seen before; it was"
            " rewritten."
        )


def _parse(data: bytes) -> tuple[SignedHead, int, list[bytes], SignedHead | None]:
    if len(data) > LARGEST_BYTES:
        raise TrustError(f"Expected at most {LARGEST_BYTES} bytes about heads; {len(data)} came.")
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        raise TrustError("Expected JSON about the heads of logs; it does not parse.") from None
    if not isinstance(message, dict) or set(message) != {"head", "since", "proof", "held"}:
        raise TrustError("Expected head, since, proof and held about the heads of logs.")
    since, proof, held = message["since"], message["proof"], message["held"]
    if type(since) is not int or not isinstance(proof, list) or len(proof) > _LONGEST_PROOF:
        raise TrustError("Expected a number and a list of hashes about the heads of logs.")
    return (
        SignedHead.from_dict(message["head"]),
        since,
        [_hash(entry) for entry in proof],
        None if held is None else SignedHead.from_dict(held),
    )


def _hash(text: object) -> bytes:
    if isinstance(text, str) and len(text) == 2 * HASH_BYTES and set(text) <= set("0123456789abcdef"):
        return bytes.fromhex(text)
    raise TrustError("Expected hashes of 64 hexadecimal digits in a proof.")
