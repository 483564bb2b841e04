"""A trained model on data that it has never met: as it is, and adapted to sites and patients.

Nothing is trained together and nothing leaves a site: `global` is the model as it came, `site`
adapts it on a fold's training patients, `personal` on the earlier half of the judged patient's
record. Beside them stand the baselines, and `local`: each site alone from the public start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from conf.errors import ConfigError
from conf.schema import Config
from simulate.federation import SiteResult
from simulate.files import write_atomically
from simulate.fold import judge_fold, train_references
from simulate.folder import check_device, claim, held, read_json
from simulate.outcome import Kept, Outcome, judge_all, write_outcome
from simulate.progress import Progress, SilentProgress
from simulate.run import RunResult, splits_of
from simulate.steps import Steps
from simulate.wards import Ward, join_models, open_wards
from trust.digest import Arrays, arrays_from_bytes, arrays_sha256
from twin import models, tasks
from twin.prior import initial_state
from twin.tasks.protocol import Task


def evaluate(model_path: Path, config: Config, *, progress: Progress | None = None) -> RunResult:
    """Judges the model in a safetensors file on the sites of a configuration.

    Args:
        model_path: of a run's model.safetensors.
        config: task and model must be those that the file was trained with; `run.dir` is where
            the results go.
        progress: is told how far the work is.

    Raises:
        ConfigError: no `run.dir`, the file is no model of this task and network, or the folder
            holds another evaluation.
    """
    if config.run.dir is None:
        raise ConfigError("run.dir: an evaluation needs a folder for its results; give run.dir=FOLDER")
    directory = Path(config.run.dir)
    open_terms = replace(config.privacy, name="none", epsilon=None, noise_multiplier=None)
    config = replace(config, privacy=open_terms)
    task = tasks.build(config.task)
    state = read_model(model_path, config, task)
    check_device(config.engine.device)
    summary = directory / "summary.json"
    if summary.exists():
        _claim(directory, config, arrays_sha256(state))
    else:
        with held(directory):
            _claim(directory, config, arrays_sha256(state))
            steps = Steps(progress=progress or SilentProgress())
            _evaluate(config, task, state, model_path, directory, steps)
    return RunResult(directory=directory, summary=read_json(summary))


def read_model(path: Path, config: Config, task: Task) -> Arrays:
    """The arrays of a model file, checked against the network that they are for.

    Raises:
        ConfigError: the file is no safetensors file, or its arrays have other names, shapes or
            types than the network's, or are not finite.
    """
    try:
        state = arrays_from_bytes(path.read_bytes())
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read as a safetensors file: {type(error).__name__}") from None
    network = models.build(config.model, task)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(np.shape(value)) for name, value in state.items()}
    if found != expected:
        differ = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise ConfigError(
            f"{path} does not fit task={config.task.name} model={config.model.name} "
            f"model.hidden={config.model.hidden}: {', '.join(differ[:5])} differ in name or shape. "
            "Give the task and model that it was trained with."
        )
    if not all(value.dtype == np.float32 and np.isfinite(value).all() for value in state.values()):
        raise ConfigError(f"{path} holds numbers that are not finite, or not float32; it is no usable model")
    return state


def _claim(directory: Path, config: Config, sha256: str) -> None:
    """As for a run; and a folder is for one model alone."""
    claim(directory, config)
    written = directory / "model.sha256"
    if not written.exists():
        write_atomically(written, f"{sha256}\n".encode())
    elif written.read_text(encoding="utf-8").strip() != sha256:
        raise ConfigError(f"{directory} holds the evaluation of another model; choose another run.dir")


def _evaluate(
    config: Config, task: Task, state: Arrays, model_path: Path, directory: Path, steps: Steps
) -> None:
    with steps.step("read data"):
        wards = open_wards(config, task)
    with steps.step("public prior"):
        initial = initial_state(config)
    splits = splits_of(config)
    parts = []
    with steps.step("forecasts", len(splits)):
        for split in splits:
            states = train_references(config, task, wards, split, initial, state, pooled=False)
            parts.append(judge_fold(config, task, wards, split, states))
            steps.part()
    with steps.step("intervals"):
        forecasts = join_models(task, parts, splits)
        judged = judge_all(config, task, forecasts)
    outcome = Outcome(
        config=config,
        task=task,
        kept=Kept(
            model=state,
            sha256=arrays_sha256(state),
            rounds_planned=0,
            rounds_committed=0,
            sites=_sites(config, wards),
        ),
        wards=wards,
        splits=splits,
        forecasts=forecasts,
        judged=judged,
        rounds=(),
        curves=(),
        noiseless=None,
        notes=(
            f"The model of {model_path} was trained elsewhere, on other patients.",
            "Nothing was trained together here and nothing left a site.",
        ),
    )
    write_outcome(outcome, directory, steps)


def _sites(config: Config, wards: Mapping[str, Ward]) -> dict[str, SiteResult]:
    return {
        name: SiteResult(
            patients=len(torch.unique(ward.examples.patient_N)),
            declared=0,
            train_windows=0,
            epsilon=None,
            delta=config.privacy.delta,
            refused=None,
        )
        for name, ward in wards.items()
    }
