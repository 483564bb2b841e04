"""The tree against the test vectors of Certificate Transparency and against the RFC's own recursion.

Vectors: transparency-dev/merkle, testonly/constants.go and proof/verify_test.go.
"""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trust.errors import TrustError
from trust.merkle import (
    EMPTY_ROOT,
    Frontier,
    Nodes,
    consistency_proof,
    is_consistent,
    leaf_hash,
    root,
)

LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
PROOFS = {
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
    (6, 7): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
}


def mth(records: list[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1, as it is written there."""
    if not records:
        return hashlib.sha256(b"").digest()
    if len(records) == 1:
        return hashlib.sha256(b"\x00" + records[0]).digest()
    k = 1
    while 2 * k < len(records):
        k *= 2
    return hashlib.sha256(b"\x01" + mth(records[:k]) + mth(records[k:])).digest()


def nodes_of(records: list[bytes]) -> Nodes:
    return lambda level, index: mth(records[index << level : (index + 1) << level])


def grown(records: list[bytes]) -> tuple[Frontier, dict[tuple[int, int], bytes]]:
    frontier, stored = Frontier(), {}
    for number, record in enumerate(records):
        stored[0, number] = leaf_hash(record)
        stored |= {(level, index): value for level, index, value in frontier.add(leaf_hash(record))}
    return frontier, stored


@pytest.mark.parametrize("size", range(9))
def test_the_root_is_the_one_of_the_test_vectors(size: int) -> None:
    assert grown(LEAVES[:size])[0].root().hex() == ROOTS[size]
    assert root(size, nodes_of(LEAVES)).hex() == ROOTS[size]


@pytest.mark.parametrize("sizes", PROOFS)
def test_the_consistency_proof_is_the_one_of_the_test_vectors(sizes: tuple[int, int]) -> None:
    old, new = sizes
    proof = consistency_proof(old, new, nodes_of(LEAVES))
    assert [entry.hex() for entry in proof] == PROOFS[sizes]
    assert is_consistent(old, new, bytes.fromhex(ROOTS[old]), bytes.fromhex(ROOTS[new]), proof)


@given(st.lists(st.binary(max_size=3), max_size=70))
@settings(deadline=None, max_examples=60)
def test_a_tree_that_grew_record_by_record_is_the_tree_of_the_rfc(records: list[bytes]) -> None:
    frontier, stored = grown(records)
    assert frontier.root() == mth(records)
    for (level, index), value in stored.items():
        assert value == mth(records[index << level : (index + 1) << level])
    assert root(len(records), lambda level, index: stored[level, index]) == mth(records)


@given(st.integers(0, 70), st.integers(0, 70))
@settings(deadline=None, max_examples=100)
def test_every_earlier_tree_is_shown_to_be_the_beginning(first: int, second: int) -> None:
    old, new = sorted((first, second))
    records = [str(number).encode() for number in range(new)]
    _, stored = grown(records)
    proof = consistency_proof(old, new, lambda level, index: stored[level, index])
    assert is_consistent(old, new, mth(records[:old]), mth(records), proof)
    assert len(proof) <= 2 * max(new.bit_length(), 1)


@given(st.integers(1, 40), st.integers(1, 40), st.data())
@settings(deadline=None, max_examples=150)
def test_no_proof_shows_a_changed_history(old: int, more: int, data: st.DataObject) -> None:
    new = old + more
    records = [str(number).encode() for number in range(new)]
    changed = list(records)
    changed[data.draw(st.integers(0, old - 1), label="changed record")] = b"another"
    for claimed in (consistency_proof(old, new, nodes_of(list_)) for list_ in (records, changed)):
        assert not is_consistent(old, new, mth(records[:old]), mth(changed), claimed)


@pytest.mark.parametrize("sizes", [sizes for sizes in PROOFS if PROOFS[sizes]])
def test_a_proof_with_any_change_is_refused(sizes: tuple[int, int]) -> None:
    old, new = sizes
    before, after = bytes.fromhex(ROOTS[old]), bytes.fromhex(ROOTS[new])
    proof = [bytes.fromhex(text) for text in PROOFS[sizes]]
    wrong = [[], proof[:-1], [*proof, b""], [*proof, after], [*proof, before], [before, *proof]]
    wrong += [[proof[0], *proof], [*proof[:-1], proof[-1][:31]]]
    for place in range(len(proof)):
        for bit in range(0, 256, 37):
            flipped = bytearray(proof[place])
            flipped[bit // 8] ^= 1 << bit % 8
            wrong.append([*proof[:place], bytes(flipped), *proof[place + 1 :]])
    assert not any(is_consistent(old, new, before, after, entry) for entry in wrong)
    for sizes_ in ((old - 1, new), (old + 1, new), (old ^ 2, new), (old, 2 * new), (old, new // 2)):
        assert not is_consistent(*sizes_, before, after, proof)
    assert not is_consistent(old, new, after, before, proof)
    assert not is_consistent(old, new, EMPTY_ROOT, after, proof)
    assert not is_consistent(old, new, before, b"short", proof)


def test_the_empty_tree_begins_every_tree_and_no_other_root_does() -> None:
    after = bytes.fromhex(ROOTS[5])
    assert is_consistent(0, 5, EMPTY_ROOT, after, [])
    assert not is_consistent(0, 5, after, after, [])
    assert not is_consistent(0, 5, EMPTY_ROOT, after, [after])
    assert not is_consistent(5, 5, after, bytes.fromhex(ROOTS[6]), [])


@pytest.mark.parametrize("sizes", [(-1, 3), (4, 3)])
def test_there_is_no_proof_that_a_log_shrank(sizes: tuple[int, int]) -> None:
    with pytest.raises(TrustError, match="0 <= old <= new"):
        consistency_proof(*sizes, nodes_of(LEAVES))
    assert not is_consistent(*sizes, EMPTY_ROOT, EMPTY_ROOT, [])


def test_a_frontier_needs_one_hash_for_each_whole_subtree() -> None:
    with pytest.raises(TrustError, match="2 hashes for 5 records"):
        Frontier(5, [EMPTY_ROOT])
