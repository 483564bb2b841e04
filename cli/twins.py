"""`twinward site twin|alerts|identify`: what those who care for patients ask a site's process."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from cli.site import home_parser
from cli.words import output, read
from conf.errors import ConfigError

_TWIN = """\
examples:
  twinward site twin k5dq3u7x2mhw6abzot4e
  echo MRN-4711 | twinward site twin - --json

The patient is named by the site's pseudonym, or, with -, by the hospital's identifier on standard input
(so that it stands in no list of commands). Every look is recorded with its reason. Not a medical device.
"""
_ALERTS = """\
examples:
  twinward site alerts
  twinward site alerts ack PATIENT low-glucose-17 --why "juice given"
  twinward site alerts snooze PATIENT low-glucose-17 --minutes 30
"""
_IDENTIFY = """\
example:
  echo MRN-4711 | twinward site identify
"""
REASONS = ("treatment", "emergency", "patient-request", "operations", "research")


def run(name: str, words: list[str]) -> int:
    """The command; returns its exit code."""
    return {"site twin": _twin, "site alerts": _alerts, "site identify": _identify}[name](name, words)


def ask_site(said: argparse.Namespace, question: str, /, **words: Any) -> Any:
    """The answer of the process that runs the site at --home."""
    from client.counter import ask
    from client.home import SiteHome

    return ask(SiteHome(said.home).door, question, **words)


def patient_of(said: argparse.Namespace) -> str:
    """The pseudonym that was said, or that of the identifier on standard input."""
    return _identified(said) if said.patient == "-" else str(said.patient)


def _twin(name: str, words: list[str]) -> int:
    args = home_parser(name, "Print a patient's twin.", _TWIN)
    args.add_argument("patient", help="pseudonym, or - for an identifier on standard input")
    args.add_argument("--reason", choices=REASONS, default="treatment", help="why; default treatment")
    said = read(args, words)
    facts = ask_site(said, "twin", patient=patient_of(said), why=said.reason).facts
    print(json.dumps(facts["twin"], indent=2) if said.json else facts["text"])
    return 0


def _alerts(name: str, words: list[str]) -> int:
    args = home_parser(name, "List alerts, acknowledge or snooze one.", _ALERTS)
    args.add_argument("what", nargs="?", choices=("list", "ack", "snooze"), default="list")
    args.add_argument("patient", nargs="?", help="of ack and snooze: pseudonym")
    args.add_argument("alert", nargs="?", help="of ack and snooze: the alert's id")
    args.add_argument("--why", default="", help="of ack: what was done; kept in the store")
    args.add_argument("--minutes", type=float, help="of snooze")
    args.add_argument("--reason", choices=REASONS, default="treatment", help="why you look")
    said = read(args, words)
    if said.what == "list":
        return _listed(said)
    if not said.patient or not said.alert or (said.what == "snooze" and said.minutes is None):
        raise ConfigError(
            "say patient and alert, and for snooze --minutes; `twinward site alerts` lists both"
        )
    named = {"patient": said.patient, "alert": said.alert}
    if said.what == "ack":
        facts = ask_site(said, "acknowledge", why=said.why, **named).facts
    else:
        facts = ask_site(said, "snooze", minutes=said.minutes, **named).facts
    print(json.dumps(facts, indent=2) if said.json else f"{said.alert}: {facts['event']}")
    return 0


def _listed(said: argparse.Namespace) -> int:
    found = ask_site(said, "alerts", why=said.reason).facts["alerts"]
    if said.json:
        print(json.dumps(found, indent=2))
        return 0
    from rich.table import Table

    table = Table("priority", "alert", "patient", "what", "since (UTC)", "seen by")
    for alert in found:
        since = alert["since"][:16].replace("T", " ")
        seen = alert["acknowledged_by"] or (
            f"snoozed until {alert['snoozed_until'][11:16]}" if alert["snoozed_until"] else ""
        )
        table.add_row(alert["priority"], alert["id"], alert["patient_id"], alert["text"], since, seen)
    if found:
        output().print(table)
    else:
        print("No alert is active.")
    return 0


def _identify(name: str, words: list[str]) -> int:
    said = read(home_parser(name, "Give the pseudonym of an identifier on standard input.", _IDENTIFY), words)
    patient = _identified(said)
    print(json.dumps({"patient": patient}) if said.json else patient)
    return 0


def _identified(said: argparse.Namespace) -> str:
    identifier = sys.stdin.readline().strip()
    if not identifier:
        raise ConfigError("expected an identifier on standard input")
    return str(ask_site(said, "identify", identifier=identifier).facts["patient"])
