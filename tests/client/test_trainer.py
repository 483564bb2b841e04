"""A site's step is the clipped sum plus the noise over a public number, however a patient's data look."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.site import Part, training_examples
from client.trainer import train
from conf.schema import Strategy
from privacy.errors import PrivacyError
from privacy.layers import NotBookkeepable, Recorder
from privacy.noise import NoiseStream
from strategies.bound import norm_bound
from tests.heart_hospitals import ONE_STEP as TERMS
from tests.heart_hospitals import settings, write_folder
from trust.digest import Arrays
from trust.plan import Terms
from twin import models, prior, tasks
from twin.tasks.protocol import Examples

SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("hospitals"))


@pytest.fixture
def examples(folder: Path) -> Examples:
    return training_examples(settings(folder), "alpha", Part())


def _update(
    folder: Path,
    examples: Examples,
    terms: Terms,
    strategy: Strategy | None = None,
    *,
    context: bytes = b"x",
    declared: int = 10,
) -> Arrays:
    config = settings(folder)
    task = tasks.build(config.task)
    return train(
        model=models.build(config.model, task),
        state=prior.initial_state(config),
        examples=examples,
        task=task,
        terms=terms,
        strategy=strategy or Strategy(learning_rate=1.0),
        declared=declared,
        stream=NoiseStream(SECRET, context),
    )


def _gradients(folder: Path, examples: Examples) -> list[np.ndarray]:
    """Each patient's gradient at the start, one ordinary backward pass each."""
    config = settings(folder)
    task = tasks.build(config.task)
    found = []
    for patient in range(len(examples.patients)):
        network = models.build(config.model, task)
        network.load_state_dict({k: torch.from_numpy(v) for k, v in prior.initial_state(config).items()})
        part = examples.at(examples.patient_N == patient)
        task.loss(network(part), part).mean().backward()  # type: ignore[no-untyped-call]  # torch's stubs leave it untyped
        assert network.head.weight.grad is not None
        found.append(network.head.weight.grad.numpy().astype(np.float64))
    return found


def _repeated(examples: Examples, patient: int, times: int) -> Examples:
    counts = torch.where(examples.patient_N == patient, times, 1)
    return examples.at(torch.repeat_interleave(torch.arange(len(examples)), counts))


def test_without_noise_a_step_is_the_sum_of_clipped_gradients_over_the_declared_number(
    folder: Path, examples: Examples
) -> None:
    quiet = replace(TERMS, noise_multiplier=0.0)
    clipped = [
        gradient * min(1.0, TERMS.clip_norm / np.linalg.norm(gradient))
        for gradient in _gradients(folder, examples)
    ]
    assert any(np.linalg.norm(gradient) > TERMS.clip_norm for gradient in _gradients(folder, examples))
    update = _update(folder, examples, quiet, declared=10)["head.weight"]
    np.testing.assert_allclose(update, -np.sum(clipped, axis=0) / 10, rtol=1e-4, atol=1e-6)


def test_noise_is_that_of_the_stream_times_multiplier_and_clip_norm_added_once(
    folder: Path, examples: Examples
) -> None:
    noisy = _update(folder, examples, TERMS)["head.weight"]
    quiet = _update(folder, examples, replace(TERMS, noise_multiplier=0.0))["head.weight"]
    drawn = NoiseStream(SECRET, b"x").child("noise 0").normal(noisy.shape)
    np.testing.assert_allclose(quiet - noisy, 1.3 * 0.2 * drawn / 10, rtol=1e-3, atol=1e-6)


def test_repeating_a_patients_windows_changes_neither_bound_nor_noise_nor_denominator(
    folder: Path, examples: Examples
) -> None:
    once = _update(folder, examples, TERMS)["head.weight"]
    often = _update(folder, _repeated(examples, 3, 1000), TERMS)["head.weight"]
    np.testing.assert_allclose(often, once, rtol=1e-3, atol=1e-5)


def test_a_patient_more_moves_the_release_by_no_more_than_the_clip_norm_over_the_denominator(
    folder: Path, examples: Examples
) -> None:
    whole = _update(folder, examples, TERMS)["head.weight"]
    for patient in (0, 5, 11):
        without = examples.at(examples.patient_N != patient)
        other = _update(folder, without, TERMS)["head.weight"]
        assert np.linalg.norm(whole - other) <= 1.0001 * TERMS.clip_norm / 10


def test_another_round_or_base_has_other_noise(folder: Path, examples: Examples) -> None:
    one, other = (
        _update(folder, examples, TERMS, context=c)["head.weight"] for c in (b"round 1", b"round 2")
    )
    assert not np.allclose(one, other)


def test_sampling_leaves_patients_out_and_keeps_the_public_denominator(
    folder: Path, examples: Examples
) -> None:
    terms = replace(TERMS, noise_multiplier=0.0, clip_norm=1e9, sampling_rate=0.5)
    gradients = _gradients(folder, examples)
    sampled = NoiseStream(SECRET, b"x").child("choices").poisson_sample(12, 0.5)
    assert 0 < sampled.sum() < 12
    expected = -np.sum([g for g, taken in zip(gradients, sampled, strict=True) if taken], axis=0) / (0.5 * 10)
    np.testing.assert_allclose(
        _update(folder, examples, terms)["head.weight"], expected, rtol=1e-4, atol=1e-6
    )


def test_a_site_whose_draw_is_empty_still_releases_noise(folder: Path, examples: Examples) -> None:
    terms = replace(TERMS, sampling_rate=1e-6)
    update = _update(folder, examples, terms)["head.weight"]
    drawn = NoiseStream(SECRET, b"x").child("noise 0").normal(update.shape)
    np.testing.assert_allclose(update * 1e-6 * 10, -1.3 * 0.2 * drawn, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("local_steps", [1, 5])
def test_updates_keep_within_the_bound_that_the_gate_checks(
    folder: Path, examples: Examples, local_steps: int
) -> None:
    strategy = Strategy(learning_rate=0.7, local_steps=local_steps)
    terms = replace(TERMS, steps=local_steps)
    update = _update(folder, examples, terms, strategy)["head.weight"]
    bound = norm_bound(size=update.size, patients=12, declared=10, terms=terms, strategy=strategy)
    assert bound is not None
    assert np.linalg.norm(update) < bound < 100 * np.linalg.norm(update)


def test_without_privacy_there_is_no_bound_to_check() -> None:
    open_terms = replace(TERMS, private=False, noise_multiplier=0.0)
    assert norm_bound(size=9, patients=12, declared=10, terms=open_terms, strategy=Strategy()) is None


def test_whether_a_release_is_made_does_not_depend_on_any_patients_data(
    folder: Path, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = examples.target_NH.clone()
    broken[examples.patient_N == 2] = torch.nan
    broken_one = replace(examples, target_NH=broken)
    gone = examples.at(torch.nonzero(examples.patient_N != 2).squeeze(1))
    terms = replace(TERMS, windows_per_patient=10_000)  # so that both draw the same windows of the others
    wanted = _update(folder, gone, terms)
    _alike(_update(folder, broken_one, terms), wanted)

    def unknown(*_: object) -> None:
        raise NotBookkeepable("Such a model.")

    monkeypatch.setattr(Recorder, "book", unknown)  # one backward pass per patient instead
    _alike(_update(folder, broken_one, terms), wanted)
    everybody = replace(examples, target_NH=torch.full_like(examples.target_NH, torch.nan))
    for strategy in (None, Strategy(local_steps=3)):
        released = _update(folder, everybody, terms, strategy)
        assert all(np.isfinite(value).all() and value.any() for value in released.values())


def _alike(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-7)


def test_without_privacy_a_gradient_that_is_not_finite_refuses_the_round(
    folder: Path, examples: Examples
) -> None:
    broken = replace(examples, target_NH=torch.full_like(examples.target_NH, torch.nan))
    with pytest.raises(PrivacyError):
        _update(folder, broken, replace(TERMS, private=False, noise_multiplier=0.0))
