"""The same network trained in one place without noise: what a federation is held against.

It takes the site's own trainer (same windows per patient, same start, same mean of the last rounds),
so that what differs is where the data lies and what is released. Steps cost no privacy here, so it
takes more of them: a reference that had not converged would flatter the federation.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from client.trainer import train, trainable
from conf.schema import Config
from privacy.noise import NoiseStream, site_secret_from_seed
from strategies.average import add, averaged_rounds, mean, start
from trust.plan import Terms
from twin import models
from twin.tasks.protocol import Examples, Task

ROUNDS_FACTOR = 5


def train_centrally(
    config: Config, task: Task, initial: dict[str, np.ndarray], examples: Examples, name: str
) -> dict[str, np.ndarray]:
    """The model after `ROUNDS_FACTOR` times the rounds on these windows, every patient counted alike.

    Args:
        name: of the data ("pooled", a site), from which the choice of windows follows.
    """
    if len(examples) == 0:
        return initial
    rounds = ROUNDS_FACTOR * config.rounds
    network = models.build(config.model, task)
    if not network.reads_series:
        examples = examples.without_series()
    terms = _open_terms(config, rounds * config.strategy.local_steps)
    strategy = replace(config.strategy, name="fedavg", proximal_mu=0.0)
    secret = site_secret_from_seed(config.seed, f"central {name}")
    state, total = initial, start(initial, list(trainable(network)))
    last = averaged_rounds(rounds, config.strategy.average_last)
    for number in range(1, rounds + 1):
        update = train(
            model=network,
            state=state,
            examples=examples,
            task=task,
            terms=terms,
            strategy=strategy,
            declared=len(torch.unique(examples.patient_N)),
            stream=NoiseStream(secret, f"round {number}".encode()),
        )
        state = state | {key: state[key] + value for key, value in update.items()}
        if number > rounds - last:
            total = add(total, state)
    return mean(total, state)


def _open_terms(config: Config, steps: int) -> Terms:
    """Every patient in every step, neither clipped nor noised; as many windows of each as a site takes."""
    return Terms(
        private=False,
        noise_multiplier=0.0,
        clip_norm=config.privacy.clip_norm,
        sampling_rate=1.0,
        windows_per_patient=config.privacy.windows_per_patient,
        steps=steps,
        epsilon=None,
        delta=config.privacy.delta,
    )
