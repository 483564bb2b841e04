"""The work of many sites in one round at once: the trainer's steps, with sites as one more axis.

Each site draws its patients, is clipped and gets its noise from its own keyed stream, in the order in
which `client.trainer.train` draws them, so that both give the same update to within float rounding.
Sites that are alike in size go together, ragged ones are padded (privacy/stacked.py), and as many go
together as fit a bound on memory. A site without company goes through `train`, but for chains without
privacy, whose steps are written out (client/chained.py) as long as `train` would pass them in one piece.

Letters: S sites of a chunk, N windows, P patients, W windows of a patient.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from client.anatomy import Anatomy, Chain
from client.chained import Bench
from client.chunks import FLOATS_AT_ONCE, MOST_SITES, chunks, step_floats
from client.draws import Drawing, Layout, lay_out, takes_all
from client.threads import one_thread
from client.trainer import (
    WINDOWS_AT_ONCE,
    load_state,
    not_finite,
    split,
    steps_at_once,
    train,
    windows_of_each,
)
from conf.schema import Strategy
from privacy.errors import PrivacyError
from privacy.noise import NoiseStream, noised_means
from privacy.stacked import Stack, clipped_sums, descend, stack
from strategies.fedprox import proximal_gradient
from trust.digest import Arrays
from trust.plan import Terms
from twin.tasks.protocol import Examples, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one site brings to a round; see `client.trainer.train`.

    Attributes:
        wanted: whether its update is needed. Who goes with whom must not hang on that, since it moves
            the last bits of floats, and after a crash the same update must come out.
        steps: of the site in this round if they are fewer than the strategy's.
    """

    examples: Examples
    declared: int
    stream: NoiseStream
    wanted: bool = True
    correction: Mapping[str, np.ndarray] | None = None
    steps: int | None = None
    counts_P: np.ndarray = field(init=False)
    known_counts: InitVar[np.ndarray | None] = None

    def __post_init__(self, known_counts: np.ndarray | None) -> None:
        counts_P = windows_of_each(self.examples) if known_counts is None else known_counts
        object.__setattr__(self, "counts_P", counts_P)


def train_many(
    *,
    model: nn.Module,
    state: Mapping[str, np.ndarray],
    works: Sequence[Work],
    task: Task,
    terms: Terms,
    strategy: Strategy,
    floats_at_once: int = FLOATS_AT_ONCE,
    most_sites: int | None = None,
) -> Iterator[list[tuple[int, Arrays | PrivacyError]]]:
    """Chunk after chunk, the place in `works` and the update of each wanted site, or why it has none.

    Args:
        model: a network of which `can_stack` holds and into which `state` is loaded.
        floats_at_once: bound on the numbers of a step, from which follows how many sites go together.
        most_sites: that go together; None is MOST_SITES.
    """
    shop, base = Workshop(model, task), Base(state=state, terms=terms, strategy=strategy)
    sizes = [step_floats(shop.anatomy, work.examples, work.counts_P, terms) for work in works]
    for places in chunks(sizes, floats_at_once, lambda _: most_sites or MOST_SITES):
        made = shop.trained(base, [works[place] for place in places])
        yield [(places[number], update) for number, update in made]


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What the sites of a round have in common."""

    state: Mapping[str, np.ndarray]
    terms: Terms
    strategy: Strategy

    def is_as(self, other: Base) -> bool:
        """Whether it is sure to be the same as another, without a look at its numbers."""
        if self is other:
            return True
        same = self.state is other.state and not any(own.flags.writeable for own in self.state.values())
        return same and (self.terms, self.strategy) == (other.terms, other.strategy)


class Workshop:
    """Trains sites that share a network, alone or in chunks; what it needs for that it keeps between rounds.

    Its network is a copy of its own, which nobody else loads with another model in between.
    """

    def __init__(self, model: nn.Module, task: Task) -> None:
        self._model, self._task = copy.deepcopy(model), task
        self.anatomy = Anatomy.of(self._model)
        self._base: Base | None = None
        self._start: dict[str, Tensor] = {}
        self._benches: dict[int, Bench] = {}
        self._stacked: Stack | None = None
        self._copy: nn.Module | None = None

    def trained(self, base: Base, works: Sequence[Work]) -> list[tuple[int, Arrays | PrivacyError]]:
        """The place and the update of each wanted site of a chunk."""
        if not any(work.wanted for work in works):
            return []
        # What overflows is no news: such a site has no update.
        with one_thread(), np.errstate(over="ignore", invalid="ignore"):
            self._load(base)
            chain = None if base.terms.private else self.anatomy.chain
            if len(works) == 1 and (chain is None or _passes_in_pieces(works[0], base.terms)):
                return [(0, self._alone(base, works[0]))]
            bench = None if chain is None else self._bench(chain, len(works))
            if bench is None and self._stacked is None:
                self._stacked = stack(self._model)
            run = _Run(self._start, works, self._task, base, self._stacked, bench)
            return [(place, update) for place, update in enumerate(run.updates()) if works[place].wanted]

    def _load(self, base: Base) -> None:
        if self._base is not None and base.is_as(self._base):
            return
        self._base = None  # should it fail, half of another one is there
        load_state(self._model, base.state)
        self._start = {name: value.detach().clone() for name, value in self.anatomy.trained.items()}
        self._base, self._stacked = base, None

    def _bench(self, chain: Chain, sites: int) -> Bench:
        """Where so many sites are trained by hand; of two sizes, those of most chunks and of the last."""
        if sites not in self._benches:
            if len(self._benches) > 1:
                self._benches = {}
            self._benches[sites] = Bench(*chain, self.anatomy.trained, sites)
        return self._benches[sites]

    def _alone(self, base: Base, work: Work) -> Arrays | PrivacyError:
        # A copy: what is stacked is made of the model as it was loaded.
        if self._copy is None:
            self._copy = copy.deepcopy(self._model)
        try:
            return train(
                model=self._copy,
                state=base.state,
                examples=work.examples,
                task=self._task,
                terms=base.terms,
                strategy=replace(base.strategy, local_steps=work.steps or base.strategy.local_steps),
                declared=work.declared,
                stream=work.stream,
                correction=work.correction,
            )
        except PrivacyError as error:
            return error


def _passes_in_pieces(work: Work, terms: Terms) -> bool:
    """Whether `train` passes a step of the site in several pieces; by hand it would be held whole."""
    windows = np.minimum(work.counts_P, terms.windows_per_patient).sum() * terms.sampling_rate
    return bool(windows > WINDOWS_AT_ONCE)


class _Run:
    """A chunk of sites through all local steps of a round."""

    def __init__(
        self,
        start: Mapping[str, Tensor],
        works: Sequence[Work],
        task: Task,
        base: Base,
        stacked: Stack | None,
        bench: Bench | None,
    ) -> None:
        """Args:
        stacked, bench: one of them, as the model allows.
        """
        self._start, self._works, self._task = start, works, task
        self._terms, self._strategy = base.terms, base.strategy
        self._stacked, self._bench = stacked, bench
        self._steps_S = np.array([work.steps or base.strategy.local_steps for work in works])
        self._all = _joined([work.examples for work in works])
        if bench is not None:
            self._weights = bench.begin(start)
            self._all = replace(self._all, table_NF=bench.model.whitened(self._all))
        else:
            # Each in one piece, as batched products want it.
            sites = len(works)
            self._weights = {name: value.expand(sites, *value.shape).clone() for name, value in start.items()}

    def updates(self) -> Iterator[Arrays | PrivacyError]:
        """Each site's update, in the order of the sites."""
        correction = self._correction()
        if self._stacked is not None:
            self._stacked.load(self._weights)
        for step, (part, layout) in enumerate(self._parts()):
            pull = self._pull(correction)
            self._descend(part, layout, step)
            for name, value in pull.items():
                self._go(name, value, step)
        moved = {name: value - self._start[name] for name, value in self._weights.items()}
        # A weight that is not finite stays so in all further steps.
        norms = [torch.linalg.vector_norm(value.flatten(1), dim=1) for value in moved.values()]
        finite_S = torch.stack(norms).isfinite().all(0)
        if not finite_S.all():  # a norm overflows before its numbers do
            finite_S = torch.stack([value.flatten(1).isfinite().all(1) for value in moved.values()]).all(0)
        arrays = {name: value.float().cpu().numpy() for name, value in moved.items()}
        for place, finite in enumerate(finite_S.tolist()):
            yield {name: value[place] for name, value in arrays.items()} if finite else not_finite()

    def _go(self, name: str, direction: Tensor, step: int) -> None:
        """Moves the weights of the sites that are not done."""
        working_S = self._steps_S > step
        if not working_S.all():
            mask_S = torch.from_numpy(working_S).to(direction)
            direction = direction * mask_S.view(-1, *[1] * (direction.dim() - 1))
        self._weights[name].sub_(direction, alpha=self._strategy.learning_rate)

    def _correction(self) -> dict[str, Tensor]:
        """What is added to each site's gradients; zero for a site that has none, empty if no site has one."""
        given = [work.correction for work in self._works]
        if all(correction is None for correction in given):
            return {}
        none = {name: np.zeros(tuple(value.shape), np.float32) for name, value in self._start.items()}
        each = [none if correction is None else correction for correction in given]
        stacked = {name: torch.from_numpy(np.stack([own[name] for own in each])) for name in none}
        return {name: value.to(self._weights[name]) for name, value in stacked.items()}

    def _pull(self, correction: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What a step adds to the gradient, at the weights where it begins."""
        if self._strategy.name != "fedprox" or not self._strategy.proximal_mu:
            return correction
        pull = {}
        for name, weight in self._weights.items():
            pull[name] = proximal_gradient(weight, self._start[name], self._strategy.proximal_mu)
            if name in correction:
                pull[name] += correction[name]
        return pull

    def _descend(self, part: Examples, layout: Layout, step: int) -> None:
        """One step down each site's own gradient."""
        sites, patients = layout.index_SPW.shape[:2]
        sums: dict[str, Tensor] = {}
        if patients:
            weight_SPW = layout.weight_SPW
            if not self._terms.private:
                present_S = np.maximum(1, layout.present_S).astype(np.float32)
                weight_SPW = weight_SPW / present_S[:, None, None]
            weight_N = torch.from_numpy(weight_SPW.reshape(-1)).to(part.patient_N.device)
            if self._bench is not None:
                self._bench.descend(part, weight_N, self._strategy.learning_rate)
                return
            sums = self._by_autograd(part, weight_N, sites, patients)
        if self._terms.private:
            for name, value in self._noised(sums, step).items():
                self._go(name, value, step)

    def _by_autograd(self, part: Examples, weight_N: Tensor, sites: int, patients: int) -> dict[str, Tensor]:
        """The clipped sums; without privacy the step itself, and nothing."""
        if self._stacked is None:
            return {}
        self._stacked.record(on=True)
        try:
            total = (self._task.loss(self._stacked.model(part), part) * weight_N).sum()
            if self._terms.private:
                return clipped_sums(self._stacked, total, sites, patients, self._terms.clip_norm)
            descend(self._stacked, total, sites, self._strategy.learning_rate)
            return {}
        finally:
            self._stacked.record(on=False)

    def _parts(self) -> Iterator[tuple[Examples, Layout]]:
        """The windows of each step, laid out as sites × patients × windows."""
        counts = [work.counts_P for work in self._works]
        streams = [work.stream for work in self._works]
        first_S = np.cumsum([0, *(len(work.examples) for work in self._works)])
        steps, terms = int(self._steps_S.max()), self._terms
        drawing = Drawing(counts, streams, terms)
        if all(takes_all(own, terms) for own in counts):
            (layout,) = lay_out(drawing.next(1), first_S)
            (part,) = self._gathered([layout])
            for step in range(steps):
                yield part, self._without_done(layout, step)
            return
        at_once = steps_at_once(self._all, counts, terms)
        for first in range(0, steps, at_once):
            layouts = lay_out(drawing.next(min(at_once, steps - first)), first_S)
            layouts = [self._without_done(layout, first + place) for place, layout in enumerate(layouts)]
            yield from zip(self._gathered(layouts), layouts, strict=True)

    def _without_done(self, layout: Layout, step: int) -> Layout:
        """The layout in which padding stands for windows of sites that have done all their steps."""
        working_S = self._steps_S > step
        if working_S.all():
            return layout
        working_S11 = working_S[:, None, None]
        return replace(
            layout,
            # A window that is not finite would reach them, whatever it weighs.
            index_SPW=np.where(working_S11, layout.index_SPW, len(self._all) - 1),
            weight_SPW=np.where(working_S11, layout.weight_SPW, np.float32(0)),
        )

    def _gathered(self, layouts: Sequence[Layout]) -> list[Examples]:
        index_N = np.concatenate([layout.index_SPW.reshape(-1) for layout in layouts])
        part = self._all.at(torch.from_numpy(index_N).to(self._all.patient_N.device))
        return split(part, [layout.index_SPW.size for layout in layouts])

    def _noised(self, sums: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """The mean of each site with its own noise, from its own stream."""
        terms, sites = self._terms, len(self._works)
        rows = []
        for name, weight in self._weights.items():
            found = sums[name] if name in sums else torch.zeros_like(weight)
            rows.append(found.reshape(sites, -1))
        streams = [work.stream.child(f"noise {step}") for work in self._works]
        expected_S = [terms.sampling_rate * work.declared for work in self._works]
        std = terms.noise_multiplier * terms.clip_norm
        mean_SD = noised_means(torch.cat(rows, dim=1), std, streams, expected_S)
        parts = torch.split(mean_SD, [row.shape[1] for row in rows], dim=1)
        each = zip(self._weights.items(), parts, strict=True)
        return {name: part.view(weight.shape) for (name, weight), part in each}


def _joined(parts: Sequence[Examples]) -> Examples:
    """The windows of all sites, and after them one of zeros, unobserved, which stands for padding."""
    # Attack: were padding a window of somebody's, that patient's data would reach the others' norms.
    joined: dict[str, Any] = {}
    for entry in fields(Examples):
        if entry.name != "patients":
            values = [getattr(part, entry.name) for part in parts]
            joined[entry.name] = torch.cat([*values, values[0].new_zeros(1, *values[0].shape[1:])])
    return Examples(**joined, patients=())
