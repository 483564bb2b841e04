"""Reads `key=value` words as Hydra does, and refuses what it does not know, all at once.

Hydra's grammar reads the values; what it would take but this project has no use for (`+key`,
`~key`, packages, interpolations) is refused, for unknown means refuse.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, OverrideType, RangeSweep
from hydra.errors import HydraException

from conf.describe import groups, keys
from conf.validation import Fault, coerce, suggestion

_QUOTED = re.compile(r"""^(["']).*\1$""", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """One override that holds: its key or group, its value, and the text that Hydra composes with."""

    key: str
    value: Any
    text: str


def expand(words: Sequence[str]) -> list[list[str]]:
    """The runs of a sweep: every combination of the values that commas, range() or choice() list.

    Words that cannot be read stay as they are; `parse` says what is wrong with them.
    """
    choices: list[list[str]] = []
    for word in words:
        override = _read(word, sweep=True)
        if override is not None and isinstance(override.value(), (ChoiceSweep, RangeSweep)):
            choices.append([f"{override.key_or_group}={v}" for v in override.sweep_string_iterator()])
        else:
            choices.append([word])
    return [list(run) for run in itertools.product(*choices)]


def parse(words: Sequence[str]) -> tuple[list[Given], list[Fault], set[str]]:
    """What holds, what is wrong, and the keys and groups that are at fault."""
    given: list[Given] = []
    found: list[Fault] = []
    broken: set[str] = set()
    for word in words:
        answer = _judge(word)
        if isinstance(answer, Given):
            given.append(answer)
        else:
            found.append(answer)
            broken.add(word.partition("=")[0])
    for key, times in Counter(g.key for g in given).items():
        if times > 1:
            found.append(Fault(said=key, expected=f"is given {times} times; give it once"))
            broken.add(key)
    return [g for g in given if g.key not in broken], found, broken


def _judge(word: str) -> Given | Fault:
    name, equals, text = word.partition("=")
    known = [*groups(), *keys()]
    if not equals:
        hint = "" if word in known else suggestion(word, known)
        return Fault(said=word, expected=f"expected key=value{hint}")
    if name.endswith(".name") and name.removesuffix(".name") in groups():
        group = name.removesuffix(".name")
        return Fault(said=word, expected=f"the option is chosen by {group}={text}")
    if name not in known:
        return Fault(said=word, expected=f"there is no group or key {name!r}{suggestion(name, known)}")
    if "${" in text:
        return Fault(said=word, expected="a value is taken as it is; ${...} is not read")
    override = _read(word)
    if override is None or override.type is not OverrideType.CHANGE:
        return Fault(said=word, expected="cannot be read; put a text with special characters into '...'")
    if override.is_sweep_override():
        listed = f"; a list is written {name}=[a,b]" if name == "sites" else ""
        return Fault(said=word, expected=f"several values need -m (one run each){listed}")
    return _option(name, override, word) if name in groups() else _value(name, override, word)


def _option(group: str, override: Override, word: str) -> Given | Fault:
    names = [option.name for option in groups()[group]]
    chosen = override.value()
    if chosen not in names:
        hint = suggestion(str(chosen), names)
        return Fault(said=word, expected=f"expected one of {', '.join(names)}{hint}")
    return Given(key=group, value=chosen, text=f"{group}={chosen}")


def _value(name: str, override: Override, word: str) -> Given | Fault:
    key = keys()[name]
    try:
        value = coerce(key, override.value())
    except ValueError:
        return Fault(said=word, expected=f"expected {key.expected()}")
    return Given(key=name, value=value, text=f"{name}={override.get_value_string()}")


def _read(word: str, sweep: bool = False) -> Override | None:
    """Hydra's reading of a word, None where it has none.

    A text (a path, a zone) is quoted first, so that it may hold any character; in a sweep only
    where it has no comma.
    """
    name, _, text = word.partition("=")
    key = keys().get(name)
    plain = text not in ("", "null") and not _QUOTED.match(text) and not (sweep and "," in text)
    if key is not None and key.kind is str and plain:
        escaped = re.sub(r"\\+(?=')|\\+$", lambda m: m.group() * 2, text).replace("'", "\\'")
        word = f"{name}='{escaped}'"
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None
