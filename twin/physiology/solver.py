"""A fixed-step solver for many people at once: the classical Runge-Kutta method of order four.

It holds no state, controls no error and knows no events: jumps (a meal, a bolus) are added to the
states between steps by the caller. What the step costs in accuracy is measured in
docs/physiology.md against an adaptive reference.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def rk4_step(rates: Callable[[Array], Array], states_SP: Array, dt_min: float) -> Array:
    """The states `dt_min` minutes later, same shape; the input is not changed.

    Args:
        rates: right-hand side, states to their change per minute.
        states_SP: any shape.
        dt_min: step, above 0.
    """
    k1 = rates(states_SP)
    k2 = rates(states_SP + 0.5 * dt_min * k1)
    k3 = rates(states_SP + 0.5 * dt_min * k2)
    k4 = rates(states_SP + dt_min * k3)
    return states_SP + dt_min / 6.0 * (k1 + 2.0 * (k2 + k3) + k4)


def advance(rates: Callable[[Array], Array], states_SP: Array, duration_min: float, dt_min: float) -> Array:
    """The states `duration_min` minutes later, in equal steps of at most `dt_min`."""
    steps = max(int(np.ceil(duration_min / dt_min - 1e-9)), 1)
    for _ in range(steps):
        states_SP = rk4_step(rates, states_SP, duration_min / steps)
    return states_SP
