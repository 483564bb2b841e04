"""Parsers of command words, and the help that lists every group and key."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Never

from conf.describe import Key, groups, keys

if TYPE_CHECKING:
    from rich.console import Console

OVERRIDE_DOC = "settings, `group=option` or `key=value`"


class _Parser(argparse.ArgumentParser):
    """Tells who writes `--rounds 5` how a setting is written."""

    def error(self, message: str) -> Never:
        known = {*groups(), *keys()}
        meant = [word[2:] for word in message.split() if word.startswith("--")]
        meant = [name for name in (word.partition("=")[0] for word in meant) if name in known]
        if "unrecognized" in message and meant:
            message += f"; a setting is written without dashes: {meant[0]}=VALUE"
        super().error(message)


def parser(name: str, doc: str, *, epilog: str = "") -> argparse.ArgumentParser:
    """A parser for one command, whose help shows the epilog as it is."""
    return _Parser(
        prog=f"twinward {name}",
        description=doc,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def read(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """The words as the parser reads them; options may stand among the settings.

    Raises:
        SystemExit: of argparse, 0 after help and 2 after a usage error.
    """
    return parser.parse_intermixed_args(words)


def output() -> Console:
    """Where results are printed: as wide as the terminal, and in a log wide enough for a table."""
    from rich.console import Console

    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if known else 120)


def settings() -> str:
    """Every group with its options and every key with its default, for `--help`."""
    lines = ["groups (group=option; the first is the default):"]
    for group, options in groups().items():
        for place, option in enumerate(options):
            sets = "".join(f" {k}={plain(v)}" for k, v in option.sets.items())
            head = f"  {group if place == 0 else '':<12}{option.name:<10}"
            lines += _wrap(head, option.doc + (f" Sets{sets}." if sets else ""), 25)
    lines += ["", "keys (key=value; the value shown is the default):"]
    for key in keys().values():
        lines += _wrap(f"  {key.name}={plain(key.default)}", explain(key), 38)
    return "\n".join(lines)


def explain(key: Key) -> str:
    """What a key means, what it may be, and with which options of its group it has an effect."""
    only = f" [{key.group}={'|'.join(key.only)}]" if key.only else ""
    allowed = f" ({key.span()})" if key.span() else ""
    return f"{key.doc}{allowed}{only}"


def plain(value: object) -> str:
    """A value as one writes it on the command line."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _wrap(head: str, text: str, indent: int) -> list[str]:
    lines = textwrap.wrap(text, 108 - indent) or [""]
    first = f"{head:<{indent - 1}} {lines[0]}"
    return [first.rstrip(), *(" " * indent + line for line in lines[1:])]
