"""Who judges follows from the seed and the site's name alone; training and test never meet."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.errors import DataError
from twin.splits import Split

patients = st.lists(st.text("abcdef0123456789", min_size=1, max_size=6), min_size=1, max_size=40, unique=True)
splits = st.one_of(
    st.integers(2, 7).flatmap(
        lambda n: st.builds(
            Split,
            kind=st.just("folds"),
            count=st.just(n),
            index=st.integers(0, n - 1),
            seed=st.integers(0, 99),
        )
    ),
    st.builds(
        Split,
        kind=st.just("splits"),
        count=st.just(50),
        index=st.integers(0, 49),
        test_fraction=st.floats(0.05, 0.95),
        seed=st.integers(0, 99),
    ),
    st.builds(Split, seed=st.integers(0, 99)),
)


@given(patients, splits)
def test_every_patient_either_trains_or_judges(people: list[str], split: Split) -> None:
    training, test = split.training_patients("a", people), split.test_patients("a", people)
    assert sorted(training + test) == sorted(people)
    assert list(training) == sorted(training)
    assert list(test) == sorted(test)


@given(patients, st.integers(2, 7), st.integers(0, 99))
def test_every_patient_judges_in_exactly_one_fold_and_folds_are_of_like_size(
    people: list[str], count: int, seed: int
) -> None:
    folds = [
        Split(kind="folds", count=count, index=n, seed=seed).test_patients("a", people) for n in range(count)
    ]
    assert sorted(patient for fold in folds for patient in fold) == sorted(people)
    assert max(map(len, folds)) - min(map(len, folds)) <= 1


@given(patients, splits, st.randoms(use_true_random=False))
def test_the_order_in_which_patients_come_changes_nothing(
    people: list[str], split: Split, shuffled: random.Random
) -> None:
    other = list(people)
    shuffled.shuffle(other)
    assert split.training_patients("a", people) == split.training_patients("a", other)
    assert replace(split, limit=3).training_patients("a", people) == replace(
        split, limit=3
    ).training_patients("a", other)


def test_another_site_joining_moves_nobody() -> None:
    people = [f"p{n}" for n in range(20)]
    split = Split(kind="folds", count=4, index=1, seed=3)
    before = {site: split.test_patients(site, people) for site in ("b", "c")}
    after = {site: split.test_patients(site, people) for site in ("a", "b", "c")}
    assert before == {site: after[site] for site in before}
    assert len(set(after.values())) == 3


def test_another_seed_and_another_repetition_draw_others() -> None:
    people = [f"p{n}" for n in range(60)]
    for kind in ("folds", "splits"):
        drawn = {
            Split(kind=kind, count=5, index=index, seed=seed).test_patients("a", people)
            for index in range(5)
            for seed in range(5)
        }
        assert len(drawn) == 25


@given(patients, st.floats(0.05, 0.95), st.integers(0, 49))
def test_repeated_splits_have_the_asked_fraction(people: list[str], fraction: float, index: int) -> None:
    split = Split(kind="splits", count=50, index=index, test_fraction=fraction)
    judged = len(split.test_patients("a", people))
    assert abs(judged - fraction * len(people)) <= 0.5 or judged == 1


def test_repeated_splits_draw_everybody_about_equally_often() -> None:
    people = [f"p{n:02d}" for n in range(30)]
    times = dict.fromkeys(people, 0)
    for index in range(400):
        for patient in Split(kind="splits", count=400, index=index, test_fraction=0.3).test_patients(
            "a", people
        ):
            times[patient] += 1
    # Binomial(400, 0.3): five standard deviations are 46.
    assert all(abs(count - 120) < 46 for count in times.values())


@given(patients, splits, st.integers(0, 40))
def test_a_limit_keeps_so_many_of_the_training_patients(people: list[str], split: Split, limit: int) -> None:
    whole = split.training_patients("a", people)
    few = replace(split, limit=limit).training_patients("a", people)
    assert len(few) == min(limit, len(whole))
    assert set(few) <= set(whole)
    assert replace(split, limit=limit).test_patients("a", people) == split.test_patients("a", people)


@given(patients, splits)
def test_a_split_survives_being_written_down(people: list[str], split: Split) -> None:
    again = Split(**split.to_dict())  # type: ignore[arg-type]  # as json gives it back
    assert again.training_patients("a", people) == split.training_patients("a", people)


def test_a_split_that_does_not_exist_is_refused() -> None:
    with pytest.raises(DataError, match="folds, splits, all"):
        Split(kind="fold")
    with pytest.raises(DataError, match="does not exist"):
        Split(kind="folds", count=3, index=3)
