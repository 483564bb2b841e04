"""One round's work of a site: private gradient steps from the global model, as one pure function.

Abadi et al. 2016 (arXiv:1607.00133), with the patient as the unit: a step samples patients
(Poisson), takes at most so many windows of each, sums the patients' clipped gradients, adds noise
once and divides by a number that is public and fixed: sampling_rate times the patients that the
site declared in the plan. Plain SGD is preconditioned, since models work on whitened inputs.
Without privacy the same path runs without clipping and noise, over the mean of the patients of a
step, who take turns (client/draws.py).

Shapes: N windows, P patients of the site that train.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Tensor, nn

from client.draws import Drawing, takes_all
from conf.schema import Strategy
from privacy.clipping import (
    PatientClipper,
    clipped_patient_sum,
    patient_chunks,
    refuse_what_mixes_windows,
    weighted,
)
from privacy.errors import PrivacyError
from privacy.layers import NotBookkeepable, keeps_book
from privacy.noise import NoiseStream, StepNoise, mean_with, noised_means
from strategies import loss_release
from strategies.fedprox import proximal_gradient
from trust.digest import Arrays
from trust.plan import Terms
from twin.tasks.protocol import Examples, Task

WINDOWS_AT_ONCE: Final = 65_536
DRAWN_AT_ONCE: Final = 2**22
"""Bound on the numbers of windows that are drawn and gathered for several steps at a time."""

Gradient = dict[str, Tensor]


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

    Under a strategy that asks for it, its loss on `state` is one more array: strategies/loss_release.py.

    Args:
        model: a network into which `state` is loaded; its parameters change.
        state: the global model, parameters and buffers by name.
        examples: windows of the patients that train, on the model's device, patient by patient.
        declared: the site's number of patients in the plan.
        stream: noise and draws of this round; private to the site.
        correction: is added to each gradient after clipping and noise, made of releases alone.

    Raises:
        PrivacyError: without privacy only, a gradient is not finite; nothing was released.
    """
    load_state(model, state)
    parameters = trainable(model)
    start = {name: value.detach().clone() for name, value in parameters.items()}
    added = {name: torch.from_numpy(value) for name, value in (correction or {}).items()}
    said: dict[str, np.ndarray] = {}
    size = sum(value.numel() for value in parameters.values())
    noises = StepNoise(stream, size, strategy.local_steps)
    with _Gradients(model, parameters, task, terms) as gradients:
        for number, (part, counts_K) in enumerate(parts(examples, stream, terms, strategy.local_steps)):
            with_loss = number == 0 and loss_release.releases(strategy)
            gradients.most_loss = loss_release.most(strategy, terms) if with_loss else None
            if not terms.private:
                gradient = gradients.plain(part, counts_K)
                loss = gradients.loss / max(1, len(counts_K))
            elif with_loss:
                sums, noise = gradients.private(part, counts_K), stream.child(f"noise {number}")
                gradient, loss = _mean_with_loss(sums, gradients.loss, terms, strategy, declared, noise)
            elif terms.noise_multiplier:
                gradient = noised_mean(gradients.private(part, counts_K), terms, declared, noises.at(number))
            else:
                gradient = noised_mean(gradients.private(part, counts_K), terms, declared, stream)
            if with_loss:
                said = {loss_release.NAME: np.array([loss], np.float32)}
            for name, value in added.items():
                gradient[name] = gradient[name] + value.to(gradient[name])
            step(parameters, start, gradient, strategy)
    update = {name: value.detach() - start[name] for name, value in parameters.items()}
    # A weight that is not finite stays so in all further steps. Noise hides nothing of that kind.
    if not terms.private and not all(bool(value.isfinite().all()) for value in update.values()):
        raise not_finite()
    return said | {name: value.cpu().numpy().astype(np.float32, copy=False) for name, value in update.items()}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that updates hold, sorted by name."""
    found = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return dict(sorted(found.items()))


def load_state(model: nn.Module, state: Mapping[str, np.ndarray]) -> None:
    """Copies named arrays into a model; names and shapes must be exactly the model's."""
    own = model.state_dict()
    if {name: value.shape for name, value in own.items()} != {
        name: value.shape for name, value in state.items()
    }:
        # It says which name or shape is another.
        model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state.items()})
    for name, value in own.items():
        value.copy_(torch.from_numpy(np.array(state[name])))


def not_finite() -> PrivacyError:
    """Why a step without privacy has no update."""
    return PrivacyError(
        "A gradient is not finite, so this step without privacy was refused. Expected finite losses:"
        " check the scaling of inputs, or lower strategy.learning_rate."
    )


def step(
    weights: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    gradient: Mapping[str, Tensor],
    strategy: Strategy,
) -> None:
    """Moves the weights down the gradient, in place; with FedProx, towards where the round began as well."""
    mu = strategy.proximal_mu if strategy.name == "fedprox" else 0.0
    with torch.no_grad():
        for name, weight in weights.items():
            direction = gradient[name]
            if mu:
                direction = direction + proximal_gradient(weight, start[name], mu)
            weight.sub_(direction, alpha=strategy.learning_rate)


def noised_mean(
    sums: Mapping[str, Tensor], terms: Terms, declared: int, noise: NoiseStream | Tensor
) -> Gradient:
    """The sums with noise, over the public number of patients that a step expects.

    Args:
        noise: a stream, or standard normal numbers from it, (1, D), which are overwritten.
    """
    names = sorted(sums)
    each = [sums[name] for name in names]
    flat_D = torch._utils._flatten_dense_tensors(each)  # type: ignore[no-untyped-call]  # torch leaves it so
    std, expected = terms.noise_multiplier * terms.clip_norm, terms.sampling_rate * declared
    if isinstance(noise, NoiseStream):
        mean_D = noised_means(flat_D[None], std, [noise], [expected])[0]
    else:
        mean_D = mean_with(flat_D[None], std, noise.to(flat_D.device), expected)[0]
    parts = torch._utils._unflatten_dense_tensors(mean_D, each)  # type: ignore[no-untyped-call]  # as above
    return dict(zip(names, parts, strict=True))


def _mean_with_loss(
    sums: Mapping[str, Tensor],
    loss: float,
    terms: Terms,
    strategy: Strategy,
    declared: int,
    stream: NoiseStream,
) -> tuple[Gradient, float]:
    """The noised mean of a step and the loss within it, under noise for the sensitivity of both together.

    Args:
        loss: the sum over patients of their losses, each within [0, loss_bound].
    """
    scale = loss_release.scale(strategy, terms)
    first = next(iter(sums.values()))
    joint = {**sums, loss_release.NAME: torch.tensor([scale * loss], dtype=torch.float64).to(first.device)}
    wider = replace(terms, noise_multiplier=terms.noise_multiplier * loss_release.widening(strategy))
    gradient = noised_mean(joint, wider, declared, stream)
    found = float(gradient.pop(loss_release.NAME)[0]) / scale
    return gradient, min(max(found, 0.0), strategy.loss_bound)


def parts(
    examples: Examples, stream: NoiseStream, terms: Terms, steps: int
) -> Iterator[tuple[Examples, np.ndarray]]:
    """The windows of each step, and how many each patient who takes part has among them."""
    counts_P = windows_of_each(examples)
    if takes_all(counts_P, terms):
        yield from [(examples, counts_P[counts_P > 0])] * steps
        return
    at_once, drawing = steps_at_once(examples, [counts_P], terms), Drawing([counts_P], [stream], terms)
    for first in range(0, steps, at_once):
        drawn = drawing.next(min(at_once, steps - first))
        index_M = torch.from_numpy(drawn.windows_M).to(examples.patient_N.device)
        each = drawn.steps
        gathered = split(examples.at(index_M), [len(windows_M) for _, windows_M in each])
        yield from zip(gathered, (counts_K for counts_K, _ in each), strict=True)


def windows_of_each(examples: Examples) -> np.ndarray:
    """How many windows each patient has, shape P.

    Raises:
        PrivacyError: they do not stand patient by patient.
    """
    patient_N = examples.patient_N.cpu().numpy()
    if bool((np.diff(patient_N) < 0).any()):
        raise PrivacyError("Windows must stand patient by patient; these do not.")
    return np.bincount(patient_N, minlength=len(examples.patients))


def steps_at_once(examples: Examples, counts: Sequence[np.ndarray], terms: Terms) -> int:
    """For how many steps windows may be drawn and gathered together; `counts` of windows of each site."""
    windows = sum(float(np.minimum(own, terms.windows_per_patient).sum()) for own in counts)
    gathered = windows * terms.sampling_rate * _floats_of_window(examples)
    return max(1, int(DRAWN_AT_ONCE / max(1.0, gathered, sum(len(own) for own in counts))))


def split(examples: Examples, sizes: list[int]) -> list[Examples]:
    """Consecutive windows, so many each; `patients` stays whole."""
    names = [entry.name for entry in fields(Examples) if entry.name != "patients"]
    pieces = [torch.split(getattr(examples, name), sizes) for name in names]
    made: list[Any] = [dict(zip(names, row, strict=True)) for row in zip(*pieces, strict=True)]
    return [Examples(**row, patients=examples.patients) for row in made]


def _floats_of_window(examples: Examples) -> int:
    series, static, table = examples.series_NTC.shape, examples.static_NS.shape, examples.table_NF.shape
    return series[1] * series[2] + static[1] + table[1] + 2 * examples.target_NH.shape[1]


class _Gradients:
    """Gradients of one model over the steps of a round; what can be looked up once is. A context manager.

    Attributes:
        most_loss: greatest loss of a patient that counts; None if nobody asks.
        loss: sum over the patients of the last pass of their mean losses, if asked; private.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], task: Task, terms: Terms
    ) -> None:
        refuse_what_mixes_windows(model)
        self._model, self._parameters, self._task, self._terms = model, parameters, task, terms
        self.most_loss: float | None = None
        self.loss = 0.0
        self._clipper: PatientClipper | None = None
        if terms.private and keeps_book(model):
            self._clipper = PatientClipper(model, terms.clip_norm)

    def __enter__(self) -> Self:
        if self._clipper is not None:
            self._clipper.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._clipper is not None:
            self._clipper.__exit__(None, None, None)

    def plain(self, part: Examples, counts_K: np.ndarray) -> Gradient:
        """The gradient of the mean over the patients who take part of the mean loss of their windows."""
        total: Gradient = {}
        self.loss = 0.0
        for some, own_K in self._pieces(part, counts_K):
            losses_N = self._task.loss(self._model(some), some)
            self._hear(losses_N, own_K)
            loss = weighted(losses_N, own_K) / len(counts_K)
            found = torch.autograd.grad(loss, list(self._parameters.values()), materialize_grads=True)
            for name, value in zip(self._parameters, found, strict=True):
                total[name] = total[name] + value if name in total else value
        return total or {name: torch.zeros_like(value) for name, value in self._parameters.items()}

    def private(self, part: Examples, counts_K: np.ndarray) -> Gradient:
        """The sum over the patients who take part of their clipped gradients."""
        self.loss = 0.0
        if self._clipper is None or len(part) == 0:
            return self._one_by_one(part)
        total: Gradient = {}
        try:
            for some, own_K in self._pieces(part, counts_K):
                losses_N = self._task.loss(self._model(some), some)
                self._hear(losses_N, own_K)
                sums, _ = self._clipper.sums(losses_N, own_K)
                for name, value in sums.items():
                    total[name] = total[name].double() + value if name in total else value
        except NotBookkeepable:
            self.__exit__()
            self._clipper, self.loss = None, 0.0
            return self._one_by_one(part)
        return total

    def _pieces(self, part: Examples, counts_K: np.ndarray) -> Iterator[tuple[Examples, np.ndarray]]:
        """Whole patients, at most WINDOWS_AT_ONCE windows or one patient."""
        if 0 < len(part) <= WINDOWS_AT_ONCE:
            yield part, counts_K
        elif len(part):
            for index in patient_chunks(self._model, part.patient_N, windows=WINDOWS_AT_ONCE):
                some = part.at(index)
                yield some, torch.unique_consecutive(some.patient_N, return_counts=True)[1].cpu().numpy()

    def _one_by_one(self, part: Examples) -> Gradient:
        """The same sum for any model, with a graph for each patient: no overflow reaches another patient."""
        sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in self._parameters.items()}
        for index in patient_chunks(self._model, part.patient_N, windows=1):
            some = part.at(index)
            if self.most_loss is not None:
                with torch.no_grad():
                    self._hear(self._losses(some), np.array([len(index)]))
            losses_N = partial(self._losses, some)
            found = clipped_patient_sum(
                self._model, losses_N, some.patient_N, len(part.patients), self._terms.clip_norm
            )
            for name, value in found.sums.items():
                sums[name] += value
        return sums

    def _hear(self, losses_N: Tensor, counts_K: np.ndarray) -> None:
        """Adds the patients' mean losses, within [0, most_loss]; no number counts as the most."""
        if self.most_loss is None:
            return
        each_N = losses_N.detach().double().cpu().numpy()
        mean_K = np.add.reduceat(each_N, np.cumsum(counts_K) - counts_K) / counts_K
        whole_K = np.nan_to_num(mean_K, nan=self.most_loss, posinf=self.most_loss, neginf=0.0)
        self.loss += float(np.clip(whole_K, 0.0, self.most_loss).sum())

    def _losses(self, part: Examples) -> Tensor:
        return self._task.loss(self._model(part), part)
