"""`twinward privacy plan`: what a schedule costs and who can be heard, before anything is spent."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cli.words import OVERRIDE_DOC, parser, read, settings
from conf.errors import ConfigError
from conf.validation import Fault, refuse

if TYPE_CHECKING:
    from conf.schema import Config

DOC = (
    "Say what a training schedule costs, how such plans add up, and whether n patients stand above the noise."
)
EXAMPLES = """\
examples:
  twinward privacy plan
  twinward privacy plan privacy.epsilon=2 rounds=40 patients=9,57,208
  twinward privacy plan privacy.noise_multiplier=3 privacy.delta=1e-5 patients=100

patients=N,N,... are numbers of training patients at a site, one answer each.
"""
DEFAULT_PATIENTS = (10, 30, 100, 300)


def run(name: str, words: list[str]) -> int:
    """The command; returns its exit code."""
    args = read(_parser(name), words)
    patients, others = split_patients(args.settings)
    from conf.load import load

    config = load(others)
    if config.privacy.name == "none":
        raise ConfigError("privacy=none costs nothing and protects nobody; there is nothing to plan")
    from privacy.planner import plan

    report = plan(
        patients=patients,
        epsilon=config.privacy.epsilon,
        delta=config.privacy.delta,
        noise_multiplier=config.privacy.noise_multiplier,
        sampling_rate=config.privacy.sampling_rate,
        steps=config.rounds * config.strategy.local_steps,
        clip_norm=config.privacy.clip_norm,
        parameters=trainable_parameters(config),
        minimum_patients=config.privacy.minimum_patients,
    )
    print(json.dumps(report.to_dict(), indent=2, allow_nan=False) if args.json else report)
    return 0


def split_patients(words: Sequence[str]) -> tuple[tuple[int, ...], list[str]]:
    """The numbers that `patients=` lists, or some usual ones, and all other words.

    Raises:
        ConfigError: they are no whole numbers from 1.
    """
    mine = [word for word in words if word.startswith("patients=")]
    others = [word for word in words if word not in mine]
    if not mine:
        return DEFAULT_PATIENTS, others
    numbers = [n for word in mine for n in word.removeprefix("patients=").strip("[]").split(",")]
    expected = "expected whole numbers from 1 with commas between them, patients=9,57"
    refuse(
        Fault(said=f"patients={n}", expected=expected)
        for n in numbers
        if not n.strip().isdecimal() or int(n) < 1
    )
    return tuple(int(n) for n in numbers), others


def trainable_parameters(config: Config) -> int:
    """How many numbers of the configured model get noise."""
    from twin import models, tasks

    network = models.build(config.model, tasks.build(config.task))
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def _parser(name: str) -> argparse.ArgumentParser:
    words = parser(name, DOC, epilog=f"{EXAMPLES}\n{settings()}")
    words.add_argument("settings", nargs="*", metavar="key=value", help=f"{OVERRIDE_DOC}, or patients=N,N")
    words.add_argument("--json", action="store_true", help="print the plan as JSON")
    return words
