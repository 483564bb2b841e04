"""`twinward site run|status|plugins|personalise`: a hospital's process, how it stands, its own models."""

from __future__ import annotations

import argparse
import json
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.words import output, parser, read
from conf.errors import ConfigError

if TYPE_CHECKING:
    from types import FrameType

    from client.home import SiteHome

HOME = "site"
_RUN = """\
example:
  twinward site run --home /srv/twinward/site

Keeps one outbound connection to the coordinator, answers what the policy and the site's people admit,
renews the certificate, fetches promoted models. Ends with Ctrl-C or SIGTERM, after the request at hand.
"""
_PERSONALISE = """\
example:
  twinward site personalise glucose

Fits the site's and each patient's model from the federation's and keeps them here, readable by this user
alone. They reveal patients to whoever may read them; nothing sends them anywhere.
"""


def run(name: str, words: list[str]) -> int:
    """The command; returns its exit code."""
    return {
        "site run": _run,
        "site status": _status,
        "site plugins": _plugins,
        "site personalise": _personalise,
    }[name](name, words)


def home_parser(name: str, doc: str, epilog: str = "") -> argparse.ArgumentParser:
    """A parser with --home and --json."""
    args = parser(name, doc, epilog=epilog)
    args.add_argument("--home", type=Path, default=Path(HOME), help=f"the site's folder; default {HOME}")
    args.add_argument("--json", action="store_true", help="print JSON")
    return args


def _run(name: str, words: list[str]) -> int:
    said = read(home_parser(name, "Run a site.", _RUN), words)
    from client.agent import Agent
    from client.data import reads_store
    from client.home import SiteHome

    home = SiteHome(said.home)
    if reads_store(home):
        raise ConfigError(f"the site trains on its store: run `twinward site up --home {said.home}`")
    agent = Agent(home)

    def end(_: int, __: FrameType | None) -> None:
        # In a thread: this one may hold the very lock that the stop needs.
        threading.Thread(target=agent.stop, name="stop").start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    if not said.json:
        settings = agent.settings
        print(f"{settings.site} of {settings.federation} runs; coordinator {settings.address}.", flush=True)
    agent.run()
    return 0


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {found}" for name, found in value.items()) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value in (None, "") else str(value)


def _status(name: str, words: list[str]) -> int:
    said = read(home_parser(name, "Say how a site stands."), words)
    from client.home import SiteHome

    facts = _facts(SiteHome(said.home))
    if said.json:
        print(json.dumps(facts, indent=2))
        return 0
    shown = output()
    for key, value in facts.items():
        if key != "models":
            shown.print(f"{key.replace('_', ' '):<22} {_plain(value)}", highlight=False, markup=False)
    for model in facts["models"]:
        text = f"{model['task']}: number {model['number']}, serial {model['serial']}, {model['sha256'][:12]}"
        shown.print(f"{'model':<22} {text}", highlight=False)
    return 0


def _facts(home: SiteHome) -> dict[str, Any]:
    from client.agent import read_status
    from client.inbox import STATES, Inbox
    from client.joining import certificate_of
    from client.ledger import Ledger
    from client.policy import read_policy
    from client.shelf import Shelf

    settings, policy, status = home.settings(), read_policy(home.policy), read_status(home)
    running = home.is_running
    until = f"{certificate_of(home)[2]:%Y-%m-%d}" if home.is_member else ""
    with Inbox(home.inbox) as inbox:
        states = [offer.state for offer in inbox.all()]
    with Ledger(home.ledger, ceiling_epsilon=policy.ceiling, delta=policy.delta) as ledger:
        spent = ledger.spent()
    held = [found for task in Shelf(home).tasks() if (found := Shelf(home).held(task)) is not None]
    age_s = time.time() - float(str(status.get("written_s", "nan")))
    return {
        "site": settings.site,
        "federation": settings.federation,
        "coordinator": settings.address,
        "running": running,
        "connected": bool(running and status.get("connected") and age_s < 60),
        "last_end": status.get("ended", ""),
        "certificate_until": until,
        "parts": _parts(home) if running and home.has_store else {},
        "plans": {state: states.count(state) for state in STATES},
        "epsilon_spent": round(spent, 4),
        "epsilon_over_life": policy.epsilon_over_life,
        "delta": policy.delta,
        "models": [
            {"task": card.task, "number": card.number, "serial": card.serial, "sha256": card.sha256}
            for card, _ in held
        ],
    }


def _parts(home: SiteHome) -> dict[str, str]:
    """How the parts of `twinward site up` stand, if the user may know."""
    from client.counter import ask
    from client.errors import ClientError

    try:
        found = ask(home.door, "status").facts["parts"]
    except ClientError as error:
        return {"unknown": error.code}
    return {name: f"{part['state']} {part['why']}".strip() for name, part in found.items()}


def _plugins(name: str, words: list[str]) -> int:
    doc = "List installed plug-ins with the sums that [plugins] of policy.toml pins. None of them is run."
    said = read(home_parser(name, doc), words)
    from client.home import SiteHome
    from client.plugins import installed
    from client.policy import read_policy

    home = SiteHome(said.home)
    pins = read_policy(home.policy).plugins if home.policy.exists() else {}
    found = [
        {
            "key": plugin.key,
            "distribution": plugin.distribution,
            "sha256": plugin.sha256,
            "fault": plugin.fault,
            "pinned": bool(plugin.sha256) and pins.get(plugin.key) == plugin.sha256,
        }
        for plugin in installed()
    ]
    if said.json:
        print(json.dumps(found, indent=2))
        return 0
    for entry in found:
        print(f'"{entry["key"]}" = "{entry["sha256"]}"  # {entry["distribution"]}', end="")
        print(f"; {entry['fault']}" if entry["fault"] else "; pinned" if entry["pinned"] else "; not pinned")
    if not found:
        print("No plug-in is installed (entry points twinward.tasks and twinward.models).")
    return 0


def _personalise(name: str, words: list[str]) -> int:
    args = home_parser(name, "Fit a site's and its patients' models.", _PERSONALISE)
    args.add_argument("task", help="name of the task, as glucose")
    said = read(args, words)
    from client.home import SiteHome

    facts = _fitted(SiteHome(said.home), said.task)
    if said.json:
        print(json.dumps(facts, indent=2))
        return 0
    _print_figures(facts["figures"])
    own = facts["patients_with_own_model"]
    print(f"{facts['patients']} patients, {own} with a model of their own; kept in {facts['kept_in']}.")
    print(
        "Judged on later halves of patients that the site's model had not seen; not private, for you alone."
    )
    return 0


def _fitted(home: SiteHome, task: str) -> dict[str, Any]:
    """What came of fitting the site's and the patients' models, here or in the process that has the store."""
    from client.counter import ask
    from client.data import reads_store
    from client.personalise import personalise, personalise_store

    if not reads_store(home):
        return personalise(home, task).facts() | {"kept_in": str(home.models / task)}
    kept = {"kept_in": str(home.store)}
    if home.is_running:
        return dict(ask(home.door, "fit", task=task).facts) | kept
    return personalise_store(home, task).facts() | kept


def _print_figures(figures: dict[str, dict[str, float]]) -> None:
    from rich.table import Table

    metrics = list(dict.fromkeys(metric for by_metric in figures.values() for metric in by_metric))
    table = Table("figure", *figures)
    for metric in metrics:
        values = [f"{by_metric[metric]:.4g}" if metric in by_metric else "" for by_metric in figures.values()]
        table.add_row(metric, *values)
    output().print(table)
