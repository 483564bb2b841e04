"""A question has one text and one hash, and is refused unless a site could answer it as it stands."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.question_asked import question
from trust.errors import PlanError
from trust.question import LONGEST_TEXT, Question, from_json, read_condition, read_offer, read_quantity

HISTOGRAM = question("histogram", "mean(glucose)", edges=(70.0, 140.0, 180.0), where=("age >= 50",))
QUANTILES = question("quantiles", "age", edges=(0.0, 50.0, 100.0), levels=(0.25, 0.5))
CATEGORIES = question("histogram", "sex", categories=("F", "M"), where=("sex != x",))


@pytest.mark.parametrize("place", range(4))
def test_a_question_is_read_back_from_its_text(place: int) -> None:
    asked = (question(), HISTOGRAM, QUANTILES, CATEGORIES)[place]
    assert from_json(asked.to_json()) == asked == read_offer(asked.to_json())
    assert from_json(asked.to_json()).hash == asked.hash == asked.offer_hash


def test_every_field_is_part_of_the_hash() -> None:
    changes = (
        {"purpose": "other"},
        {"edges": (70.0, 140.0, 181.0)},
        {"conditions": ()},
        {"of": read_quantity("last(glucose)")},
        {"noise_multiplier": 5.0},
        {"epsilon": 1.0},
        {"delta": 1e-5},
        {"versions": "0.2"},
    )
    hashes = {replace(HISTOGRAM, **change).hash for change in changes}  # type: ignore[arg-type]  # of each type
    assert len(hashes | {HISTOGRAM.hash}) == len(changes) + 1


REFUSED = (
    {"kind": "sum"},
    {"question": 2},
    {"purpose": " "},
    {"purpose": "x" * 201},
    {"edges": (1.0,)},
    {"edges": (1.0, 1.0)},
    {"edges": (2.0, 1.0)},
    {"edges": (0.0, float("inf"))},
    {"edges": tuple(map(float, range(300)))},
    {"categories": ("a",)},
    {"levels": (0.5,)},
    {"of": None},
    {"noise_multiplier": 0.0},
    {"noise_multiplier": float("nan")},
    {"epsilon": 0.0},
    {"delta": 1.0},
    {"versions": "x"},
    {"conditions": (read_condition("age >= 50"),) * 17},
)


def test_a_question_that_cannot_be_answered_is_refused() -> None:
    for change in REFUSED:
        with pytest.raises(PlanError, match="cannot be answered"):
            replace(HISTOGRAM, **change)  # type: ignore[arg-type]  # some are of another type
    for kind, of, more in (
        ("count", "age", {}),
        ("count", "", {"edges": (0.0, 1.0)}),
        ("quantiles", "age", {"edges": (0.0, 1.0)}),
        ("quantiles", "age", {"edges": (0.0, 1.0), "levels": (0.5, 0.5)}),
        ("quantiles", "age", {"edges": (0.0, 1.0), "levels": (0.0, 0.5)}),
        ("quantiles", "sex", {"categories": ("F",), "levels": (0.5,)}),
        ("histogram", "sex", {"categories": ("F", "F")}),
        ("histogram", "sex", {"categories": ("F ",)}),
    ):
        with pytest.raises(PlanError, match="cannot be answered"):
            question(kind, of, **more)


@pytest.mark.parametrize(
    "text",
    ["mean(glucose) = high", "age > old", "= 3", "age", "age >", "mode(age) > 3", "age > nan", "a;b > 1"],
)
def test_a_condition_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        question(where=(text,))


def test_conditions_are_read_as_people_write_them() -> None:
    for text, shown in (
        ("age>=50", "age >= 50"),
        (" sex = F ", "sex = F"),
        ("last( heart_rate )!=60", "last(heart_rate) != 60"),
        ("body mass index < 25.5", "body mass index < 25.5"),
    ):
        assert str(read_condition(text)) == shown


@given(st.text(max_size=60) | st.sampled_from(["[" * 5000, '{"question": 1}', "x" * (LONGEST_TEXT + 1)]))
def test_a_text_that_is_no_question_is_refused_and_nothing_worse(text: str) -> None:
    for read in (from_json, read_offer):
        with pytest.raises(PlanError):
            read(text)


@given(st.data())
def test_a_value_of_another_type_anywhere_is_refused(data: st.DataObject) -> None:
    text = json.loads(HISTOGRAM.to_json())
    key = data.draw(st.sampled_from(sorted(text)))
    before = text[key]
    text[key] = data.draw(st.sampled_from([None, True, "x", 3, -1.5, [], {}, [[]], ["y"], [None]]))
    try:
        read: Question | None = from_json(json.dumps(text, sort_keys=True, separators=(",", ":")))
    except PlanError:
        read = None
    assert read is None or (type(text[key]) is type(before) and (read == HISTOGRAM) == (text[key] == before))


def test_labels_name_each_cell_with_its_ends_open() -> None:
    assert HISTOGRAM.labels() == ("below 140", "140 or more")
    assert QUANTILES.words() == "quantiles of age"
    assert HISTOGRAM.words() == "histogram of mean(glucose) where age >= 50"
    assert CATEGORIES.labels() == ("F", "M")
    assert question().cells == 1
