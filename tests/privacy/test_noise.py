"""Noise and draws: their distribution, that they follow from the key, and that contexts part them."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.errors import PrivacyError
from privacy.noise import (
    GRID_BITS,
    NoiseStream,
    StepNoise,
    _expand,
    _extract,
    add_noise,
    new_site_secret,
    noised,
    noised_means,
    site_secret_from_seed,
)

SECRET = bytes(range(32))


def test_normals_pass_a_kolmogorov_smirnov_test_and_uniforms_too() -> None:
    stream = NoiseStream(SECRET, b"distribution")
    assert stats.kstest(stream.normal(200_000), "norm").pvalue > 0.01
    assert stats.kstest(stream.uniform(200_000), "uniform").pvalue > 0.01


def test_the_same_secret_and_context_give_the_same_numbers() -> None:
    one, other = NoiseStream(SECRET, b"round 1"), NoiseStream(SECRET, b"round 1")
    for shape in (3, (4, 5), 0, (2, 0), 7):
        assert np.array_equal(one.normal(shape), other.normal(shape))
    assert one.normal((4, 5)).shape == (4, 5)


@pytest.mark.parametrize(
    "other",
    [
        NoiseStream(SECRET, b"round 2"),
        NoiseStream(SECRET[::-1], b"round 1"),
        NoiseStream(SECRET, b"round 1").child("step 0"),
        NoiseStream(SECRET, b"round 1step 0"),
    ],
)
def test_another_context_or_secret_gives_an_independent_stream(other: NoiseStream) -> None:
    ours, theirs = NoiseStream(SECRET, b"round 1").normal(50_000), other.normal(50_000)
    assert abs(np.corrcoef(ours, theirs)[0, 1]) < 5 / np.sqrt(50_000)
    assert not np.isin(ours, theirs).any()


def test_children_do_not_collide_and_do_not_depend_on_how_far_the_parent_was_read() -> None:
    parent = NoiseStream(SECRET, b"a")
    before = parent.child("b").uniform(4)
    parent.normal(1000)
    assert np.array_equal(parent.child("b").uniform(4), before)
    assert not np.array_equal(NoiseStream(SECRET, b"ab").child("").uniform(4), before)
    assert not np.array_equal(parent.child("b").child("c").uniform(4), parent.child("bc").uniform(4))


def test_poisson_sampling_takes_each_patient_at_its_rate_and_everybody_at_rate_one() -> None:
    stream = NoiseStream(SECRET, b"sample")
    taken = stream.poisson_sample(100_000, 0.03)
    assert stats.binomtest(int(taken.sum()), 100_000, 0.03).pvalue > 0.001
    assert stream.poisson_sample(1000, 1.0).all()
    assert not stream.poisson_sample(1000, 0.0).any()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 12))
def test_choice_takes_all_windows_or_exactly_the_allowed_number_of_each_patient(
    counts: list[int], at_most: int
) -> None:
    counts_P = np.array(counts, dtype=np.int64)
    index = NoiseStream(SECRET, b"choice").choose(counts_P, at_most)
    patient_N = np.repeat(np.arange(len(counts)), counts_P)
    assert np.array_equal(index, np.unique(index))
    assert np.array_equal(np.bincount(patient_N[index], minlength=len(counts)), np.minimum(counts_P, at_most))


def test_every_window_of_a_patient_is_chosen_equally_often() -> None:
    hits = np.zeros(10)
    for turn in range(3000):
        stream = NoiseStream(SECRET, b"even").child(str(turn))
        index = stream.choose(np.array([5, 10, 2]), 3)
        hits += np.bincount(index[(index >= 5) & (index < 15)] - 5, minlength=10)
    assert hits.sum() == 9000
    assert stats.chisquare(hits).pvalue > 0.001


def test_added_noise_has_the_asked_deviation_and_lies_on_the_grid() -> None:
    sums = {"weight": torch.full((300, 100), 5.0), "bias": torch.zeros(100)}
    noised = add_noise(sums, 0.37, NoiseStream(SECRET, b"noise"))
    noise = np.concatenate([(noised[name].double() - sums[name]).numpy().ravel() for name in sums])
    assert stats.kstest(noise / 0.37, "norm").pvalue > 0.01
    grid = 2.0 ** (-2 - GRID_BITS)
    steps = noised["weight"].numpy() / grid
    assert np.array_equal(steps, np.round(steps))
    assert list(noised) == list(sums)


def test_noise_depends_neither_on_the_sums_nor_on_their_order() -> None:
    sums = {"b": torch.randn(50, generator=torch.Generator().manual_seed(0)), "a": torch.zeros(3)}
    other = {"a": torch.ones(3), "b": torch.zeros(50)}
    one = add_noise(sums, 2.0, NoiseStream(SECRET, b"n"))
    two = add_noise(other, 2.0, NoiseStream(SECRET, b"n"))
    for name, value in sums.items():
        assert torch.allclose(one[name] - value, two[name] - other[name], atol=2.0 ** (1 - GRID_BITS))


def test_no_noise_gives_the_sums_themselves() -> None:
    sums = {"a": torch.tensor([0.1, 0.2])}
    assert torch.equal(add_noise(sums, 0.0, NoiseStream(SECRET, b"n"))["a"], sums["a"].double())


@pytest.mark.parametrize("size", [3, 30_000, 70_000])
def test_noise_of_a_rounds_steps_is_that_of_each_steps_own_stream(size: int) -> None:
    stream = NoiseStream(SECRET, b"round")
    drawn = StepNoise(stream, size, 5)
    # A step may take its noise from elsewhere.
    for step in (1, 2, 3, 4):
        assert np.array_equal(drawn.at(step)[0].numpy(), stream.child(f"noise {step}").normal(size))


@pytest.mark.parametrize("noise_std", [0.0, 0.7])
def test_means_are_noised_sums_over_each_sites_own_number(noise_std: float) -> None:
    sums_SD = torch.randn(3, 30_000, generator=torch.Generator().manual_seed(0))
    over = [3.0, 7.0, 0.9]

    def streams() -> list[NoiseStream]:
        return [NoiseStream(SECRET, name) for name in (b"a", b"b", b"c")]

    expected = noised(sums_SD, noise_std, streams()) / torch.tensor(over, dtype=torch.float64)[:, None]
    found = noised_means(sums_SD, noise_std, streams(), over)
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=0.0)
    for place, stream in enumerate(streams()):
        alone = noised_means(sums_SD[place : place + 1], noise_std, [stream], over[place : place + 1])
        assert torch.equal(alone[0], found[place])


@pytest.mark.parametrize("noise_std", [-1.0, float("nan"), float("inf")])
def test_noise_that_makes_no_sense_is_refused(noise_std: float) -> None:
    with pytest.raises(PrivacyError, match="standard deviation"):
        add_noise({"a": torch.zeros(2)}, noise_std, NoiseStream(SECRET, b"n"))


def test_secrets_are_new_each_time_unless_they_are_simulated() -> None:
    assert new_site_secret() != new_site_secret()
    assert site_secret_from_seed(0, "north") == site_secret_from_seed(0, "north")
    assert len({site_secret_from_seed(s, name) for s in (0, 1, 10) for name in ("north", "0north", "1")}) == 9
    with pytest.raises(PrivacyError, match="at least 32 bytes"):
        NoiseStream(b"short", b"")


def test_the_secret_is_not_shown_when_a_stream_is_printed() -> None:
    shown = repr(NoiseStream(SECRET, b""))
    assert SECRET.hex() not in shown
    assert str(SECRET) not in shown


@given(secret=st.binary(min_size=32, max_size=80), info=st.binary(max_size=200))
def test_keys_are_derived_as_the_library_derives_them(secret: bytes, info: bytes) -> None:
    library = HKDF(algorithm=hashes.SHA256(), length=48, salt=None, info=info)
    assert _expand(_extract(secret), info) == library.derive(secret)


def test_a_stream_is_neither_copied_nor_pickled_whether_it_was_read_or_not() -> None:
    fresh, begun = NoiseStream(SECRET, b"x"), NoiseStream(SECRET, b"x")
    begun.uniform(1)
    for stream in (fresh, begun):
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(PrivacyError, match="neither copied nor pickled"):
                attempt(stream)
