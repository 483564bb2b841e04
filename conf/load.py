"""The only door to a configuration: composed by Hydra, checked whole, returned as dataclasses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from conf.describe import FOLDER, keys
from conf.errors import ConfigError
from conf.overrides import Given, expand, parse
from conf.schema import Config
from conf.validation import Fault, coerce, faults, folder_faults, refuse, said, suggestion


def load(overrides: Sequence[str] = ()) -> Config:
    """The configuration that the overrides make of the defaults.

    Args:
        overrides: `key=value` words, as on the command line; `group=option` chooses a yaml file.

    Returns:
        A checked configuration; `data.path` is absolute, `sites` is a number, a list or None.
        A given `privacy.noise_multiplier` takes the place of the default epsilon.

    Raises:
        ConfigError: it cannot run; the text lists every fault.
    """
    config, found = _load(overrides)
    refuse(found)
    return config


def load_plan(overrides: Sequence[str]) -> Config:
    """The configuration of a plan for hospitals, who bring their own data: `load` without a look at any.

    Raises:
        ConfigError: it cannot run; the text lists every fault.
    """
    given, found, broken = parse([*overrides, "data=folder"])
    config = _settle(_compose(given), {g.key for g in given})
    config.data.path = "/"  # stands for the hospitals' own
    refuse([*found, *(f for f in faults(config) if not broken & set(f.depends))])
    return config


def load_sweep(overrides: Sequence[str]) -> list[tuple[list[str], Config]]:
    """Every run of a sweep with the overrides that make it; a comma separates the values of a key.

    Raises:
        ConfigError: any of them cannot run; the text lists the faults of all.
    """
    runs = [(run, *_load(run)) for run in expand(overrides)]
    refuse(fault for _, _, found in runs for fault in found)
    return [(run, config) for run, config, _ in runs]


def to_json(config: Config) -> str:
    """One line of canonical JSON: equal configurations have equal texts."""
    return json.dumps(asdict(config), sort_keys=True, separators=(",", ":"), allow_nan=False)


def from_json(text: str) -> Config:
    """The configuration that `to_json` wrote, checked again but for paths, which may be elsewhere.

    The text is data: nothing in it is interpolated, looked up or executed. A key that is missing
    has the schema's default.

    Raises:
        ConfigError: it is no such text, or it cannot run; lists every fault.
    """
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"expected a configuration as JSON: {error}") from None
    return _from_dict(raw)


def to_yaml(config: Config) -> str:
    """The whole configuration for a person to read, and for `from_yaml`."""
    text: str = yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)
    return text


def from_yaml(text: str) -> Config:
    """The configuration that `to_yaml` wrote, checked as `from_json` does.

    Raises:
        ConfigError: it is no such text, or it cannot run; lists every fault.
    """
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError("expected a configuration as YAML; the text cannot be read as YAML") from None
    return _from_dict(raw)


def _load(overrides: Sequence[str]) -> tuple[Config, list[Fault]]:
    given, found, broken = parse(overrides)
    config = _settle(_compose(given), {g.key for g in given})
    found += [f for f in [*faults(config), *folder_faults(config)] if not broken & set(f.depends)]
    return config, found


def _compose(given: Sequence[Given]) -> Config:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(config_dir=str(FOLDER), version_base="1.3", job_name="twinward"):
        composed = compose("config", overrides=[g.text for g in given])
    config = OmegaConf.to_object(composed)
    if not isinstance(config, Config):
        raise ConfigError("conf/config.yaml no longer builds on the schema; restore its defaults list")
    return config


def _settle(config: Config, given: set[str]) -> Config:
    """Completes what the user said: noise in place of epsilon, absolute paths, a list of one site."""
    if "privacy.noise_multiplier" in given and "privacy.epsilon" not in given:
        config.privacy.epsilon = (
            None if config.privacy.noise_multiplier is not None else config.privacy.epsilon
        )
    if config.data.path is not None:
        config.data.path = str(Path(config.data.path).expanduser().absolute())
    if config.run.dir is not None:
        config.run.dir = str(Path(config.run.dir).expanduser())
    if isinstance(config.sites, str):
        config.sites = [config.sites]
    return config


def _from_dict(raw: Any) -> Config:
    if not isinstance(raw, Mapping):
        raise ConfigError("expected a configuration, a mapping of groups and keys, and nothing else")
    found: list[Fault] = []
    config: Config = _section(Config, raw, "", found)
    refuse(found)
    refuse(faults(config))
    return config


def _section(kind: type, raw: Mapping[str, Any], prefix: str, found: list[Fault]) -> Any:
    hints = get_type_hints(kind)
    known = [f.name for f in fields(kind)]
    values: dict[str, Any] = {}
    for name, value in raw.items():
        full = f"{prefix}{name}"
        hint = hints.get(name)
        if hint is None:
            found.append(Fault(said=full, expected=f"there is no such key{suggestion(str(name), known)}"))
        elif is_dataclass(hint) and isinstance(hint, type):
            if isinstance(value, Mapping):
                values[name] = _section(hint, value, f"{full}.", found)
            else:
                found.append(Fault(said=said(full, value), expected="expected a mapping of keys"))
        elif name == "name" and isinstance(value, str):
            values[name] = value
        elif full in keys():
            try:
                values[name] = coerce(keys()[full], value)
            except ValueError as error:
                found.append(Fault(said=said(full, value), expected=f"expected {error}"))
        else:
            found.append(Fault(said=said(full, value), expected="expected the name of an option"))
    return kind(**values)
