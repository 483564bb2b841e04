"""What FedAdagrad, FedAdam and FedYogi share: two moments per number, and the step they make.

Reddi et al. 2021 (arXiv:2003.00295), Algorithm 2, whose three rules differ in the second moment alone:
    m_t = beta1 m_{t-1} + (1 - beta1) Delta_t
    x_{t+1} = x_t + eta m_t / (sqrt(v_t) + tau),   v_{-1} = tau^2
Deviation: Delta_t is weighted as the plan says. How the equations were checked stands in fedadam.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from strategies.rule import Applied, Arrays, moved, norm

Second = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(v_{t-1}, Delta_t squared) to v_t, of one array."""


def start(model: Mapping[str, np.ndarray], trainable: Sequence[str], tau: float) -> Arrays:
    """Both moments of each trainable array before the first round: 0 and tau squared, float64."""
    first = {f"m.{name}": np.zeros(model[name].shape) for name in trainable}
    second = {f"v.{name}": np.full(model[name].shape, tau**2) for name in trainable}
    return first | second


def apply(
    state: Mapping[str, np.ndarray],
    model: Mapping[str, np.ndarray],
    mean: Mapping[str, np.ndarray],
    *,
    second: Second,
    rate: float,
    beta1: float,
    tau: float,
) -> Applied:
    """The next moments and model.

    Args:
        state: what `start` or the last `apply` made.
        model: the model from which all updates started.
        mean: the weighted mean update, Delta_t.
        second: what tells the rules apart.
        rate: eta, above 0.
        beta1: share of the old first moment, in [0, 1).
        tau: least size of an update that counts as large, above 0.
    """
    following: Arrays = {}
    step: Arrays = {}
    for name, delta in mean.items():
        m = beta1 * state[f"m.{name}"] + (1.0 - beta1) * delta
        v = second(state[f"v.{name}"], np.square(delta))
        following[f"m.{name}"], following[f"v.{name}"] = m, v
        step[name] = rate * m / (np.sqrt(v) + tau)
    return Applied(following, moved(model, step), {"step_norm": norm(step)})
