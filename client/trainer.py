"""One round's work of a site: private gradient steps from the global model, as one pure function.

Abadi et al. 2016 (arXiv:1607.00133), with the patient as the unit: a step samples patients
(Poisson), takes at most so many windows of each, sums the patients' clipped gradients, adds noise
once and divides by a number that is public and fixed: sampling_rate times the patients that the
site declared in the plan. Plain SGD is preconditioned, since models work on whitened inputs.
Without privacy the same path runs without clipping and noise, over the mean of the patients that
were sampled.

Shapes: N windows, P patients of the site that train.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from conf.schema import Strategy
from privacy.clipping import clipped_patient_sum, patient_chunks, patient_sum
from privacy.errors import InseparableError
from privacy.layers import keeps_book
from privacy.noise import NoiseStream, add_noise
from strategies.fedprox import proximal_gradient
from trust.digest import Arrays
from trust.plan import Terms
from twin.tasks.protocol import Examples, Task

WINDOWS_AT_ONCE = 65_536


def train(
    *,
    model: nn.Module,
    state: Mapping[str, np.ndarray],
    examples: Examples,
    task: Task,
    terms: Terms,
    strategy: Strategy,
    declared: int,
    stream: NoiseStream,
    correction: Mapping[str, np.ndarray] | None = None,
) -> Arrays:
    """The site's update after `strategy.local_steps` steps from the model `state`.

    Args:
        model: a network into which `state` is loaded; its parameters change.
        state: the global model, parameters and buffers by name.
        examples: windows of the patients that train, on the model's device.
        declared: the site's number of patients in the plan.
        stream: noise and draws of this round; private to the site.
        correction: is added to each gradient after clipping and noise, made of releases alone.

    Raises:
        PrivacyError: without privacy only, a gradient is not finite; nothing was released.
    """
    load_state(model, state)
    start = {name: value.detach().clone() for name, value in trainable(model).items()}
    for step in range(strategy.local_steps):
        chosen = _choose(examples, terms, stream.child(f"choice {step}"))
        part = examples if chosen is None else examples.at(chosen)
        gradient = _gradient(model, part, task, terms, declared, stream.child(f"noise {step}"))
        for name, value in (correction or {}).items():
            gradient[name] = gradient[name] + torch.from_numpy(value).to(gradient[name])
        _step(model, start, gradient, strategy)
    return {
        name: (value.detach() - start[name]).cpu().numpy().astype(np.float32)
        for name, value in trainable(model).items()
    }


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that updates hold, sorted by name."""
    found = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return dict(sorted(found.items()))


def load_state(model: nn.Module, state: Mapping[str, np.ndarray]) -> None:
    """Copies named arrays into a model; names and shapes must be exactly the model's."""
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state.items()})


def chosen_windows(counts_P: np.ndarray, terms: Terms, stream: NoiseStream) -> np.ndarray | None:
    """The windows of a step, ascending int64; None if it is all of them.

    Args:
        counts_P: number of windows of each patient; windows are numbered patient by patient.
        stream: of this choice alone.
    """
    everybody = terms.sampling_rate >= 1.0
    if everybody and counts_P.max(initial=0) <= terms.windows_per_patient:
        return None
    index_M = stream.choose(counts_P, terms.windows_per_patient)
    if everybody:
        return index_M
    sampled_P = stream.poisson_sample(len(counts_P), terms.sampling_rate)
    taken_P = np.minimum(counts_P, terms.windows_per_patient)
    sampled_M: np.ndarray = index_M[np.repeat(sampled_P, taken_P)]
    return sampled_M


def _choose(examples: Examples, terms: Terms, stream: NoiseStream) -> Tensor | None:
    """The windows of a step as an index, None if it is all of them."""
    counts_P = np.bincount(examples.patient_N.cpu().numpy(), minlength=len(examples.patients))
    index_M = chosen_windows(counts_P, terms, stream)
    return None if index_M is None else torch.from_numpy(index_M).to(examples.patient_N.device)


def _gradient(
    model: nn.Module, examples: Examples, task: Task, terms: Terms, declared: int, stream: NoiseStream
) -> dict[str, Tensor]:
    if 0 < len(examples) <= WINDOWS_AT_ONCE and keeps_book(model):
        total = _sums(model, examples, task, terms)
    else:
        total = _sums_in_chunks(model, examples, task, terms)
    if not terms.private:
        present = len(torch.unique_consecutive(examples.patient_N))
        return {name: value / max(1, present) for name, value in total.items()}
    noised = add_noise(total, terms.noise_multiplier * terms.clip_norm, stream)
    return {name: value / (terms.sampling_rate * declared) for name, value in noised.items()}


def _sums_in_chunks(model: nn.Module, examples: Examples, task: Task, terms: Terms) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in trainable(model).items()}
    for index in patient_chunks(model, examples.patient_N, windows=WINDOWS_AT_ONCE):
        part = examples if len(index) == len(examples) else examples.at(index)
        for name, value in _sums(model, part, task, terms).items():
            total[name] += value
    return total


def _sums(model: nn.Module, examples: Examples, task: Task, terms: Terms) -> dict[str, Tensor]:
    def losses_N() -> Tensor:
        return task.loss(model(examples), examples)

    patients = len(examples.patients)
    if terms.private:
        try:
            return clipped_patient_sum(model, losses_N, examples.patient_N, patients, terms.clip_norm).sums
        except InseparableError:
            return _sums_one_by_one(model, examples, task, terms)
    return patient_sum(model, losses_N, examples.patient_N, patients)


def _sums_one_by_one(model: nn.Module, examples: Examples, task: Task, terms: Terms) -> dict[str, Tensor]:
    """The same sums with a graph for each patient, so that no patient's overflow reaches another's."""
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in trainable(model).items()}
    for index in patient_chunks(model, examples.patient_N, windows=1):
        for name, value in _sums(model, examples.at(index), task, terms).items():
            total[name] += value
    return total


def _step(
    model: nn.Module, start: Mapping[str, Tensor], gradient: Mapping[str, Tensor], strategy: Strategy
) -> None:
    mu = strategy.proximal_mu if strategy.name == "fedprox" else 0.0
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            direction = gradient[name].to(parameter.dtype)
            if mu:
                direction = direction + proximal_gradient(parameter, start[name], mu)
            parameter.sub_(direction, alpha=strategy.learning_rate)
