"""What adapts lies wholly before what judges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.records import START_US, drawn_rows, glucose_task, site_of, toy_examples, virtual_examples
from twin.halves import halves, within
from twin.tasks.protocol import Examples

HOUR_US = 3_600_000_000


def records(seed: int) -> Examples:
    return glucose_task().examples(site_of(drawn_rows(seed, 5, hours=12)))


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_last_target_of_what_adapts_comes_before_the_first_window_that_judges(seed: int) -> None:
    examples = records(seed)
    early_N, late_N = halves(examples, 60.0)
    assert not (early_N & late_N).any()
    for patient in torch.unique(examples.patient_N):
        mine = examples.patient_N == patient
        time_us = examples.time_us_N[mine]
        first_judged = examples.time_us_N[mine & late_N].min()
        assert first_judged == time_us[len(time_us) // 2]
        assert (time_us[early_N[mine]] + HOUR_US < first_judged).all()
        neither = time_us[~early_N[mine] & ~late_N[mine]]
        assert ((neither < first_judged) & (neither + HOUR_US >= first_judged)).all()


@given(st.integers(0, 1000), st.sampled_from([0, 1, 2]))
@settings(max_examples=20, deadline=None)
def test_a_patients_halves_do_not_depend_on_the_others(seed: int, patient: int) -> None:
    examples = records(seed)
    mine = examples.patient_N == patient
    alone = halves(examples.at(mine), 60.0)
    for half, own in zip(halves(examples, 60.0), alone, strict=True):
        assert torch.equal(half[mine], own)


@pytest.mark.parametrize("days", [0.1, 1.0, 1.3])
def test_only_so_many_days_before_the_border_adapt(days: float) -> None:
    examples = virtual_examples()
    early_N, late_N = halves(examples, 60.0)
    few_N, same_N = halves(examples, 60.0, days)
    assert torch.equal(late_N, same_N)
    for patient in range(len(examples.patients)):
        mine = examples.patient_N == patient
        border = int(examples.time_us_N[mine & late_N].min())
        age_days = (border - examples.time_us_N) / (24 * HOUR_US)
        assert torch.equal(few_N & mine, early_N & mine & (age_days <= days + 1e-9))
    assert few_N.any()


def test_without_time_everything_judges_and_nothing_adapts() -> None:
    examples = records(0)
    timeless = replace(examples, time_us_N=torch.zeros_like(examples.time_us_N))
    early_N, late_N = halves(timeless, 0.0)
    assert late_N.all()
    assert not early_N.any()
    empty_early, empty_late = halves(examples.at(torch.zeros(len(examples), dtype=torch.bool)), 60.0)
    assert len(empty_early) == len(empty_late) == 0


def test_within_gives_the_first_share_of_each_patients_chosen_windows() -> None:
    draws = np.random.default_rng(0)
    patient_N = np.sort(draws.integers(0, 6, 100))
    patient_N[patient_N == 2] = 3
    examples = toy_examples(np.zeros((100, 2)), np.zeros((100, 4)), patient_N)
    assert examples.time_us_N[0] == START_US
    chosen = torch.from_numpy(draws.random(100) > 0.4)
    first, rest = within(examples, chosen, 0.75)
    assert torch.equal(first | rest, chosen)
    assert not (first & rest).any()
    for patient in range(6):
        places = torch.nonzero(chosen & (examples.patient_N == patient))[:, 0].tolist()
        cut = int(np.ceil(0.75 * len(places)))
        assert torch.nonzero(first & (examples.patient_N == patient))[:, 0].tolist() == places[:cut]
