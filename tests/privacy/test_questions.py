"""Counts with noise: what a patient more or less changes, what it costs, what is not told, what adds up."""

from __future__ import annotations

import numpy as np
import pytest
from dp_accounting import dp_event, privacy_accountant
from dp_accounting.pld import pld_privacy_accountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.accounting import calibrate, epsilon, lifetime_epsilon
from privacy.errors import PrivacyError
from privacy.noise import NoiseStream
from privacy.questions import (
    MOST_COUNT,
    NOWHERE,
    SUPPRESSED,
    count,
    gather,
    noisy,
    quantiles,
    release,
    suppress,
    total,
)

SECRET = bytes(range(32))
counts = st.lists(st.integers(-30, 300), min_size=1, max_size=40)


def _stream(context: str = "question a data b") -> NoiseStream:
    return NoiseStream(SECRET, context.encode())


@given(st.lists(st.integers(NOWHERE, 6), max_size=60), st.integers(NOWHERE, 6))
def test_one_patient_more_changes_at_most_one_count_and_that_by_one(cells: list[int], other: int) -> None:
    before_C = count(np.array(cells, dtype=np.int64), 7)
    after_C = count(np.array([*cells, other], dtype=np.int64), 7)
    assert np.linalg.norm(after_C - before_C) == (other != NOWHERE)
    assert before_C.sum() == sum(cell != NOWHERE for cell in cells)


@pytest.mark.parametrize("cell", [-2, 3])
def test_a_cell_that_there_is_not_is_refused(cell: int) -> None:
    with pytest.raises(PrivacyError):
        count(np.array([0, cell]), 3)


@pytest.mark.parametrize("noise", [0.7, 3.0, 12.0])
def test_the_cost_is_not_below_an_independent_account_of_a_gaussian_of_sensitivity_one(noise: float) -> None:
    accountant = pld_privacy_accountant.PLDAccountant(
        privacy_accountant.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-4
    )
    accountant.compose(dp_event.GaussianDpEvent(noise))
    other = accountant.get_epsilon(1e-4)
    ours = epsilon([release(noise)], 1e-4)
    assert ours == pytest.approx(other, rel=1e-3)
    # Mironov 2017: Rényi divergence order/(2 sigma²), converted by log(1/delta)/(order-1); an upper bound.
    renyi = min(order / (2 * noise**2) + np.log(1e4) / (order - 1) for order in np.arange(1.01, 200, 0.01))
    assert ours <= renyi
    # The definition itself: the tails of two normals, one patient apart, at this epsilon.
    middle = np.linspace(-40 * noise, 40 * noise, 400_001)
    density = stats.norm.pdf(middle, -1, noise)
    gap = np.trapezoid(np.maximum(0, density - np.exp(ours) * stats.norm.pdf(middle, 0, noise)), middle)
    assert gap <= 1e-4 * (1 + 1e-6)


def test_questions_and_training_compose_to_more_than_each_and_no_more_than_their_sum() -> None:
    asked = [release(calibrate(0.5, 1e-4, 1.0, 1)) for _ in range(3)]
    assert epsilon(asked[:1], 1e-4) <= 0.5
    assert 0.5 < lifetime_epsilon(asked, 1e-4) < 1.5


def test_the_noise_is_that_of_the_question_and_the_data_and_as_great_as_it_says() -> None:
    true_C = np.full(20_000, 50)
    first_C = noisy(true_C, 5.0, _stream())
    assert np.array_equal(first_C, noisy(true_C, 5.0, _stream()))
    for other in ("question b data b", "question a data c"):
        assert not np.array_equal(first_C, noisy(true_C, 5.0, _stream(other)))
    assert first_C.dtype == np.int64
    assert stats.kstest(first_C + np.linspace(-0.5, 0.5, 20_000), "norm", (50, 5.0)).pvalue > 1e-4
    assert np.var(first_C) == pytest.approx(25 + 1 / 12, rel=0.05)
    assert noisy(np.array([10**12]), 5.0, _stream())[0] == MOST_COUNT
    with pytest.raises(PrivacyError):
        noisy(true_C, 0.0, _stream())


@given(counts, st.integers(1, 60))
def test_no_count_below_the_smallest_is_told(values: list[int], smallest: int) -> None:
    told = suppress(np.array(values), smallest)
    assert all(
        (said == true) if true >= smallest else (said == SUPPRESSED)
        for said, true in zip(told, values, strict=True)
    )


@given(counts, st.integers(1, 60))
def test_gathered_cells_hold_at_least_the_smallest_and_lose_nobody(values: list[int], smallest: int) -> None:
    told = gather(np.array(values), smallest)
    assert len(told) == len(values)
    assert all(said == SUPPRESSED or said >= smallest for said in told)
    sums = [said for said in told if said != SUPPRESSED]
    if sums:
        assert told[-1] != SUPPRESSED
        assert sum(sums) >= sum(values)
        if all(value >= 0 for value in values):
            assert sum(sums) == sum(values)
    else:
        assert all(sum(values[: end + 1]) < smallest for end in range(len(values)))


def test_totals_leave_out_what_was_not_told_and_state_the_noise_of_the_rest() -> None:
    found = total([40, SUPPRESSED, 25], 3.0)
    assert (found.patients, found.told, found.suppressed) == (65, 2, 1)
    assert found.standard_error == pytest.approx(np.sqrt(2 * (9 + 1 / 12)))
    assert total([SUPPRESSED], 3.0).standard_error == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_quantiles_of_many_patients_are_those_of_the_pooled_sample_to_a_cell_and_the_noise(seed: int) -> None:
    draws = np.random.default_rng(seed)
    edges = np.linspace(0, 100, 51)
    samples = {"a": draws.normal(40, 10, 3000), "b": draws.normal(60, 5, 1500)}
    told = {}
    for site, sample in samples.items():
        cell_P = np.clip(np.searchsorted(edges, sample, side="right") - 1, 0, 49)
        stream = _stream(f"question a data {site} {seed}")
        told[site] = gather(noisy(count(cell_P, 50), 4.0, stream), 10)
    levels = (0.1, 0.5, 0.9)
    found = quantiles(told, tuple(edges), levels, 4.0)
    truth = np.quantile(np.concatenate(list(samples.values())), levels)
    assert [quantile.level for quantile in found] == list(levels)
    for quantile, true in zip(found, truth, strict=True):
        assert quantile.value == pytest.approx(true, abs=2.5)
        assert quantile.low <= quantile.value <= quantile.high
        assert quantile.low >= 0
        assert quantile.high <= 100


def test_without_any_told_cell_there_are_no_quantiles() -> None:
    assert quantiles({"a": (SUPPRESSED, SUPPRESSED)}, (0.0, 1.0, 2.0), (0.5,), 4.0) == ()
    assert quantiles({}, (0.0, 1.0), (0.5,), 4.0) == ()
