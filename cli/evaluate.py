"""`twinward evaluate`: how well a trained model does on data that it has never met."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cli.simulate import at_directory, show, watched
from cli.words import OVERRIDE_DOC, parser, read, settings
from conf.describe import keys
from conf.errors import ConfigError
from conf.validation import said, value_of

DOC = "Judge a trained model on data that it has never met: as it is, and adapted to site and patient."
EXAMPLES = """\
examples:
  twinward evaluate runs/strict data=folder data.path=new_hospital
  twinward evaluate runs/strict/model.safetensors data=virtual seed=9

MODEL is a run's folder or its model.safetensors. The task and the model are those of its run.
"""
KEPT = ("task", "model")  # what the trained arrays only fit together with


def run(name: str, words: list[str]) -> int:
    """The command; returns its exit code."""
    args = read(_parser(name), words)
    model = model_file(args.model)
    from conf.load import load
    from conf.naming import digest
    from simulate.evaluate import evaluate

    config = load([*kept_settings(model, args.settings), *args.settings])
    directory = Path(config.run.dir or Path("runs") / f"evaluate-{model.parent.name}-{digest(config)}")
    config = at_directory(config, directory)
    show(
        watched(lambda progress: evaluate(model, config, progress=progress), directory),
        config.task.unit,
        as_json=args.json,
    )
    return 0


def model_file(path: Path) -> Path:
    """The model that a word names: a file, or the one in a run's folder.

    Raises:
        ConfigError: there is none.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"{file} does not exist; MODEL is a run's folder or its model.safetensors")
    return file


def kept_settings(model: Path, given: Sequence[str]) -> list[str]:
    """The words that repeat the task and model of the run which trained the model.

    Nothing is repeated of a group that the user chooses anew, nor a key that the user gives; nor
    if the file lies alone, without the config.yaml of its run.
    """
    from conf.load import from_yaml

    written = model.parent / "config.yaml"
    if not written.is_file():
        return []
    trained = from_yaml(written.read_text(encoding="utf-8"))
    named = {word.partition("=")[0] for word in given}
    words = []
    for group in (group for group in KEPT if group not in named):
        option = getattr(trained, group).name
        words.append(f"{group}={option}")
        own = [key for key in keys().values() if key.group == group and key.name not in named]
        words += [said(k.name, value_of(trained, k.name)) for k in own if not k.only or option in k.only]
    return words


def _parser(name: str) -> argparse.ArgumentParser:
    words = parser(name, DOC, epilog=f"{EXAMPLES}\n{settings()}")
    words.add_argument("model", type=Path, metavar="MODEL", help="a run's folder or its model.safetensors")
    words.add_argument("settings", nargs="*", metavar="key=value", help=OVERRIDE_DOC)
    words.add_argument("--json", action="store_true", help="print the summary instead of a table")
    return words
