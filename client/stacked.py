"""The work of many sites in one round at once: the trainer's steps, with sites as one more axis.

Each site draws its patients, is clipped and gets its noise from its own keyed stream, in the order in
which `client.trainer.train` draws them, so that both give the same update to within float rounding.
Sites that are alike in size go together, ragged ones are padded (privacy/stacked.py), and as many go
together as fit a bound on memory. A site whose step alone fills that bound gains nothing
from company and goes through `train`.

Letters: S sites of a chunk, N windows, P patients, W windows of a patient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from client.trainer import chosen_windows, load_state, train, trainable
from conf.schema import Strategy
from privacy.errors import PrivacyError
from privacy.layers import keeps_book
from privacy.noise import NoiseStream, add_noise
from privacy.stacked import Stack, clipped_sums, stack
from strategies.fedprox import proximal_gradient
from trust.digest import Arrays
from trust.plan import Terms
from twin.tasks.protocol import Examples, Task

FLOATS_AT_ONCE: Final = 2**22
"""Bound on the numbers that one step of a chunk of sites may hold at a time."""
MOST_SITES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one site brings to a round; see `client.trainer.train`.

    Attributes:
        wanted: whether its update is needed. Who goes with whom must not hang on that, since it moves
            the last bits of floats, and after a crash the same update must come out.
    """

    examples: Examples
    declared: int
    stream: NoiseStream
    wanted: bool = True
    correction: Mapping[str, np.ndarray] | None = None
    counts_P: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        patients = len(self.examples.patients)
        counts_P = np.bincount(self.examples.patient_N.cpu().numpy(), minlength=patients)
        object.__setattr__(self, "counts_P", counts_P)


def can_stack(model: nn.Module) -> bool:
    """Whether sites with this model can be trained at once."""
    return keeps_book(model)


def train_many(
    *,
    model: nn.Module,
    state: Mapping[str, np.ndarray],
    works: Sequence[Work],
    task: Task,
    terms: Terms,
    strategy: Strategy,
    floats_at_once: int = FLOATS_AT_ONCE,
) -> Iterator[tuple[int, Arrays | PrivacyError]]:
    """The place in `works` and the update of each wanted site, or why it has none, as chunks are done.

    Args:
        model: a network of which `can_stack` holds and into which `state` is loaded.
        floats_at_once: bound on the numbers of a step, from which follows how many sites go together.
    """
    load_state(model, state)
    stacked = stack(model)
    start = {name: value.detach().clone() for name, value in trainable(model).items()}
    for places in _chunks(model, works, terms, floats_at_once):
        if not any(works[place].wanted for place in places):
            continue
        if len(places) == 1:
            yield places[0], _alone(model, state, works[places[0]], task, terms, strategy)
            continue
        run = _Run(stacked, start, [works[place] for place in places], task, terms, strategy)
        for place, update in zip(places, run.updates(), strict=True):
            if works[place].wanted:
                yield place, update


def _alone(
    model: nn.Module,
    state: Mapping[str, np.ndarray],
    work: Work,
    task: Task,
    terms: Terms,
    strategy: Strategy,
) -> Arrays | PrivacyError:
    try:
        return train(
            model=model,
            state=state,
            examples=work.examples,
            task=task,
            terms=terms,
            strategy=strategy,
            declared=work.declared,
            stream=work.stream,
            correction=work.correction,
        )
    except PrivacyError as error:
        return error


def _chunks(model: nn.Module, works: Sequence[Work], terms: Terms, floats: int) -> Iterator[list[int]]:
    """Places of sites that go together, small sites first."""
    sizes = [_floats(model, work, terms) for work in works]
    chunk: list[int] = []
    for place in sorted(range(len(works)), key=lambda place: (sizes[place], place)):
        # The last is the greatest, and padding makes all others as great.
        if chunk and (len(chunk) + 1 > MOST_SITES or (len(chunk) + 1) * sizes[place] > floats):
            yield chunk
            chunk = []
        chunk.append(place)
    if chunk:
        yield chunk


def _floats(model: nn.Module, work: Work, terms: Terms) -> float:
    """About how many numbers a step of a site holds: windows with what layers see, gradients, weights."""
    parameters = sum(value.numel() for value in trainable(model).values())
    drawn = np.minimum(work.counts_P, terms.windows_per_patient)
    windows = float(drawn.max(initial=0)) * len(drawn) * terms.sampling_rate
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv1d))]
    seen = sum(m.weight[0].numel() + m.weight.shape[0] for m in layers)
    steps = max(1, work.examples.series_NTC.shape[1])
    explicit = parameters * len(drawn) * terms.sampling_rate if drawn.max(initial=0) * steps > 1 else 0
    return 2.0 * windows * seen * steps + (explicit if terms.private else 0) + 3.0 * parameters


class _Run:
    """A chunk of sites through all local steps of a round."""

    def __init__(
        self,
        stacked: Stack,
        start: Mapping[str, Tensor],
        works: Sequence[Work],
        task: Task,
        terms: Terms,
        strategy: Strategy,
    ) -> None:
        self._stacked, self._start, self._works = stacked, start, works
        self._task, self._terms, self._strategy = task, terms, strategy
        self._all = _joined([work.examples for work in works])
        self._first = np.cumsum([0, *(len(work.examples) for work in works)])
        self._weights = {
            name: value.expand(len(works), *value.shape).clone() for name, value in start.items()
        }

    def updates(self) -> Iterator[Arrays | PrivacyError]:
        """Each site's update, in the order of the sites."""
        correction = self._correction()
        for step in range(self._strategy.local_steps):
            gradient = self._gradient(step)
            for name, value in correction.items():
                gradient[name] = gradient[name] + value.to(gradient[name])
            self._step(gradient)
        moved = {
            name: (value.detach() - self._start[name]).cpu().numpy().astype(np.float32)
            for name, value in self._weights.items()
        }
        for place in range(len(self._works)):
            update = {name: value[place] for name, value in moved.items()}
            # A weight that is not finite stays so in all further steps.
            if all(bool(np.isfinite(value).all()) for value in update.values()):
                yield update
            else:
                yield PrivacyError(
                    "A gradient is not finite, so this step without privacy was refused. Expected finite"
                    " losses: check the scaling of inputs, or lower strategy.learning_rate."
                )

    def _correction(self) -> dict[str, Tensor]:
        """What is added to each site's gradients; zero for a site that has none, empty if no site has one."""
        if all(work.correction is None for work in self._works):
            return {}
        none = {name: np.zeros(tuple(value.shape), np.float32) for name, value in self._start.items()}
        each = [none if work.correction is None else work.correction for work in self._works]
        return {name: torch.from_numpy(np.stack([own[name] for own in each])) for name in none}

    def _gradient(self, step: int) -> dict[str, Tensor]:
        layout = _layout(
            [chosen_windows(w.counts_P, self._terms, w.stream.child(f"choice {step}")) for w in self._works],
            [work.counts_P for work in self._works],
            self._first,
        )
        device = self._all.patient_N.device
        part = self._all.at(torch.from_numpy(layout.index_SPW.reshape(-1)).to(device))
        weight_SPW = torch.from_numpy(layout.weight_SPW).to(device)
        if self._terms.private:
            return self._noised(self._clipped(part, weight_SPW.reshape(-1), layout), step)
        present_S = torch.from_numpy(np.maximum(1, layout.present_S)).to(device)
        return self._plain(part, (weight_SPW / present_S[:, None, None]).reshape(-1))

    def _plain(self, part: Examples, weight_N: Tensor) -> dict[str, Tensor]:
        leaves = {name: value.requires_grad_() for name, value in self._weights.items()}
        self._stacked.load(leaves)
        total = (self._task.loss(self._stacked.model(part), part) * weight_N).sum()
        found = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, found, strict=True))

    def _clipped(self, part: Examples, weight_N: Tensor, layout: _Layout) -> dict[str, Tensor]:
        sites, patients = layout.index_SPW.shape[:2]
        zeros = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in self._weights.items()}
        if patients == 0:
            return zeros
        self._stacked.load(self._weights)
        self._stacked.record(on=True)
        try:
            total = (self._task.loss(self._stacked.model(part), part) * weight_N).sum()
            return zeros | clipped_sums(self._stacked, total, sites, patients, self._terms.clip_norm)
        finally:
            self._stacked.record(on=False)

    def _noised(self, sums: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """Each site's own noise, from its own stream."""
        terms, std = self._terms, self._terms.noise_multiplier * self._terms.clip_norm
        each = []
        for place, work in enumerate(self._works):
            own = {name: value[place] for name, value in sums.items()}
            noised = add_noise(own, std, work.stream.child(f"noise {step}"))
            each.append({name: v / (terms.sampling_rate * work.declared) for name, v in noised.items()})
        return {name: torch.stack([own[name] for own in each]) for name in sums}

    def _step(self, gradient: Mapping[str, Tensor]) -> None:
        mu = self._strategy.proximal_mu if self._strategy.name == "fedprox" else 0.0
        with torch.no_grad():
            for name, weight in self._weights.items():
                direction = gradient[name].to(weight.dtype)
                if mu:
                    direction = direction + proximal_gradient(weight, self._start[name], mu)
                weight.sub_(direction, alpha=self._strategy.learning_rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Which windows stand where: row of each in the joined windows (the last row is padding), its weight."""

    index_SPW: np.ndarray
    weight_SPW: np.ndarray
    present_S: np.ndarray


def _layout(chosen: Sequence[np.ndarray | None], counts: Sequence[np.ndarray], first: np.ndarray) -> _Layout:
    taken, rows = [], []
    for found_M, counts_P, begin in zip(chosen, counts, first[:-1], strict=True):
        index_M = np.arange(int(counts_P.sum())) if found_M is None else found_M
        if found_M is None:
            own_P = counts_P
        else:
            ends_P = np.cumsum(counts_P)
            own_P = np.bincount(np.searchsorted(ends_P, index_M, side="right"), minlength=len(counts_P))
        taken.append(own_P[own_P > 0])
        rows.append(index_M + begin)
    patients = max((len(own) for own in taken), default=0)
    windows = max((int(own.max(initial=0)) for own in taken), default=0)
    index_SPW = np.full((len(chosen), patients, windows), first[-1], np.int64)
    weight_SPW = np.zeros((len(chosen), patients, windows), np.float32)
    for site, (own, row_M) in enumerate(zip(taken, rows, strict=True)):
        if windows == 1:
            index_SPW[site, : len(own), 0], weight_SPW[site, : len(own), 0] = row_M, 1.0
            continue
        patient_M = np.repeat(np.arange(len(own)), own)
        place_M = np.arange(len(row_M)) - np.repeat(np.cumsum(own) - own, own)
        index_SPW[site, patient_M, place_M] = row_M
        weight_SPW[site, patient_M, place_M] = (1.0 / own.astype(np.float32))[patient_M]
    return _Layout(
        index_SPW=index_SPW, weight_SPW=weight_SPW, present_S=np.array([len(own) for own in taken])
    )


def _joined(parts: Sequence[Examples]) -> Examples:
    """The windows of all sites, and after them one of zeros, unobserved, which stands for padding."""
    # Attack: were padding a window of somebody's, that patient's data would reach the others' norms.
    joined: dict[str, Any] = {}
    for entry in fields(Examples):
        if entry.name != "patients":
            values = [getattr(part, entry.name) for part in parts]
            joined[entry.name] = torch.cat([*values, torch.zeros_like(values[0][:1])])
    return Examples(**joined, patients=())
