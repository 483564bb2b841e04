"""alerts.toml of a site: rules of alerts, and the sinks that are told of them."""

from __future__ import annotations

import tomllib
from pathlib import Path

from client.errors import ClientError
from twin.alerts.rules import DEFAULT_RULES, Rule, read_rules
from twin.alerts.sinks import Sink, build

EXAMPLE = """\
# Rules of alerts and who is told of them: docs/alarms.md. Without any, the rules that are built in hold,
# and the process's log is told, without patients and values.

# off = ["glucose-sensor-old"]      # leaves a rule out

# [[rule]]                          # a name that is built in takes its place
# name = "low-glucose"
# kind = "value"
# quantity = "last"
# of = "glucose"
# side = "below"
# on = 65
# off = 70
# text = "glucose is low"
# priority = "medium"

[[sink]]
kind = "log"
"""


def read_alerts(path: Path) -> tuple[tuple[Rule, ...], tuple[Sink, ...]]:
    """Rules and sinks; those that are built in where the file says nothing.

    Raises:
        ClientError: home_unreadable.
        DataError: every fault of the rules, or of the sinks.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, ValueError) as error:
        raise ClientError("home_unreadable", f"Expected text in {path} ({type(error).__name__}).") from None
    rules = read_rules(text, DEFAULT_RULES)
    entries = tomllib.loads(text).get("sink", [{"kind": "log"}])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ClientError("home_unreadable", f"{path}: expected [[sink]] tables.")
    return rules, build(entries)
