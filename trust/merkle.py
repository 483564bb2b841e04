"""The tree of RFC 6962 over the records of a log: its root, and the proof that a log was only extended.

A leaf is SHA-256(0x00 || record), a node SHA-256(0x01 || left || right); the two bytes keep a record
from being taken for a node. The root of n records splits them at the greatest power of two below n.
Source: RFC 6962 section 2.1 (root), 2.1.2 (consistency proof); RFC 9162 section 2.1.4.2 (its check).

`Nodes` gives the hash of a whole subtree: level l and index i stand for the records from i·2^l up to
(i+1)·2^l, level 0 being the records themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

from trust.errors import TrustError

Nodes = Callable[[int, int], bytes]

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


def leaf_hash(record: bytes) -> bytes:
    """The hash of a record."""
    return hashlib.sha256(b"\x00" + record).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a node with two children."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def peaks(size: int) -> list[tuple[int, int]]:
    """(level, index) of the whole subtrees, from the left, that together are a tree of `size` records."""
    found, done = [], 0
    for level in range(size.bit_length() - 1, -1, -1):
        if size >> level & 1:
            found.append((level, done >> level))
            done += 1 << level
    return found


class Frontier:
    """What must be known of a tree to extend it: its size and the hashes of its whole subtrees."""

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        """Args:
        size: number of records.
        hashes: one for each of `peaks(size)`.
        """
        if len(hashes) != size.bit_count() or any(len(value) != HASH_BYTES for value in hashes):
            raise TrustError(f"Expected {size.bit_count()} hashes for {size} records; {len(hashes)} came.")
        self.size = size
        self._hashes = list(hashes)

    def add(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """Adds a record by its hash; gives the subtrees that became whole: level ≥ 1, index, hash."""
        grown, level, value = [], 0, leaf
        while self.size >> level & 1:
            value = node_hash(self._hashes.pop(), value)
            level += 1
            grown.append((level, self.size >> level, value))
        self._hashes.append(value)
        self.size += 1
        return grown

    def copy(self) -> Frontier:
        """The same tree, to be extended on its own."""
        return Frontier(self.size, self._hashes)

    def root(self) -> bytes:
        """The root of the tree."""
        if not self._hashes:
            return EMPTY_ROOT
        *left, value = self._hashes
        for one in reversed(left):
            value = node_hash(one, value)
        return value


def root(size: int, nodes: Nodes) -> bytes:
    """The root of the first `size` records."""
    return Frontier(size, [nodes(level, index) for level, index in peaks(size)]).root()


def consistency_proof(old: int, new: int, nodes: Nodes) -> list[bytes]:
    """What shows that a tree of `new` records begins with the `old` records of an earlier root.

    Raises:
        TrustError: not 0 <= old <= new.
    """
    if not 0 <= old <= new:
        raise TrustError(f"Expected sizes 0 <= old <= new of a log; {old} and {new} came.")
    return [] if old in (0, new) else _subproof(old, 0, new, True, nodes)


def is_consistent(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the proof shows that the tree with `new_root` begins with the tree of `old_root`."""
    if not 0 <= old <= new or any(len(entry) != HASH_BYTES for entry in (old_root, new_root, *proof)):
        return False
    if old in (0, new):
        return not proof and old_root == (new_root if old == new else EMPTY_ROOT)
    path = list(proof) if old & (old - 1) else [old_root, *proof]
    if not proof:
        return False
    first, last = old - 1, new - 1
    while first & 1:
        first, last = first >> 1, last >> 1
    old_value = new_value = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if first & 1 or first == last:
            old_value, new_value = node_hash(sibling, old_value), node_hash(sibling, new_value)
            while first and not first & 1:
                first, last = first >> 1, last >> 1
        else:
            new_value = node_hash(new_value, sibling)
        first, last = first >> 1, last >> 1
    return last == 0 and old_value == old_root and new_value == new_root


def _subproof(old: int, begin: int, end: int, whole: bool, nodes: Nodes) -> list[bytes]:
    """SUBPROOF of RFC 6962 over the records from `begin` to `end`."""
    if old == end - begin:
        return [] if whole else [_range_root(begin, end, nodes)]
    split = 1 << (end - begin - 1).bit_length() - 1
    middle = begin + split
    if old <= split:
        return [*_subproof(old, begin, middle, whole, nodes), _range_root(middle, end, nodes)]
    return [*_subproof(old - split, middle, end, False, nodes), _range_root(begin, middle, nodes)]


def _range_root(begin: int, end: int, nodes: Nodes) -> bytes:
    """Root of the records from `begin` to `end`; `begin` is where a subtree of that size may begin."""
    hashes, done = [], begin
    for level, _ in peaks(end - begin):
        hashes.append(nodes(level, done >> level))
        done += 1 << level
    return Frontier(end - begin, hashes).root()
