"""A parcel is what it declares, or it is refused; and it is refused before it takes memory."""

from __future__ import annotations

import resource
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from link.checking import Checker
from link.errors import LinkError
from link.flower import identify_coordinator, stamp
from link.frames import (
    BAD_BODY,
    BAD_HEADER,
    DTYPES,
    TOO_LARGE,
    FrameError,
    InMemory,
    Limits,
    Packer,
    Parcel,
    open_header,
    open_request,
)
from link.generated import link_pb2 as pb

LIMITS = Limits()


def parcel(content: RecordDict) -> Parcel:
    identify_coordinator()
    message = Message(content, 5, "train", group_id="1")
    stamp(message, "m-1")
    return Packer().request(message)


def small() -> Parcel:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4)}
    return parcel(RecordDict({"m": ArrayRecord({name: Array(value) for name, value in arrays.items()})}))


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20),
        st.sampled_from(sorted(DTYPES)).flatmap(
            lambda dtype: arrays_of.arrays(
                np.dtype(dtype), arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
            )
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 40),
)
def test_arrays_of_every_dtype_and_shape_come_back_from_parts_of_any_size(
    arrays: dict[str, np.ndarray], step: int
) -> None:
    packed = parcel(RecordDict({"m": ArrayRecord({name: Array(value) for name, value in arrays.items()})}))
    manifest = open_header(packed.header, LIMITS)
    checker, body = Checker(manifest), b""
    for offset in range(0, packed.total, step):
        part = packed.part(offset, step)
        checker.update(part)
        body += part
    checker.finish()
    message = open_request(manifest, InMemory(body))
    back = message.content.array_records["m"]
    assert list(back) == list(arrays)
    for name, value in arrays.items():
        np.testing.assert_array_equal(back[name].numpy(), value)
        assert back[name].numpy().dtype == value.dtype
    assert (message.metadata.dst_node_id, message.metadata.message_id) == (5, "m-1")


def _edit(change: Callable[[pb.Header], object]) -> bytes:
    header = pb.Header()
    header.ParseFromString(small().header)
    change(header)
    return header.SerializeToString()


def _first(header: pb.Header) -> pb.ArrayInfo:
    return header.records[0].arrays.entries[0]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda header: setattr(header, "total", header.total + 1), BAD_HEADER),
        (lambda header: setattr(header, "total", 0), BAD_HEADER),
        (lambda header: _first(header).shape.append(2), BAD_HEADER),
        (lambda header: _first(header).shape.append(1 << 62), TOO_LARGE),
        (lambda header: _first(header).shape.extend([1] * 20), BAD_HEADER),
        (lambda header: setattr(_first(header), "dtype", "object"), BAD_HEADER),
        (lambda header: setattr(_first(header), "dtype", "O"), BAD_HEADER),
        (lambda header: setattr(_first(header), "dtype", "float64"), BAD_HEADER),
        (lambda header: setattr(_first(header), "dtype", "<U100000000"), BAD_HEADER),
        (lambda header: setattr(_first(header), "sha256", b""), BAD_HEADER),
        (lambda header: setattr(_first(header), "name", "b"), BAD_HEADER),
        (lambda header: setattr(_first(header), "name", ""), BAD_HEADER),
        (lambda header: setattr(header.records[0], "name", "x" * 1000), BAD_HEADER),
        (lambda header: header.records.append(header.records[0]), BAD_HEADER),
        (lambda header: setattr(header, "id", ""), BAD_HEADER),
        (lambda header: setattr(header, "kind", 0), BAD_HEADER),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(
    change: Callable[[pb.Header], object], code: str
) -> None:
    with pytest.raises(FrameError) as refused:
        open_header(_edit(change), LIMITS)
    assert refused.value.code == code


def test_bytes_that_are_no_header_are_refused() -> None:
    with pytest.raises(FrameError):
        open_header(b"\xff" * 100, LIMITS)


def test_a_header_of_too_many_bytes_or_arrays_is_refused() -> None:
    with pytest.raises(FrameError, match=TOO_LARGE):
        open_header(b"\0" * (LIMITS.header_bytes + 1), LIMITS)
    with pytest.raises(FrameError, match=TOO_LARGE):
        open_header(small().header, Limits(arrays=1))


def test_a_declared_terabyte_takes_no_memory() -> None:
    header = _edit(lambda header: _first(header).shape.append(1 << 40))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FrameError, match=TOO_LARGE):
        open_header(header, LIMITS)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # KiB


@given(place=st.integers(0, 55), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_body_is_found(place: int, bit: int) -> None:
    packed = small()
    assert packed.total == 56
    body = bytearray(packed.part(0, 56))
    body[place] ^= 1 << bit
    with pytest.raises(FrameError) as refused:
        Checker(open_header(packed.header, LIMITS)).update(bytes(body))
    assert refused.value.code == BAD_BODY


def test_a_body_too_short_or_too_long_is_refused() -> None:
    packed = small()
    manifest = open_header(packed.header, LIMITS)
    checker = Checker(manifest)
    checker.update(packed.part(0, 55))
    with pytest.raises(FrameError):
        checker.finish()
    with pytest.raises(FrameError):
        checker.update(packed.part(55, 1) + b"\0")


def test_pickled_objects_are_neither_sent_nor_made() -> None:
    array = Array(dtype="object", shape=(1,), stype="numpy.ndarray", data=_pickled())
    with pytest.raises(LinkError):
        parcel(RecordDict({"m": ArrayRecord({"a": array})}))


def _pickled() -> bytes:
    from io import BytesIO

    file = BytesIO()
    np.save(file, np.array([{"x": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


def test_the_same_content_is_known_by_the_same_name_whatever_message_brings_it() -> None:
    record = ArrayRecord({"a": Array(np.arange(3))})
    one = open_header(parcel(RecordDict({"m": record, "c": ConfigRecord({"x": 1})})).header, LIMITS)
    two = open_header(parcel(RecordDict({"m": record, "c": ConfigRecord({"x": 2})})).header, LIMITS)
    other = ArrayRecord({"a": Array(np.arange(1, 4))})
    three = open_header(parcel(RecordDict({"m": other})).header, LIMITS)
    assert one.content == two.content != three.content


def test_a_value_too_great_to_travel_is_refused_by_its_sender() -> None:
    with pytest.raises(LinkError, match="'x'"):
        parcel(RecordDict({"c": ConfigRecord({"x": 1 << 80})}))
