"""Steps whose gradient is written out are those that autograd takes, and keep nothing of what was before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from client.anatomy import chain_of
from client.chained import Bench
from client.trainer import trainable
from conf import schema
from twin import models, tasks
from twin.models.network import Network
from twin.tasks.glucose import GlucoseTask
from twin.tasks.protocol import Examples, Task

RATE = 0.002
# (task, model, hidden units)
CHAINS = [
    (task, model, hidden)
    for task in ("heart", "hypoxemia", "glucose")
    for model, hidden in (("linear", 1), ("mlp", 1), ("mlp", 5), ("mlp", 128))
]


def _network(task: str, model: str, hidden: int) -> Network:
    """One in the middle of its training, with whitening and a basis that are not diagonal, in float64."""
    draws = torch.Generator().manual_seed(hidden)
    torch.manual_seed(hidden)
    words = {} if model == "linear" else {"hidden": hidden}
    network = models.build(schema.Model(name=model, **words), tasks.build(schema.Task(name=task)))
    with torch.no_grad():
        for value in network.state_dict().values():
            value.add_(torch.randn(value.shape, generator=draws), alpha=0.3)
    return network.double()


def _windows(task: Task, count: int, seed: int) -> Examples:
    """Inputs beyond the clamp among them, targets that were not observed, windows without any."""
    draws = torch.Generator().manual_seed(seed)
    horizons = len(task.horizons_min)
    observed_NH = torch.rand(count, horizons, generator=draws) < 0.7
    target_NH = torch.bernoulli(torch.full((count, horizons), 0.4), generator=draws)
    if task.name == "glucose":
        target_NH = 120 + 60 * torch.randn(count, horizons, generator=draws)
    return Examples(
        series_NTC=torch.zeros(count, 0, 0),
        static_NS=torch.zeros(count, 0),
        table_NF=3 * torch.randn(count, len(task.columns), generator=draws).double(),
        anchor_N=120 + 30 * torch.randn(count, generator=draws).double(),
        target_NH=(target_NH * observed_NH).double(),
        observed_NH=observed_NH,
        patient_N=torch.zeros(count, dtype=torch.int64),
        time_us_N=torch.zeros(count, dtype=torch.int64),
        patients=("p",),
    )


def _bench(network: Network, sites: int) -> Bench:
    chain = chain_of(network)
    assert chain is not None
    return Bench(*chain, trainable(network), sites)


def _start(network: Network) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trainable(network).items()}


def _copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in weights.items()}


def _descend(bench: Bench, part: Examples, weight_N: Tensor) -> None:
    bench.descend(replace(part, table_NF=bench.model.whitened(part)), weight_N, RATE)


def _by_autograd(
    network: Network, weights: Mapping[str, Tensor], part: Examples, weight_N: Tensor
) -> dict[str, Tensor]:
    """One site's weights after a step of the network itself, with its task's own loss."""
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    outputs_NO = torch.func.functional_call(network, leaves, (part,))
    total = (network.task.loss(outputs_NO, part) * weight_N).sum()
    found = torch.autograd.grad(total, list(leaves.values()))
    each = zip(weights.items(), found, strict=True)
    return {name: value - RATE * gradient for (name, value), gradient in each}


@pytest.mark.parametrize("sites", [1, 2, 9])
@pytest.mark.parametrize(("task", "model", "hidden"), CHAINS)
def test_steps_are_those_of_autograd_however_many_rows_they_have(
    task: str, model: str, hidden: int, sites: int
) -> None:
    network = _network(task, model, hidden)
    bench, start = _bench(network, sites), _start(network)
    weights = bench.begin(start)
    for number, rows in enumerate((3, 1, 8, 2, 8, 3)):
        part, before = _windows(network.task, sites * rows, number), _copied(weights)
        weight_N = torch.rand(sites * rows, generator=torch.Generator().manual_seed(number)).double()
        weight_N[::3] = 0.0  # padding
        if sites > 1 and number % 2:
            weight_N[:rows] = 0.0  # a site of which nobody takes part
        _descend(bench, part, weight_N)
        for site in range(sites):
            own = part.at(torch.arange(site * rows, (site + 1) * rows))
            begun = {name: value[site] for name, value in before.items()}
            expected = _by_autograd(network, begun, own, weight_N.view(sites, rows)[site])
            for name, value in weights.items():
                torch.testing.assert_close(value[site], expected[name], rtol=1e-9, atol=1e-11)
    assert all((value != start[name]).all() for name, value in weights.items())


def test_nothing_of_a_round_that_overflowed_is_in_the_next_ones() -> None:
    network = _network("heart", "mlp", 5)
    used, start = _bench(network, 3), _start(network)
    used.begin(start)
    for rows in (7, 4):
        part = _windows(network.task, 3 * rows, rows)
        broken = replace(part, table_NF=torch.full_like(part.table_NF, float("nan")))
        _descend(used, broken, torch.ones(3 * rows).double())
    for rows in (4, 2, 7, 6, 9):
        part, weights = _windows(network.task, 3 * rows, rows), used.begin(start)
        _descend(used, part, torch.zeros(3 * rows).double())
        assert all(torch.equal(value, start[name].expand_as(value)) for name, value in weights.items())
        fresh = _bench(network, 3)
        expected = fresh.begin(start)
        for bench in (used, fresh):
            _descend(bench, part, torch.ones(3 * rows).double())
        assert all(torch.equal(value, expected[name]) for name, value in weights.items())


def test_a_site_that_overflows_leaves_its_neighbours_what_they_would_be_without_it() -> None:
    network = _network("glucose", "mlp", 5)
    start, part = _start(network), _windows(_network("glucose", "mlp", 5).task, 12, 0)
    table_NF = part.table_NF.clone()
    table_NF[4:8] = float("inf")
    found = []
    for own in (part, replace(part, table_NF=table_NF)):
        bench = _bench(network, 3)
        weights = bench.begin(start)
        _descend(bench, own, torch.ones(12).double())
        found.append(_copied(weights))
    for name, value in found[0].items():
        assert torch.equal(found[1][name][[0, 2]], value[[0, 2]])
        assert not found[1][name][1].isfinite().all()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Twice(GlucoseTask):
    """A task that somebody plugged in: another loss, whose gradient nobody wrote out."""

    def loss(self, outputs_NO: Tensor, examples: Examples) -> Tensor:
        return 2 * GlucoseTask.loss(self, outputs_NO, examples)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole(_Twice):
    """It writes out both."""

    def loss(self, outputs_NO: Tensor, examples: Examples) -> Tensor:
        return 3 * GlucoseTask.loss(self, outputs_NO, examples)

    def loss_gradient(self, outputs_NO: Tensor, examples: Examples) -> Tensor:
        return 3 * GlucoseTask.loss_gradient(self, outputs_NO, examples)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Renamed(GlucoseTask):
    name: str = "mine"


class _ByProtocol(Task):
    """It takes the protocol for its base, and with it a gradient that is none."""

    def __init__(self) -> None:
        self.own = tasks.build(schema.Task(name="heart"))

    def loss(self, outputs_NO: Tensor, examples: Examples) -> Tensor:
        return self.own.loss(outputs_NO, examples)


class _Around:
    """It stands before another task, and passes on what it does not have."""

    def __init__(self) -> None:
        self.own = tasks.build(schema.Task(name="heart"))

    def __getattr__(self, name: str) -> object:
        return getattr(self.own, name)

    def loss(self, outputs_NO: Tensor, examples: Examples) -> Tensor:
        return 2 * self.own.loss(outputs_NO, examples)


@pytest.mark.parametrize(
    ("task", "written"),
    [(_Twice, False), (_Whole, True), (_Renamed, True), (_ByProtocol, False), (_Around, False)],
)
def test_a_gradient_that_was_written_for_another_loss_is_not_taken(task: type, written: bool) -> None:
    network = _network("glucose", "linear", 1)
    assert chain_of(network) is not None
    network.task = object.__new__(task)
    assert (chain_of(network) is not None) == written
