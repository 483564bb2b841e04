"""What the documents say is so: every key is told, every link leads somewhere, commands are read."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cli.main import COMMANDS
from cli.reference import rewritten
from conf.describe import groups, keys
from conf.overrides import parse

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_the_tables_of_the_configuration_are_those_of_the_schema() -> None:
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert rewritten(text) == text, "run `make docs`"


def test_every_key_and_every_option_is_documented() -> None:
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for name in keys():
        assert any(row.startswith(f"| `{name}` |") for row in rows)
    for options in groups().values():
        assert all(any(f"| `{option.name}`" in row for row in rows) for option in options)


def test_every_key_says_what_it_means_and_every_option_what_it_is() -> None:
    assert [key.name for key in keys().values() if not key.doc] == []
    assert [option for options in groups().values() for option in options if not option.doc] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_that_a_document_shows_has_words_that_are_known(document: Path) -> None:
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.DOTALL)
    for line in "\n".join(blocks).splitlines():
        command = line.strip().removeprefix("$ ")
        if command.startswith("twinward "):
            _check(shlex.split(command, comments=True)[1:])


def _check(words: list[str]) -> None:
    name = next((n for n in (" ".join(words[:2]), words[0]) if n in COMMANDS), None)
    assert name or words[0].startswith("-"), words
    if name in ("simulate", "evaluate", "privacy plan") and "-m" not in words:
        settings = [w for w in words if "=" in w and not w.startswith(("patients=", "--"))]
        faults = parse(settings)[1]
        assert faults == []
