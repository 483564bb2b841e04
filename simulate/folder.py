"""The folder of a run: whose configuration and data it is, so that nothing is mixed or shown twice."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from conf.errors import ConfigError
from conf.load import from_yaml, to_yaml
from conf.schema import Config
from simulate.files import write_atomically


def claim(directory: Path, config: Config) -> None:
    """Writes into a new folder which configuration and data it is for, or checks an old one.

    Raises:
        ConfigError: the folder holds a run of another configuration, or the data changed since.
    """
    written, data = directory / "config.yaml", directory / "data.json"
    fingerprint = _fingerprint(config)
    if not written.exists():
        write_atomically(data, json.dumps(fingerprint, indent=1).encode())
        write_atomically(written, to_yaml(config).encode())
        return
    there = from_yaml(written.read_text(encoding="utf-8"))
    if _comparable(there) != _comparable(config):
        raise ConfigError(
            f"{directory} holds a run of another configuration (its config.yaml differs). "
            "Choose another run.dir, or continue that one with --resume."
        )
    if data.exists() and json.loads(data.read_text(encoding="utf-8")) != fingerprint:
        raise ConfigError(
            f"The files in {config.data.path} changed since the run in {directory} began, so its figures "
            "are not theirs. Choose another run.dir, or remove that folder."
        )


def _comparable(config: Config) -> Config:
    """What figures depend on: everything but the section `run`, and where the data lies."""
    elsewhere = replace(config.data, path=None if config.data.path is None else "")
    return replace(config, run=replace(config.run, dir=None, forecasts=False), data=elsewhere)


def _fingerprint(config: Config) -> dict[str, str]:
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
