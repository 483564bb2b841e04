"""The mean of the models of the last rounds, which is steadier than the last model under noise.

Polyak & Juditsky 1992 over the tail of the rounds. It is made of released models alone and costs
no privacy. The running sum is state of the federation, so a resumed run has the same mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from strategies.rule import Arrays


def averaged_rounds(rounds: int, fraction: float) -> int:
    """How many of the last rounds the final model averages: ceil(fraction * rounds), at least 1."""
    return max(1, math.ceil(fraction * rounds - 1e-9))


def start(model: Mapping[str, np.ndarray], trainable: Sequence[str]) -> Arrays:
    """The empty sum."""
    return {"count": np.zeros(1)} | {f"sum.{name}": np.zeros(model[name].shape) for name in trainable}


def add(total: Mapping[str, np.ndarray], model: Mapping[str, np.ndarray]) -> Arrays:
    """The sum with one more model."""
    return {
        name: array + (1.0 if name == "count" else model[name.removeprefix("sum.")].astype(np.float64))
        for name, array in total.items()
    }


def mean(total: Mapping[str, np.ndarray], model: Mapping[str, np.ndarray]) -> Arrays:
    """The mean model, float32; arrays that are not trained are those of `model`.

    Without any model in the sum it is `model` itself.
    """
    count = float(total["count"][0])
    if count == 0.0:
        return {name: array.copy() for name, array in model.items()}
    return {
        name: (total[f"sum.{name}"] / count).astype(np.float32) if f"sum.{name}" in total else array.copy()
        for name, array in model.items()
    }
