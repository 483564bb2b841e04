"""The folder of a run: whose configuration and data it is, so that nothing is mixed or shown twice."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch

from client.site import forget_data
from conf.errors import ConfigError
from conf.load import from_yaml, to_yaml
from conf.schema import Config
from conf.validation import said
from simulate.files import write_atomically


def claim(directory: Path, config: Config) -> None:
    """Writes into a new folder which configuration and data it is for, or checks an old one.

    Raises:
        ConfigError: the folder holds a run of another configuration, or the data changed since.
    """
    written, data = directory / "config.yaml", directory / "data.json"
    fingerprint = data_fingerprint(config)
    _forget_changed(config, fingerprint)
    if not written.exists():
        write_atomically(data, json.dumps(fingerprint, indent=1).encode())
        write_atomically(written, to_yaml(config).encode())
        return
    there = configuration_of(directory)
    if _comparable(there) != _comparable(config):
        raise ConfigError(
            f"{directory} holds a run of another configuration: {_differences(there, config)}. "
            "Choose another run.dir, or continue that one with --resume."
        )
    if read_json(data) != fingerprint:
        raise ConfigError(
            f"The files in {config.data.path} changed since the run in {directory} began, so its figures "
            "are not theirs. Choose another run.dir, or remove that folder."
        )


def configuration_of(directory: Path) -> Config:
    """The configuration with which the run in this folder was begun.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    return from_yaml(_text(directory / "config.yaml"))


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Within it, no other process works in this folder; a process that dies lets go of it.

    Raises:
        ConfigError: another process is at work there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"Another process is at work in {directory}. Wait for it, or choose another run.dir."
            ) from None
        _HELD.append(file)
        try:
            yield
        finally:
            _HELD.remove(file)


_HELD: Final[list[BinaryIO]] = []
"""Locks of this process."""


def _let_go() -> None:
    """In a forked process, which would hold the folder for as long as it outlives the one that took it."""
    for file in _HELD:
        file.close()
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go)


def check_device(device: str) -> None:
    """Refuses a device that this machine does not have.

    Raises:
        ConfigError: it is cuda, and torch finds none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "engine.device=cuda: torch finds no CUDA device here; use engine.device=auto or cpu"
        )


def read_json(path: Path) -> Any:
    """The content of a JSON file of a run.

    Raises:
        ConfigError: it is not there, or damaged.
    """
    try:
        return json.loads(_text(path))
    except ValueError:
        raise _damaged(path) from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise _damaged(path) from None


def _damaged(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} is gone or damaged. Remove {path.parent} and run again, or choose another run.dir."
    )


# What the files of a federation folder were when this process last began a run on them.
_SEEN: dict[str, dict[str, str]] = {}


def _forget_changed(config: Config, fingerprint: dict[str, str]) -> None:
    """A notebook lives long: data that was read before it changed must not pass for what is there now."""
    path = config.data.path
    if path is not None and _SEEN.get(path) != fingerprint:
        forget_data()
        _SEEN[path] = fingerprint


def _differences(there: Config, config: Config) -> str:
    """The keys in which two configurations differ, with both values; of many the first four."""
    old, new = _flat(asdict(_comparable(there))), _flat(asdict(_comparable(config)))
    told = [f"{said(key, old[key])} there, {said(key, new[key])} here" for key in old if old[key] != new[key]]
    more = f"; and {len(told) - 4} more" if len(told) > 4 else ""
    return "; ".join(told[:4]) + more


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in section.items():
        key = f"{prefix}{name}".removesuffix(".name")
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {key: value}
    return found


def _comparable(config: Config) -> Config:
    """What figures depend on: everything but the section `run`, where the data lies, and which cluster."""
    elsewhere = replace(config.data, path=None if config.data.path is None else "")
    engine = replace(config.engine, ray_address=None, num_cpus=1.0, num_gpus=0.0)
    return replace(config, run=replace(config.run, dir=None, forecasts=False), data=elsewhere, engine=engine)


def data_fingerprint(config: Config) -> dict[str, str]:
    """SHA-256 of each file of a federation folder, by its path in there; empty for virtual people."""
    if config.data.path is None:
        return {}
    root = Path(config.data.path)
    found = {}
    for path in sorted(root.glob("*/*")):
        if path.is_file() and not path.name.startswith("."):
            with path.open("rb") as file:
                found[str(path.relative_to(root))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
