"""What the schema says of itself: its groups, their options and every key; read by all that explain it.

Needs neither Hydra nor OmegaConf, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from conf.schema import Config

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One thing that can be set.

    Attributes:
        name: as it is written, `group.key` or `key`.
        group: of the key; "" at the top, "run" for the section that is not chosen from options.
        hint: type of the value, as the schema annotates it.
        default: of the schema; an option of a group may set another.
        allowed: inclusive range (low, high), or None.
        choices: the texts that are allowed, or empty.
        only: options of the group with which the key has an effect; empty is all.
        doc: what it means.
    """

    name: str
    group: str
    hint: Any
    default: Any
    allowed: tuple[float, float] | None
    choices: tuple[str, ...]
    only: tuple[str, ...]
    doc: str

    @property
    def optional(self) -> bool:
        return type(None) in get_args(self.hint)

    @property
    def kind(self) -> type | None:
        """bool, int, float or str; None where the schema leaves the type open."""
        kinds = [kind for kind in get_args(self.hint) or (self.hint,) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 and kinds[0] in (bool, int, float, str) else None

    def span(self) -> str:
        """What is allowed, as short as can be: `1 to 100`, `a | b`; empty where anything is."""
        words = list(self.choices) or (["true", "false"] if self.kind is bool else [])
        if self.allowed:
            words = [f"{self.allowed[0]:g} to {self.allowed[1]:.10g}"]
        return " | ".join([*words, "null"] if self.optional and words else words)

    def expected(self) -> str:
        """What is allowed, in words."""
        words = {
            bool: "true or false",
            int: "a whole number",
            float: "a number",
            str: "a text that is not empty",
        }
        text = words[self.kind] if self.kind else self.doc
        if self.choices:
            text = "one of " + ", ".join(self.choices)
        if self.allowed:
            text += f" from {self.allowed[0]:g} to {self.allowed[1]:.10g}"
        return text + (", or null" if self.optional else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One choice of a group: its name, the comment that its file begins with, and what it sets."""

    name: str
    doc: str
    sets: dict[str, Any]


@cache
def groups() -> dict[str, tuple[Option, ...]]:
    """The options of each group, the default one first."""
    found: dict[str, tuple[Option, ...]] = {}
    for group in (f.name for f in fields(Config) if (FOLDER / f.name).is_dir()):
        options = [_option(path) for path in sorted((FOLDER / group).glob("*.yaml"))]
        found[group] = tuple(sorted(options, key=lambda o: (o.name != defaults()[group], o.name)))
    return found


@cache
def defaults() -> dict[str, str]:
    """The option of each group that is taken when nothing is said."""
    lines = yaml.safe_load((FOLDER / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    return {group: option for line in lines if isinstance(line, dict) for group, option in line.items()}


@cache
def keys() -> dict[str, Key]:
    """Every key that can be set, by name, in the order of the schema; a group's `name` is not one."""
    found: dict[str, Key] = {}
    for name, hint in get_type_hints(Config).items():
        if is_dataclass(hint) and isinstance(hint, type):
            found |= {key.name: key for key in _keys_of(hint, name) if key.name != f"{name}.name"}
        else:
            found |= {key.name: key for key in _keys_of(Config, "") if key.name == name}
    return found


def _keys_of(section: type, group: str) -> list[Key]:
    hints = get_type_hints(section)
    prefix = f"{group}." if group else ""
    return [
        Key(
            name=prefix + f.name,
            group=group,
            hint=hints[f.name],
            default=f.default,
            allowed=f.metadata.get("allowed") or None,
            choices=f.metadata.get("choices", ()),
            only=f.metadata.get("only", ()),
            doc=f.metadata.get("doc", ""),
        )
        for f in fields(section)
    ]


def _option(path: Path) -> Option:
    text = path.read_text(encoding="utf-8")
    first = text.splitlines()[0]
    sets = {key: value for key, value in yaml.safe_load(text).items() if key != "name"}
    return Option(name=path.stem, doc=first.lstrip("# ") if first.startswith("#") else "", sets=sets)
