"""`twinward doctor`: what would stop a coordinator or a site, found before it does, and how to mend it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cli.words import output, parser, read
from conf.errors import ConfigError

if TYPE_CHECKING:
    from cli.examination import Finding

DOC = "Examine the folder of a coordinator or a site, this machine, and the way to the other side."
_EXAMPLES = """\
examples:
  twinward doctor --home coordinator
  twinward doctor --home /srv/twinward/site --json

Changes nothing. Exit code 0: all is well, or there are only warnings. 1: something is broken.
"""
_MARKS: Final = {"ok": "ok", "warning": "warning", "broken": "BROKEN"}


def run(name: str, words: list[str]) -> int:
    """The command; returns its exit code."""
    args = parser(name, DOC, epilog=_EXAMPLES)
    args.add_argument("--home", type=Path, required=True, help="folder of the coordinator or of the site")
    args.add_argument("--offline", action="store_true", help="do not try the way to the other side")
    args.add_argument("--json", action="store_true", help="print JSON")
    said = read(args, words)
    findings = _examine(said.home, online=not said.offline)
    if said.json:
        rows = [{"what": f.what, "state": f.state, "found": f.found, "mend": f.mend} for f in findings]
        print(json.dumps(rows, indent=2))
    else:
        _print(findings)
    return 1 if any(finding.state == "broken" for finding in findings) else 0


def _examine(home: Path, *, online: bool) -> list[Finding]:
    if (home / "coordinator.json").exists():
        from cli.examination_coordinator import examine
    elif (home / "site.json").exists():
        from cli.examination_site import examine
    else:
        raise ConfigError(
            f"{home} is neither a coordinator's folder (coordinator.json) nor a site's (site.json);"
            " say which with --home"
        )
    return examine(home, online=online)


def _print(findings: list[Finding]) -> None:
    from rich.table import Table

    table = Table("what", "", box=None)
    for head in ("found", "to mend it"):
        table.add_column(head, overflow="fold")  # a path that is cut cannot be typed
    for finding in findings:
        table.add_row(finding.what, _MARKS[finding.state], finding.found, finding.mend)
    output().print(table)
