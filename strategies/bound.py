"""How long an update can be that was made as a plan says."""

from __future__ import annotations

import math

from conf.schema import Strategy
from trust.plan import Terms


def norm_bound(*, size: int, patients: int, declared: int, terms: Terms, strategy: Strategy) -> float | None:
    """What the L2 norm of an update exceeds with a probability below 1e-20 if it was made as agreed.

    Steps add up: each is at most clip_norm per patient plus the noise. The norm of k standard normal
    numbers exceeds sqrt(k) + 10 with a probability below 2e-22 (Gaussian concentration of a
    1-Lipschitz function); the bound has 1 % of room for rounding. None where no bound follows:
    without privacy, or with a proximal pull that overshoots.

    Args:
        size: numbers in an update. patients: of the site that train. declared: in the plan.
    """
    mu = strategy.proximal_mu if strategy.name == "fedprox" else 0.0
    if not terms.private or mu * strategy.learning_rate > 1.0:
        return None
    noise = terms.noise_multiplier * (math.sqrt(size) + 10.0)
    per_step = terms.clip_norm * (patients + noise) / (terms.sampling_rate * declared)
    return 1.01 * strategy.local_steps * strategy.learning_rate * per_step
