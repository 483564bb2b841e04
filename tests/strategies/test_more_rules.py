"""Momentum, adaptive and robust rules against oracles that share no code, and the laws they promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import strategies
from conf.schema import Strategy
from strategies.columns import reduced
from strategies.rule import Arrays, Rule

RATE, TAU = 0.3, 1e-2


def _path(rule: Rule, deltas: list[np.ndarray]) -> list[np.ndarray]:
    """The models after each of these mean updates, from zero."""
    model: Arrays = {"weight": np.zeros(deltas[0].shape, np.float32)}
    state, models = rule.init(model, ["weight"]), []
    for delta in deltas:
        applied = rule.apply(state, model, [{"weight": delta}], [2.0])
        state, model = applied.state, applied.model
        models.append(model["weight"])
    return models


def _deltas(rounds: int) -> list[np.ndarray]:
    draws = np.random.default_rng(5)
    return [draws.normal(size=6).astype(np.float32) for _ in range(rounds)]


@pytest.mark.parametrize(
    ("strategy", "optimiser", "settings"),
    [
        (Strategy(name="fedavgm", beta1=0.8, server_learning_rate=RATE), torch.optim.SGD, {"momentum": 0.8}),
        (
            Strategy(name="fedadagrad", beta1=0.0, tau=TAU, server_learning_rate=RATE),
            torch.optim.Adagrad,
            {"initial_accumulator_value": TAU**2, "eps": TAU},
        ),
    ],
    ids=["fedavgm", "fedadagrad"],
)
def test_a_rule_is_torchs_optimiser_over_minus_the_mean_update(
    strategy: Strategy, optimiser: Any, settings: dict[str, float]
) -> None:
    parameter = torch.nn.Parameter(torch.zeros(6, dtype=torch.float64))
    torchs = optimiser([parameter], lr=RATE, **settings)
    deltas = _deltas(12)
    for delta, model in zip(deltas, _path(strategies.build(strategy), deltas), strict=True):
        parameter.grad = -torch.from_numpy(delta.astype(np.float64))
        torchs.step()
        np.testing.assert_allclose(model, parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["fedadagrad", "fedyogi"])
def test_an_adaptive_rule_follows_the_algorithm_written_out_for_one_number(name: str) -> None:
    beta1, beta2 = 0.9, 0.95
    rule = strategies.build(Strategy(name=name, beta1=beta1, beta2=beta2, tau=TAU, server_learning_rate=RATE))
    numbers = [float(np.float32(number)) for number in (0.5, -1.0, 0.25, 0.0, 2.0, 0.01, 0.01)]
    x, m, v = 0.0, 0.0, TAU**2
    for number, model in zip(
        numbers, _path(rule, [np.full(1, number, np.float32) for number in numbers]), strict=True
    ):
        m = beta1 * m + (1 - beta1) * number
        if name == "fedadagrad":
            v += number**2
        elif number**2 > v:
            v += (1 - beta2) * number**2
        elif number**2 < v:
            v -= (1 - beta2) * number**2
        x += RATE * m / (v**0.5 + TAU)
        assert model[0] == pytest.approx(x, rel=1e-5)


def test_yogi_forgets_great_updates_more_slowly_than_adam() -> None:
    deltas = [np.full(1, size, np.float32) for size in (5.0, *[0.1] * 20)]
    moved = {}
    for name in ("fedadam", "fedyogi"):
        rule = strategies.build(Strategy(name=name, beta1=0.0, beta2=0.5, tau=TAU, server_learning_rate=RATE))
        models = _path(rule, deltas)
        moved[name] = float(models[-1][0] - models[0][0])
    assert 0 < moved["fedyogi"] < 0.5 * moved["fedadam"]


def _sites(sites: int, seed: int = 0) -> list[Arrays]:
    draws = np.random.default_rng(seed)
    return [
        {"bias": draws.normal(size=3).astype(np.float32), "weight": draws.normal(size=(5, 4)).astype("f4")}
        for _ in range(sites)
    ]


MODEL = {"bias": np.zeros(3, np.float32), "weight": np.zeros((5, 4), np.float32)}


@pytest.mark.parametrize("sites", [1, 4, 7, 10])
@pytest.mark.parametrize("trim", [0.0, 0.25, 0.3, 0.49])
def test_the_trimmed_mean_is_scipys(sites: int, trim: float) -> None:
    updates = _sites(sites)
    after = strategies.build(Strategy(name="trimmed_mean", trim=trim)).apply(
        {}, MODEL, updates, [1.0] * sites
    )
    for name in MODEL:
        wanted = stats.trim_mean(np.stack([update[name] for update in updates]).astype(float), trim, axis=0)
        np.testing.assert_allclose(after.model[name], wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("sites", [1, 4, 7])
def test_the_median_is_torchs_quantile_of_one_half(sites: int) -> None:
    updates = _sites(sites)
    after = strategies.build(Strategy(name="median")).apply({}, MODEL, updates, [1.0] * sites).model
    for name in MODEL:
        wanted = torch.from_numpy(np.stack([update[name] for update in updates])).quantile(0.5, dim=0)
        np.testing.assert_allclose(after[name], wanted.numpy(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("name", "liars"), [("median", 4), ("trimmed_mean", 2)])
def test_liars_below_the_breakdown_point_move_no_number_beyond_the_honest_sites(
    name: str, liars: int
) -> None:
    honest = _sites(9 - liars)
    lies = [{key: np.full(array.shape, 1e30, np.float32) for key, array in MODEL.items()}] * liars
    rule = strategies.build(Strategy(name=name, trim=0.25))
    after = rule.apply({}, MODEL, [*lies, *honest], [1e6] * liars + [1.0] * len(honest)).model
    for key in MODEL:
        values = np.stack([update[key] for update in honest])
        assert np.all((values.min(axis=0) <= after[key]) & (after[key] <= values.max(axis=0)))


def test_columns_are_the_same_in_blocks_of_any_width() -> None:
    updates = _sites(5)
    whole = reduced(updates, [1.0] * 5, lambda values_SB: np.median(values_SB, axis=0))
    for numbers in (1, 15, 35, 10_000):
        parts = reduced(updates, [1.0] * 5, lambda values_SB: np.median(values_SB, axis=0), numbers)
        for name in MODEL:
            np.testing.assert_array_equal(parts[name], whole[name])
