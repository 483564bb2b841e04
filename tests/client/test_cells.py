"""A patient's cell follows from that patient's rows alone, whatever the others have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.cells import cells_of, cells_sha256
from client.errors import ClientError
from privacy.questions import NOWHERE, count
from tests.question_asked import question
from trust.question import Question
from twin.errors import DataError
from twin.site import Site
from twin.summaries import as_numbers, as_words, of_signal

ASKED = (
    question(where=("age >= 50", "sex = F")),
    question("histogram", "age", edges=(0.0, 40.0, 60.0, 90.0)),
    question("histogram", "sex", categories=("F", "M"), where=("mean(glucose) < 150",)),
    question("quantiles", "last(glucose)", edges=(50.0, 100.0, 150.0, 400.0), levels=(0.5,)),
)
people = st.lists(
    st.tuples(
        st.sampled_from([None, 20, 39.5, 40, 60.0, 99, "55", "old", " 61 "]),
        st.sampled_from(["F", "M", " F", "", None, "x"]),
        st.lists(st.floats(20, 500), max_size=3),
    ),
    min_size=1,
    max_size=8,
)


def _site(rows: list[tuple[object, object, list[float]]]) -> Site:
    names = [f"p{place}" for place in range(len(rows))]
    patients = pd.DataFrame(
        {"age": [row[0] for row in rows], "sex": [row[1] for row in rows]},
        index=pd.Index(names, name="patient_id"),
    )
    observed = [
        (name, "glucose", pd.Timestamp(f"2026-01-0{place + 1}", tz="UTC"), value)
        for name, row in zip(names, rows, strict=True)
        for place, value in enumerate(row[2])
    ]
    table = pd.DataFrame(observed, columns=["patient_id", "signal", "time", "value"])
    return Site(name="a", observations=table, patients=patients)


@settings(max_examples=60, deadline=None)
@given(people, st.integers(0, 7))
def test_leaving_a_patient_out_changes_one_count_by_at_most_one_and_no_other(
    rows: list[tuple[object, object, list[float]]], leaver: int
) -> None:
    leaver %= len(rows)
    rest = [row for place, row in enumerate(rows) if place != leaver]
    for what in ASKED:
        with_P, without_P = cells_of(what, _site(rows)), cells_of(what, _site(rest))
        assert np.array_equal(np.delete(with_P, leaver), without_P)
        change_C = count(with_P, what.cells) - count(without_P, what.cells)
        assert np.abs(change_C).sum() <= 1


def test_conditions_edges_and_categories_say_what_they_say() -> None:
    site = _site(
        [(20, "F", [100, 200]), (40, "M", [90]), (95, "F", [140, 160]), (-3, " M ", []), (None, None, [50])]
    )
    age, sex, summed, last = (cells_of(what, site).tolist() for what in ASKED)
    assert age == [NOWHERE, NOWHERE, 0, NOWHERE, NOWHERE]
    assert sex == [0, 1, 2, 0, NOWHERE]  # beyond the ends: in the outermost cells
    assert summed == [NOWHERE, 1, NOWHERE, NOWHERE, NOWHERE]  # 150 is not below 150; no record, no mean
    assert last == [2, 0, 2, NOWHERE, 0]
    differs = question(where=("sex != F",))
    assert cells_of(differs, site).tolist() == [NOWHERE, 0, NOWHERE, 0, NOWHERE]


@pytest.mark.parametrize("summary", ["mean", "last", "min", "max"])
def test_summaries_are_those_of_each_patients_rows(summary: str) -> None:
    site = _site([(20, "F", [120.0, 90.0, 300.0]), (30, "M", []), (40, "F", [77.0])])
    found = of_signal(site, "glucose", summary)
    assert found.tolist()[0] == {"mean": 170.0, "last": 300.0, "min": 90.0, "max": 300.0}[summary]
    assert np.isnan(found.tolist()[1])
    assert found.tolist()[2] == 77.0
    with pytest.raises(DataError, match="catalogue"):
        of_signal(site, "mood", summary)


def test_words_and_numbers_are_read_value_by_value() -> None:
    values = pd.Series([1.0, "1", "01.0", " F", "inf", None, float("nan"), "x"], dtype=object)
    assert as_words(values).tolist() == ["1", "1", "1", "F", "inf", "", "", "x"]
    numbers = as_numbers(values)
    assert numbers[:3].tolist() == [1.0, 1.0, 1.0]
    assert np.isnan(numbers[3:]).all()


def test_an_attribute_that_the_table_has_not_is_refused_whoever_the_patients_are() -> None:
    wanted: Question = question(where=("ward = 3",))
    for rows in ([(20, "F", [100.0])], [(20, "F", [100.0])] * 3):
        with pytest.raises(ClientError, match="quantity_unknown"):
            cells_of(wanted, _site(rows))


def test_the_digest_of_the_data_changes_with_a_patient_or_a_cell() -> None:
    site = _site([(20, "F", [100.0]), (60, "M", [200.0])])
    cell_P = cells_of(ASKED[1], site)
    other = replace(site, patients=site.patients.rename(index={"p1": "p9"}))
    found = {cells_sha256(cell_P, site), cells_sha256(cell_P, other), cells_sha256(cell_P[::-1], site)}
    assert len(found) == 3
    assert cells_sha256(cell_P, site) == cells_sha256(cell_P.copy(), site)
