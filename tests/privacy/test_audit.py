"""An empirical audit: how much epsilon the real mechanism shows to an attacker, against the claim.

Privacy auditing with one (1) training run (Steinke, Nasr, Jagielski 2023, arXiv:2305.08846): each of
CANARIES patients takes part with probability one half, the attacker guesses for each from the
releases whether it did, and the number of right guesses bounds epsilon from below with 95 %
confidence. A regression test with a stated power and not a proof: it sees noise divided by ten
and clipping per window instead of per patient; an error of a few per cent it cannot see.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import nn

from privacy.accounting import calibrate
from privacy.clipping import clipped_patient_sum
from privacy.noise import NoiseStream, add_noise

CANARIES, STEPS, WINDOWS, DELTA, CLAIM = 600, 2, 10, 1e-5, 4.0


def releases(*, noise_fault: float = 1.0, per_window: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Who took part (bool) and each canary's score, the release in the canary's own direction."""
    stream = NoiseStream(bytes(32), b"audit")
    present = stream.poisson_sample(CANARIES, 0.5)
    index = np.repeat(np.flatnonzero(present), WINDOWS)
    patient = torch.arange(len(index)) if per_window else torch.from_numpy(index)
    patients = len(index) if per_window else CANARIES
    inputs = torch.zeros(len(index), CANARIES)
    inputs[torch.arange(len(index)), torch.from_numpy(index)] = 1.0
    model = nn.Linear(CANARIES, 1, bias=False)
    noise = calibrate(CLAIM, DELTA, 1.0, STEPS) / noise_fault
    scores = np.zeros(CANARIES)
    for step in range(STEPS):
        total = clipped_patient_sum(model, lambda: 100.0 * model(inputs)[:, 0], patient, patients, 1.0)
        noised = add_noise(total.sums, noise, stream.child(f"step {step}"))
        scores += noised["weight"][0].numpy()
    return present, scores


def audited_epsilon(present: np.ndarray, scores: np.ndarray) -> float:
    """Greatest epsilon that the right guesses refute at 95 %, over numbers of guesses fixed beforehand."""
    order = np.argsort(scores)
    best = 0.0
    shares = (10, 30, CANARIES // 2)
    for half in shares:
        right = int(present[order[-half:]].sum() + (~present[order[:half]]).sum())
        grid = np.linspace(0.0, 12.0, 481)
        refuted = [eps for eps in grid if chance(2 * half, right, eps) < 0.05 / len(shares)]
        best = max([best, *refuted])
    return best


def chance(guesses: int, right: int, eps: float) -> float:
    """Most probable that at least `right` of `guesses` are right at (eps, DELTA): theorem 5.2 there."""
    rate = 1.0 / (1.0 + np.exp(-eps))
    tail = float(stats.binom.sf(right - 1, guesses, rate))
    near = np.cumsum(stats.binom.pmf(right - np.arange(1, right + 1), guesses, rate))
    slack = float(np.max(near / np.arange(1, right + 1), initial=0.0))
    return min(1.0, tail + 2 * CANARIES * DELTA * slack)


def test_the_mechanism_shows_less_than_it_claims_and_more_than_nothing() -> None:
    assert 0.2 < audited_epsilon(*releases()) < CLAIM


def test_noise_divided_by_ten_is_caught() -> None:
    assert audited_epsilon(*releases(noise_fault=10.0)) > CLAIM


def test_clipping_per_window_is_caught() -> None:
    assert audited_epsilon(*releases(per_window=True)) > CLAIM
