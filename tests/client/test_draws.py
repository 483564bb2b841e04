"""Who takes part in the steps of a round: turns without privacy, Poisson with it, each site for itself."""

from __future__ import annotations

import numpy as np
import pytest

from client.draws import Drawing, Draws
from privacy.noise import NoiseStream
from trust.plan import Terms

SIZES = [40, 7, 23]


def _terms(*, private: bool, rate: float = 0.3) -> Terms:
    return Terms(
        private=private,
        noise_multiplier=1.0 if private else 0.0,
        clip_norm=1.0,
        sampling_rate=rate,
        windows_per_patient=3,
        steps=100,
        epsilon=None,
        delta=1e-5,
    )


def _counts(most: int) -> list[np.ndarray]:
    draws = np.random.default_rng(0)
    return [draws.integers(1, most + 1, size) for size in SIZES]


def _drawing(counts: list[np.ndarray], terms: Terms, sites: slice = slice(None)) -> Drawing:
    streams = [NoiseStream(b"s" * 32, b"site %d" % number) for number in range(len(counts))]
    return Drawing(counts[sites], streams[sites], terms)


def _patients(drawn: Draws, site: int) -> list[np.ndarray]:
    """Who takes part in each step, where each patient has at most one window."""
    ends = np.cumsum(drawn.present_TS.reshape(-1))
    each = np.split(drawn.windows_M, ends[:-1])
    return each[site :: drawn.present_TS.shape[1]]


def test_without_privacy_everybody_has_one_turn_in_each_epoch_and_steps_are_of_one_size() -> None:
    drawn = _drawing([np.ones(size, np.int64) for size in SIZES], _terms(private=False)).next(12)
    for site, sizes in enumerate(((13, 13, 14), (2, 2, 3), (7, 8, 8))):
        taking_part, orders = _patients(drawn, site), []
        for first in range(0, 12, 3):
            each = taking_part[first : first + 3]
            assert sorted(len(own) for own in each) == list(sizes)
            assert sorted(np.concatenate(each)) == list(range(sum(sizes)))
            orders.append(np.concatenate(each).tolist())
        assert len({tuple(order) for order in orders}) == len(orders) > 1


@pytest.mark.parametrize("rate", [1e-6, 0.5, 0.999])
def test_whoever_has_windows_has_one_turn_in_each_epoch_and_nobody_else_has_any(rate: float) -> None:
    counts = [np.array(own, np.int64) for own in ([], [1], [0], [0, 1, 0, 1, 1], [1] * 9)]
    drawing = _drawing(counts, _terms(private=False, rate=rate))
    drawn = [drawing.next(steps) for steps in (1, 7, 82)]
    for site, own in enumerate(counts):
        turns = max(1, min(round(1 / rate), len(own)))
        each = [patients for part in drawn for patients in _patients(part, site)]
        whole = len(each) // turns * turns
        taken = np.bincount(np.concatenate(each[:whole]), minlength=int(own.sum()))
        assert taken.tolist() == [whole // turns] * int(own.sum())


def test_with_privacy_each_patient_takes_part_on_their_own_at_the_rate_of_the_plan() -> None:
    terms, steps = _terms(private=True), 4000
    drawn = _drawing([np.ones(size, np.int64) for size in SIZES], terms).next(steps)
    taken_TP = np.zeros((steps, SIZES[0]))
    for step, patients in enumerate(_patients(drawn, 0)):
        taken_TP[step, patients] = 1
    deviation = np.sqrt(0.3 * 0.7 / steps)
    assert np.abs(taken_TP.mean(0) - 0.3).max() < 4.5 * deviation
    # Independent patients: the number who take part is binomial.
    assert taken_TP.sum(1).var() == pytest.approx(SIZES[0] * 0.3 * 0.7, rel=0.1)


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("most", [1, 9])
def test_what_a_site_draws_hangs_neither_on_company_nor_on_how_many_steps_are_drawn_at_once(
    private: bool, most: int
) -> None:
    counts, terms = _counts(most), _terms(private=private)
    whole = _drawing(counts, terms).next(10)
    alone = _drawing(counts, terms, slice(1, 2))
    parts = [alone.next(3), alone.next(1), alone.next(6)]
    present = np.concatenate([part.present_TS[:, 0] for part in parts])
    np.testing.assert_array_equal(whole.present_TS[:, 1], present)
    steps = [step for part in parts for step in part.steps]
    for number, ((counts_K, windows_M), (own_K, own_M)) in enumerate(zip(whole.steps, steps, strict=True)):
        before, here = int(whole.present_TS[number, 0]), int(whole.present_TS[number, 1])
        np.testing.assert_array_equal(counts_K[before : before + here], own_K)
        first = int(counts_K[:before].sum())
        np.testing.assert_array_equal(windows_M[first : first + own_K.sum()], own_M)
