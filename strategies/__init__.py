"""Aggregation rules: pure functions of arrays, and one adapter that makes them a Flower strategy."""

from __future__ import annotations

from conf.errors import ConfigError
from conf.schema import Strategy
from strategies.fedadam import FedAdam
from strategies.fedavg import FedAvg
from strategies.fedprox import FedProx
from strategies.rule import Rule

NAMES = ("fedadam", "fedavg", "fedprox")


def build(strategy: Strategy) -> Rule:
    """The rule that a configuration names.

    Raises:
        ConfigError: no rule has this name.
    """
    if strategy.name == "fedavg":
        return FedAvg(server_learning_rate=strategy.server_learning_rate)
    if strategy.name == "fedprox":
        return FedProx(server_learning_rate=strategy.server_learning_rate)
    if strategy.name == "fedadam":
        return FedAdam(
            server_learning_rate=strategy.server_learning_rate,
            beta1=strategy.beta1,
            beta2=strategy.beta2,
            tau=strategy.tau,
        )
    raise ConfigError(f"strategy.name: allowed are {', '.join(NAMES)}; {strategy.name!r} came.")
