"""Arrays in their canonical bytes are those arrays, and no other bytes pass for them."""

from __future__ import annotations

import json
import struct
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trust.digest import arrays_from_bytes, arrays_sha256, arrays_to_bytes
from trust.errors import TrustError
from trust.packed import _KNOWN, _MOST_KNOWN, packed, packed_from_bytes, packed_from_npy

KINDS = st.sampled_from(["float32", "float64", "int64", "uint8", "bool", ">f4"])
ARRAYS = st.dictionaries(
    st.text("abz.10", min_size=1, max_size=4),
    KINDS.flatmap(lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(ARRAYS)
def test_packed_arrays_are_safetensors_and_come_back(arrays: dict[str, np.ndarray]) -> None:
    one = packed(arrays)
    assert bytes(one.data) == arrays_to_bytes(arrays)
    assert one.sha256 == arrays_sha256(arrays)
    assert np.load(BytesIO(one.npy)).tobytes() == bytes(one.data)
    for back in (packed_from_npy(one.npy), packed_from_bytes(bytes(one.data))):
        assert list(back) == sorted(arrays)
        assert back.shapes == {name: array.shape for name, array in arrays.items()}
        for name, array in arrays.items():
            np.testing.assert_array_equal(back[name], array)
            assert not (array.size and back[name].flags.writeable)


def test_all_float32_numbers_are_one_vector_in_the_order_of_the_arrays() -> None:
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.full((), 9, np.float32)}
    one = packed(arrays)
    assert one.flat is not None
    for name, array in one.in_place_of(one.flat * 2).items():
        np.testing.assert_array_equal(array, 2 * arrays[name])
    assert packed(arrays | {"c": np.zeros(1)}).flat is None
    assert packed(one) is one


def test_few_layouts_are_remembered_and_each_file_is_read_by_its_own() -> None:
    files = [packed({f"layer {number}": np.full(number + 1, number)}).npy for number in range(40)]
    for _ in range(2):
        for number, npy in enumerate(files):
            ((name, array),) = packed_from_npy(npy).items()
            assert (name, array.tolist()) == (f"layer {number}", [number] * (number + 1))
            assert len(_KNOWN) <= _MOST_KNOWN
    before = list(_KNOWN)
    packed_from_npy(files[-1])
    assert list(_KNOWN) == before


def test_bytes_in_another_form_are_refused() -> None:
    arrays = {"a": np.ones(4, np.float32), "b": np.zeros(2, np.float32)}
    data, npy = arrays_to_bytes(arrays), packed(arrays).npy
    spaced = data.replace(b'"F32",', b'"F32" ,', 1)
    longer = bytes([data[0] + 8]) + data[1:]
    text = BytesIO()
    np.save(text, np.array(["patient 7"], dtype=object), allow_pickle=True)
    for faulty in (spaced, longer, data[:-1], data + b"\0", b"", b"\xff" * 40, data[:9]):
        with pytest.raises(TrustError):
            packed_from_bytes(faulty)
    for faulty in (npy[:-1], npy[1:], b"", data, text.getvalue(), npy[:64], npy.replace(b"|u1", b"|i1", 1)):
        with pytest.raises(TrustError):
            packed_from_npy(faulty)
    # The arrays are the same, but they stand in another order than the canonical one.
    turned = data.replace(b"[0,16]", b"[8,24]").replace(b"[16,24]", b"[0, 8 ]")
    assert set(arrays_from_bytes(turned)) == {"a", "b"}
    with pytest.raises(TrustError):
        packed_from_bytes(turned)


def _told(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def _one(kind: object, shape: object, end: int = 0) -> dict[str, object]:
    return {"a": {"dtype": kind, "shape": shape, "data_offsets": [0, end]}}


@pytest.mark.parametrize(
    "data",
    [
        _told(_one("BF16", [4], 8), b"12345678"),  # numpy has no such type
        _told(_one("F8_E4M3", [4], 4), b"1234"),
        _told(_one("F4", [4], 2), b"12"),
        _told(_one("F32", [0, 2**62])),  # nor such axes
        _told(_one("F32", [0, 2**64 - 1])),
        _told(_one("F32", [1] * 65, 4), b"1234"),
        _told(_one("F32", [-1], 4), b"1234"),
        _told(_one("F32", [True], 4), b"1234"),
        _told(_one("F32", [2**40], 4), b"1234"),  # what it promises is not there
        _told(_one([], {})),
        _told([1, 2]),
        _told(7),
        _told({"a": 7}),
        _told({"__metadata__": {"patient": "7"}}),
        struct.pack("<Q", 20_000) + b"[" * 20_000,
        struct.pack("<Q", 2**64 - 1) + b"{}",
        bytes(8),
    ],
    ids=range(17),
)
def test_headers_that_promise_what_nobody_has_are_refused_and_break_nothing(data: bytes) -> None:
    for read in (packed_from_bytes, arrays_from_bytes):
        try:
            read(data)
        except TrustError:
            continue
        assert read is arrays_from_bytes  # which takes metadata, and is not for what peers send in a round


def test_a_header_of_too_many_arrays_of_nothing_is_refused_before_any_is_made() -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    with pytest.raises(TrustError, match="at most"):
        packed_from_bytes(_told({f"{number:07d}": empty for number in range(20_000)}))
