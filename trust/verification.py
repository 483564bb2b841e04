"""Finds every change, cut and reordering in the file of an audit log, without writing to it.

What is compared: the tables with the tables that this release makes; numbers with their order; each
record's text with its hash, and the hashes with all nodes and the root; the heads that are kept with
their signatures and with what the log says of them; and heads of this log that others hold with the
log as it is. All but the last finds what is not consistent in itself. Somebody who writes the whole
file anew, with a matching tree, is found by the heads of others alone: docs/audit.md.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from trust.audit import TABLES, VERSION, place, signed_head
from trust.errors import TrustError
from trust.heads import SignedHead
from trust.merkle import Frontier, leaf_hash
from trust.record import canonical

_MOST_FAULTS: Final = 50
_FIELDS: Final = {"number", "kind", "who", "why", "time", "facts"}


def verify(path: str | Path, *, heads: Iterable[SignedHead] = ()) -> list[str]:
    """Every fault of a log, in words; none if it is what its heads say. At most 50 are listed.

    Args:
        path: the file of an `AuditLog`; it may be in use.
        heads: of this log, as others hold them (`twinward audit heads` at the other side).

    Raises:
        TrustError: there is no file.
    """
    path = Path(path).absolute()
    if not path.is_file():
        raise TrustError(f"Expected an audit log at {path}; there is no file.")
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)) as sql:
            sql.execute("BEGIN")  # one state of the log, also while others append
            return _first(_faults(sql, tuple(heads)))
    except (sqlite3.Error, OverflowError) as error:
        return [f"the file cannot be read as an audit log: {error}"]


def _first(faults: Iterator[str]) -> list[str]:
    found: list[str] = []
    try:
        for fault in faults:
            found.append(fault)
            if len(found) == _MOST_FAULTS:
                found.append("there are more faults")
                break
    except (sqlite3.Error, OverflowError) as error:  # what was found so far counts
        found.append(f"the file cannot be read further: {error}")
    return found


def _faults(sql: sqlite3.Connection, heads: tuple[SignedHead, ...]) -> Iterator[str]:
    yield from _form(sql)
    sql.text_factory = bytes  # a text may have been changed to bytes that are none
    tree, roots = Frontier(), _Roots(sql, heads)
    yield from _tree(sql, tree, roots)
    yield from _head(sql, tree)
    yield from _kept(sql, roots)
    for signed in heads:
        yield from _signed(signed, "a head that was given")
        yield from roots.compare("a head that was given", signed.head.size, signed.head.root)


def _form(sql: sqlite3.Connection) -> Iterator[str]:
    version = sql.execute("PRAGMA user_version").fetchone()[0]
    if version != VERSION:
        yield f"expected an audit log of version {VERSION}, found {version}"
    found = {
        row[0]: row[1] for row in sql.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    }
    if found != TABLES:
        yield f"expected the tables {sorted(TABLES)} as this release makes them, found others"
    for (text,) in sql.execute("PRAGMA integrity_check(10)"):
        if text != "ok":
            yield f"SQLite says: {' '.join(str(text).split())}"


class _Roots:
    """Roots of the log at the sizes at which somebody holds a head."""

    def __init__(self, sql: sqlite3.Connection, heads: tuple[SignedHead, ...]) -> None:
        own = sql.execute("SELECT size FROM heads WHERE whose = 'own'").fetchall()
        self._sizes = {row[0] for row in own} | {signed.head.size for signed in heads}
        self._roots: dict[int, str] = {}

    def note(self, tree: Frontier, *, always: bool = False) -> None:
        if always or tree.size in self._sizes:
            self._roots[tree.size] = tree.root().hex()

    def compare(self, what: str, size: int, root: str) -> Iterator[str]:
        found = self._roots.get(size)
        if found is None:
            yield f"{what} has {size} records, more than the log: it was cut, or an old copy was restored"
        elif found != root:
            yield f"{what} of {size} records has another root: the log was rewritten before that"


def _tree(sql: sqlite3.Connection, tree: Frontier, roots: _Roots) -> Iterator[str]:
    """Grows the tree from the records and compares it with what is stored."""
    nodes = sql.execute("SELECT place, hash FROM nodes ORDER BY place")
    stored: dict[int, Any] = dict(nodes)
    roots.note(tree)
    for number, text, leaf in sql.execute("SELECT number, record, hash FROM records ORDER BY number"):
        if number != tree.size:
            yield f"expected record {tree.size}, found {number}: records are missing or were renumbered"
            return
        yield from _record(number, text, leaf)
        for level, index, value in tree.add(leaf_hash(bytes(text))):
            if stored.pop(place(level, index), None) != value:
                first, last = index << level, ((index + 1) << level) - 1
                yield f"records {first} to {last} are not those over which the tree was made"
        roots.note(tree)
    roots.note(tree, always=True)
    if stored:
        yield f"the tree has {len(stored)} nodes of records that are not there: the log was cut"


def _record(number: int, text: bytes, leaf: bytes) -> Iterator[str]:
    if leaf_hash(bytes(text)) != leaf:
        yield f"record {number} is not what was hashed: it or its hash was changed"
    try:
        record = json.loads(text)
        fits = isinstance(record, dict) and set(record) == _FIELDS and record["number"] == number
        fits = fits and canonical(record).encode() == text
    except (ValueError, RecursionError):
        fits = False
    if not fits:
        yield f"record {number} has not the form of a record with this number: it was changed or moved"


def _head(sql: sqlite3.Connection, tree: Frontier) -> Iterator[str]:
    rows = sql.execute("SELECT id, size, root FROM head").fetchall()
    if rows != [(0, tree.size, tree.root())]:
        sizes = ", ".join(str(row[1]) for row in rows) or "none"
        yield f"the head on file (records: {sizes}) is not that of the {tree.size} records that are there"


def _kept(sql: sqlite3.Connection, roots: _Roots) -> Iterator[str]:
    """The heads that are kept: signed, not older than the log says, and ours as the log is."""
    said = _said(sql)
    query = "SELECT whose, peer, size, root, time, key, signature FROM heads ORDER BY whose, peer"
    for row in sql.execute(query).fetchall():
        texts = tuple(
            value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in row
        )
        whose, peer, what = texts[0], texts[1], f"the head kept for {texts[1]!r} ({texts[0]})"
        try:
            signed = signed_head(texts)
        except TrustError:
            yield f"{what} was changed"
            continue
        yield from _signed(signed, what)
        size, root = said.pop((whose, peer), (0, ""))
        if signed.head.size < size or (signed.head.size == size and signed.head.root != root):
            yield f"{what} is not the one that the log says was exchanged"
        if whose == "own":
            yield from roots.compare(what, signed.head.size, signed.head.root)
        elif whose != "peer":
            yield f"{what} is of nobody"
    for whose, peer in said:
        yield f"the head kept for {peer!r} ({whose}), of which the log says that it was exchanged, is missing"


def _said(sql: sqlite3.Connection) -> dict[tuple[str, str], tuple[int, str]]:
    """What the log says of heads that were exchanged: (whose, peer) → size and root."""
    said: dict[tuple[str, str], tuple[int, str]] = {}
    for (text,) in sql.execute("SELECT record FROM records ORDER BY number"):
        if b'"kind":"heads_exchanged"' not in text and b'"kind":"peer_log_accepted"' not in text:
            continue
        try:
            record = json.loads(text)
            facts, peer = record["facts"], record["facts"]["peer"]
            if record["kind"] == "heads_exchanged":
                said["peer", peer] = (facts["size"], facts["root"])
                said["own", peer] = (facts["own_size"], facts["own_root"])
            elif record["kind"] == "peer_log_accepted":
                said.pop(("peer", peer), None)
                said.pop(("own", peer), None)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # found above: this record was changed
    return said


def _signed(signed: SignedHead, what: str) -> Iterator[str]:
    try:
        signed.check()
    except TrustError:
        yield f"the signature of {what} does not hold"
