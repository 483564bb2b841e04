"""What is remembered of records of this process never outlives a change of what they hold."""

from __future__ import annotations

import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from link.errors import LinkError
from link.flower import identify_coordinator, reply_to, stamp
from link.wire import Answer, answer, read_answer, read_train_request
from strategies import records
from strategies.flower import ANSWER, BYTES, MODEL, ROUND, read_update, to_record, update_record
from trust.packed import packed


def update(value: float) -> dict[str, np.ndarray]:
    return {"weight": np.full(5, value, np.float32)}


def request(**changed: object) -> RecordDict:
    words = {"plan": "{}", "signature": "", "round": 1000, "base": "b"} | changed
    return RecordDict({ROUND: ConfigRecord(words), MODEL: to_record(update(1.0))})  # type: ignore[arg-type]  # also wrong ones


def test_an_update_of_this_process_comes_out_as_it_was_laid_in() -> None:
    whole = packed(update(2.0))
    assert read_update(update_record(whole)) is whole


def test_an_array_that_got_other_bytes_is_read_anew() -> None:
    record = update_record(update(2.0))
    record[BYTES].data = update_record(update(3.0))[BYTES].data
    assert read_update(record).sha256 == packed(update(3.0)).sha256
    record[BYTES].data = b"no update"
    with pytest.raises(Exception, match="canonical bytes"):
        read_update(record)


def test_another_process_reads_bytes_and_takes_no_hash_on_trust() -> None:
    whole = packed(update(2.0))
    whole._sha256 = "0" * 64  # as a process that lies would say
    record = pickle.loads(pickle.dumps(update_record(whole)))
    assert read_update(record).sha256 == packed(update(2.0)).sha256
    forged = pickle.dumps(record).replace(b'"shape":[5]', b'"shape":[6]')
    with pytest.raises(Exception, match=r"canonical bytes|do not parse"):
        pickle.loads(forged)


def test_flower_sends_an_update_as_any_other_array() -> None:
    ours = update_record(update(2.0))
    plain = ArrayRecord({BYTES: Array("uint8", ours[BYTES].shape, "numpy.ndarray", ours[BYTES].data)})
    assert ours.deflate() == plain.deflate()
    assert ours.object_id == plain.object_id


def test_an_answer_is_read_once_and_anew_when_its_words_change_or_are_of_other_types() -> None:
    said = Answer(site="a", plan="p", round=1, base="b")
    content = answer(said)
    assert read_answer(content)[0] is said
    content.config_records[ANSWER]["patients"] = 5
    assert read_answer(content)[0] == replace(said, patients=5)
    for wrong in (replace(said, patients=True), replace(said, site=5)):  # type: ignore[arg-type]  # wrong on purpose
        with pytest.raises(LinkError, match=r"Expected (int|str)"):
            read_answer(answer(wrong))
    more = answer(said)
    more.config_records[ANSWER]["more"] = 1
    with pytest.raises(LinkError, match="keys"):
        read_answer(more)
    fewer = replace(said, steps=2)
    assert read_answer(answer(fewer))[0] == fewer


def test_a_reply_is_the_message_that_flower_would_make() -> None:
    identify_coordinator()
    asked = Message(request(), 7, "train", group_id="3", ttl=100.0)
    stamp(asked, "12")
    content = answer(Answer(site="a", plan="p"))
    ours, theirs = reply_to(asked, content), Message(content, reply_to=asked)
    assert ours.__dict__.keys() == theirs.__dict__.keys()
    assert (ours.content, ours.has_error()) == (content, False)
    told, expected = ours.metadata.__dict__, theirs.metadata.__dict__
    assert told.keys() == expected.keys()
    for name, value in expected.items():
        assert told[name] == (pytest.approx(value, abs=5.0) if name in ("_created_at", "_ttl") else value)
    assert ours.metadata.created_at + ours.metadata.ttl == pytest.approx(asked.metadata.created_at + 100.0)


def test_requests_of_one_round_are_read_once_and_changed_ones_anew() -> None:
    content = request()
    first, model = read_train_request(content)
    again = RecordDict({ROUND: content[ROUND], MODEL: content[MODEL]})
    assert read_train_request(again)[0] is first
    assert read_train_request(again)[1] is model
    content.config_records[ROUND]["round"] = 1001
    assert read_train_request(content)[0].round == 1001
    content.array_records[MODEL]["weight"] = Array(np.full(5, 7.0, np.float32))
    assert read_train_request(content)[1]["weight"][0] == 7.0


def test_a_request_like_the_last_one_but_for_a_type_or_a_key_is_refused() -> None:
    read_train_request(request(round=1))
    with pytest.raises(LinkError, match="Expected int"):
        read_train_request(request(round=True))
    with pytest.raises(LinkError, match="keys"):
        read_train_request(request(more=1))
    content = request()
    del content.config_records[ROUND]["base"]
    with pytest.raises(LinkError, match="keys"):
        read_train_request(content)
    content[ROUND] = to_record(update(1.0))
    with pytest.raises(LinkError, match="keys"):
        read_train_request(content)


def test_a_thread_that_has_read_nothing_knows_no_request() -> None:
    empty = RecordDict({ROUND: ConfigRecord({"": 0}), MODEL: to_record(update(1.0))})
    with ThreadPoolExecutor(1) as fresh, pytest.raises(LinkError, match="keys"):
        fresh.submit(read_train_request, empty).result()


@pytest.mark.parametrize("shape", [(), (0, 3), (4,), (2, 3)])
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_an_array_that_is_to_travel_is_the_one_that_flower_would_make(
    shape: tuple[int, ...], kind: str
) -> None:
    values = np.arange(math.prod(shape), dtype=kind).reshape(shape)
    ours, theirs = records.array(values), Array(values)
    assert ours == theirs
    assert ours.object_id == theirs.object_id
    assert np.array_equal(records.values(ours), values)


def test_records_are_flowers_own_and_check_what_is_set_later() -> None:
    array = Array(np.zeros(3, np.float32))
    words, arrays = records.words({"a": 1}), records.arrays({"w": array})
    content = records.content({"x": words, "y": arrays})
    assert content == RecordDict({"x": ConfigRecord({"a": 1}), "y": ArrayRecord({"w": array})})
    assert content.object_id == RecordDict({"x": words, "y": arrays}).object_id
    words["b"] = 2
    assert "b" not in records.words({})
    wrong: Any = object()
    with pytest.raises(TypeError):
        words["c"] = wrong
    with pytest.raises(TypeError):
        arrays["c"] = wrong
    with pytest.raises(TypeError):
        content["c"] = wrong
