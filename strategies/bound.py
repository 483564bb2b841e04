"""How long an update can be that was made as a plan says."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from conf.schema import Strategy
from strategies import loss_release
from strategies.errors import StrategyError
from trust.packed import Packed
from trust.plan import Plan, Terms

NONFINITE, TOO_LONG = "nonfinite", "too_long"
MOST_GROWTH: Final = 10
"""Times as many patients as it declared may a site have before its updates are refused as too long."""


def norm_bound(
    *, size: int, patients: int, declared: int, terms: Terms, strategy: Strategy, correction: float = 0.0
) -> float | None:
    """What the L2 norm of an update exceeds with a probability below 1e-20 if it was made as agreed.

    Steps add up: each is at most clip_norm per patient plus the noise. The norm of k standard normal
    numbers exceeds sqrt(k) + 10 with a probability below 2e-22 (Gaussian concentration of a
    1-Lipschitz function); the bound has 1 % of room for rounding. None where no bound follows:
    without privacy, or with a proximal pull that overshoots.

    Args:
        size: numbers in an update. patients: of the site that train. declared: in the plan.
        correction: greatest norm of what the coordinator adds to each gradient (`correction_bound`).
    """
    mu = strategy.proximal_mu if strategy.name == "fedprox" else 0.0
    if not terms.private or mu * strategy.learning_rate > 1.0:
        return None
    noise = terms.clip_norm * _noise(size, terms) / (terms.sampling_rate * declared)
    wider = (loss_release.widening(strategy) - 1.0) * noise  # in the one step that releases a loss
    per_step = _per_step(size, patients, declared, terms) + correction
    return 1.01 * strategy.learning_rate * (strategy.local_steps * per_step + wider)


def fault_of(update: Packed, most: float | None) -> str:
    """Why arrays of float32 are no update: NONFINITE, or TOO_LONG for the bound; empty if they are one.

    Raises:
        StrategyError: they are not all float32.
    """
    flat, rough = update.flat, update.squares
    if flat is None or rough is None:
        raise StrategyError("expected float32 throughout in an update")
    if math.isfinite(rough) and (most is None or rough <= 0.9 * most * most):
        return ""
    if not bool(np.isfinite(flat).all()):
        return NONFINITE
    length = math.sqrt(float(np.square(flat, dtype=np.float64).sum()))
    return TOO_LONG if most is not None and length > most else ""


def correction_bound(size: int, plan: Plan) -> float:
    """What the L2 norm of a site's correction under SCAFFOLD does not exceed if all sites keep to the plan.

    c_i and c are means of gradients that were made as agreed. 0 for other strategies, and where no
    bound follows, without privacy.
    """
    if plan.strategy.name != "scaffold" or not plan.terms.private:
        return 0.0
    longest = (
        _per_step(size, MOST_GROWTH * entry.patients, entry.patients, plan.terms)
        for entry in plan.participants
    )
    return 2.0 * max(longest, default=0.0)


def _per_step(size: int, patients: int, declared: int, terms: Terms) -> float:
    return terms.clip_norm * (patients + _noise(size, terms)) / (terms.sampling_rate * declared)


def _noise(size: int, terms: Terms) -> float:
    return terms.noise_multiplier * (math.sqrt(size) + 10.0)
