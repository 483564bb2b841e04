"""Writes the tables of docs/configuration.md from the schema: `python -m cli.reference FILE`, `make docs`."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from cli.words import plain
from conf.describe import Key, groups, keys

BEGIN, END = "<!-- tables: begin (make docs) -->", "<!-- tables: end -->"


def tables() -> str:
    """Every group with its options, then every key, as Markdown."""
    lines = ["## Groups", "", "| group | option | what it is | it sets |", "|---|---|---|---|"]
    for group, options in groups().items():
        for place, option in enumerate(options):
            name = f"`{group}`" if place == 0 else ""
            default = " (default)" if place == 0 else ""
            sets = " ".join(f"`{k}={plain(v)}`" for k, v in option.sets.items())
            lines.append(f"| {name} | `{option.name}`{default} | {option.doc} | {sets} |")
    for section, found in groupby(keys().values(), key=lambda key: key.group):
        lines += ["", f"## Keys of `{section}`" if section else "## Keys of the run as a whole", ""]
        lines += ["| key | default | allowed | meaning |", "|---|---|---|---|", *map(_row, found)]
    return "\n".join(lines)


def rewritten(text: str) -> str:
    """The document with its tables made anew; everything outside the two marks stays.

    Raises:
        ValueError: a mark is missing.
    """
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"expected a document with the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def _row(key: Key) -> str:
    span = key.span().replace(" | ", ", ")
    only = f" Only with {' or '.join(f'`{key.group}={option}`' for option in key.only)}." if key.only else ""
    doc = key.doc[:1].upper() + key.doc[1:]
    return f"| `{key.name}` | `{plain(key.default)}` | {span} | {doc}.{only} |".replace("<", "&lt;")


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(rewritten(document.read_text(encoding="utf-8")), encoding="utf-8")
