"""The public start of a federation: whitening, basis of outputs and first weights, free of privacy cost.

For glucose all of it comes from virtual people (`twin.connectors.virtual.public_population`), for
hypoxemia from virtual people short of oxygen (`twin.prior_risk`); no hospital's data is looked at. For
tasks without a public population it is the task's fixed scales.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conf import schema
from conf.schema import Config
from twin import models, tasks
from twin.models.network import Network
from twin.prior_risk import fit_risk, public_risks
from twin.tasks.glucose import CHANGE_MG_DL, GlucoseTask
from twin.tasks.hypoxemia import HypoxemiaTask
from twin.tasks.protocol import Examples

# Added to each eigenvalue of the public covariance: directions in which virtual sensors are smoother
# than real ones would otherwise be blown up.
RIDGE = 0.3
_STEPS = 300
_BATCH = 4096


def initial_state(config: Config) -> dict[str, np.ndarray]:
    """The model that the first round starts from: parameters and buffers by name, float32 arrays.

    The same for the same task and model, whatever else is configured.
    """
    task = tuple(vars(tasks.learnt(config.task)).items())
    found = _initial_state(task, config.model.name, config.model.hidden)
    return {name: value.copy() for name, value in found.items()}


@lru_cache(maxsize=8)
def _initial_state(task: tuple[tuple[str, Any], ...], model: str, hidden: int) -> dict[str, np.ndarray]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20040101)
        built = tasks.build(schema.Task(**dict(task)))
        network = models.build(schema.Model(name=model, hidden=hidden), built)
        if isinstance(built, GlucoseTask):
            public = _public_examples(built.stride_min)
            _fit(network, public if network.reads_series else public.without_series())
        elif isinstance(built, HypoxemiaTask):
            fit_risk(network, public_risks(built))
        else:
            # The curvature of cross-entropy is at most 1/4: twice the input makes it at most that of
            # a squared error, for which steps and clipping are set.
            network.whitening_FF.mul_(2.0)
    return {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}


@lru_cache(maxsize=2)
def _public_examples(stride_min: int) -> Examples:
    from twin.connectors.virtual import public_population

    return tasks.build(schema.Task(name="glucose", stride_min=stride_min)).examples(public_population())


def _fit(network: Network, examples: Examples) -> None:
    """Whiten, choose the shapes of paths, solve for the path, then train what is left by gradient."""
    columns = len(network.task.columns)
    table = examples.table_NF.double()
    centre_F, whitening_FF = _whitening(table)
    scale_H = torch.tensor(CHANGE_MG_DL, dtype=torch.float64)
    seen = examples.observed_NH.all(dim=1)
    path_NH = ((examples.target_NH - examples.anchor_N[:, None]).double() / scale_H)[seen]
    white = ((table - centre_F) @ whitening_FF)[seen]
    weights_FH = _ridge(white, path_NH)
    shapes = network.task.latents - 2
    basis_HK = _shapes(white @ weights_FH, shapes)
    horizons = len(CHANGE_MG_DL)
    with torch.no_grad():
        network.centre_F.copy_(centre_F)
        network.whitening_FF.copy_(whitening_FF)
        network.basis_OQ.zero_()
        network.basis_OQ[:horizons, :shapes] = basis_HK.float()
        network.basis_OQ[horizons : 2 * horizons, shapes] = 1.0
        network.basis_OQ[2 * horizons :, shapes + 1] = 1.0
        network.head.weight[:shapes, :columns] = (weights_FH @ basis_HK / horizons).T.float()
        rest = (path_NH - white @ weights_FH).numpy()
        network.offset_O[horizons : 2 * horizons] = _log(-np.quantile(rest, 0.1, axis=0))
        network.offset_O[2 * horizons :] = _log(np.quantile(rest, 0.9, axis=0))
    _train(network, examples)


def _whitening(table_NF: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and symmetric whitening (ZCA) of the table; its last column, one, is left alone."""
    centre_F = table_NF.mean(0)
    centre_F[-1] = 0.0
    spread = table_NF[:, :-1] - centre_F[:-1]
    covariance = spread.T @ spread / len(spread)
    # What no virtual person has (variance zero) keeps the task's own scale.
    idle = covariance.diagonal() < 1e-9
    covariance[idle, idle] = 1.0
    values, vectors = torch.linalg.eigh(covariance)
    whitening_FF = torch.eye(table_NF.shape[1], dtype=table_NF.dtype)
    whitening_FF[:-1, :-1] = vectors @ torch.diag((values + RIDGE).rsqrt()) @ vectors.T
    return centre_F, whitening_FF


def _ridge(white_NF: Tensor, path_NH: Tensor) -> Tensor:
    gram = white_NF.T @ white_NF / len(white_NF)
    weights_FH: Tensor = torch.linalg.solve(
        gram + 1e-3 * torch.eye(len(gram), dtype=gram.dtype), white_NF.T @ path_NH / len(path_NH)
    )
    return weights_FH


def _shapes(forecast_NH: Tensor, shapes: int) -> Tensor:
    """The leading principal directions of forecast paths, columns of length sqrt(H)."""
    _, vectors = torch.linalg.eigh(forecast_NH.T @ forecast_NH)
    leading = vectors.flip(1)[:, :shapes]
    signs = torch.sign(leading.sum(0)).where(leading.sum(0) != 0, torch.ones(shapes, dtype=leading.dtype))
    shapes_HK: Tensor = leading * signs * forecast_NH.shape[1] ** 0.5
    return shapes_HK


def _log(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.log(np.maximum(values, 1e-3))).float()


def _train(network: Network, examples: Examples) -> None:
    """Some hundred steps of Adam on the task's loss over the virtual people."""
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    draws = torch.Generator().manual_seed(20100101)
    for step in range(_STEPS):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1.0 - step / _STEPS)
        batch = examples.at(torch.randint(len(examples), (_BATCH,), generator=draws))
        loss = network.task.loss(network(batch), batch).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stubs leave it untyped
        optimiser.step()
