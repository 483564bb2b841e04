"""`twinward site budget` and `twinward site ledger accept`: what a site has spent, and a lost ledger."""

from __future__ import annotations

import argparse
import getpass
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.site import home_parser
from cli.words import output, read
from conf.errors import ConfigError

if TYPE_CHECKING:
    from client.ledger import Ledger, PlanEntry
    from client.policy import Policy

_BUDGET = """\
example:
  twinward site budget --home /srv/twinward/site
  twinward site budget --ledger runs/first/federations/all/ledgers.sqlite --site alpha --delta 1e-4

Epsilon is an upper bound: of each plan alone, and of all plans of the site's life together. They compose,
so the total is less than the sum. A plan counts whole from the day on which the site took it.
"""
_ACCEPT = """\
example:
  twinward site ledger accept --reason "disk replaced, ledger restored from Tuesday's backup"

For a site that stopped because its privacy ledger is an old copy. If you have the newest one, put that
back instead. What the audit log knows is charged again, and plans that are not finished end at this site.
"""


def run(name: str, words: list[str]) -> int:
    """The command; returns its exit code."""
    return _budget(name, words) if name == "site budget" else _ledger(name, words)


def _budget(name: str, words: list[str]) -> int:
    args = home_parser(name, "Say what a site has spent of its privacy budget, and for which plans.", _BUDGET)
    args.add_argument("--ledger", type=Path, help="a ledger's file, instead of a site's folder")
    args.add_argument("--site", help="whose part of a file with the ledgers of all simulated sites")
    args.add_argument("--delta", type=float, help="at which epsilon is stated; default: the policy's")
    said = read(args, words)
    facts = _facts(said)
    if said.json:
        print(json.dumps(facts, indent=2))
        return 0
    _print(facts)
    return 0


def _facts(said: argparse.Namespace) -> dict[str, Any]:
    from client.ledger import Ledger

    path, policy = _where(said)
    delta = said.delta if said.delta is not None else (1e-4 if policy is None else policy.delta)
    if not 0 < delta < 1:
        raise ConfigError(f"--delta must be between 0 and 1; {delta:g} came")
    if not path.is_file():
        if policy is None:
            raise ConfigError(f"expected a privacy ledger at {path}; there is no file")
        return _summary((), 0.0, delta, policy)  # nothing was ever asked of this site
    if said.site is not None:
        return _shared(path, said.site, delta)
    with Ledger(path, ceiling_epsilon=None, delta=delta) as ledger:
        _warn(ledger)
        return _summary(ledger.plans(), ledger.spent(), delta, policy)


def _shared(path: Path, site: str, delta: float) -> dict[str, Any]:
    from client.shared_ledger import SharedLedger

    with SharedLedger(path, ceiling_epsilon=None, delta=delta).of(site) as ledger:
        if not ledger.is_known:
            raise ConfigError(f"expected a site with a ledger in {path}; {site!r} has none there")
        return _summary(ledger.plans(), ledger.spent(), delta, None)


def _where(said: argparse.Namespace) -> tuple[Path, Policy | None]:
    if said.ledger is not None:
        return said.ledger, None
    from client.home import SiteHome
    from client.policy import read_policy

    home = SiteHome(said.home)
    home.settings()  # says it well where there is none
    return home.ledger, read_policy(home.policy)


def _warn(ledger: Ledger) -> None:
    faults = ledger.faults()
    if faults:
        raise ConfigError(f"the ledger was changed: {'; '.join(faults[:5])}")


def _summary(
    plans: tuple[PlanEntry, ...], spent: float, delta: float, policy: Policy | None
) -> dict[str, Any]:
    from client.anchor import offer_of
    from privacy.accounting import NEIGHBOURING, UNIT, epsilon

    ceiling = None if policy is None else policy.ceiling
    return {
        "epsilon_spent": _plain(spent),
        "epsilon_over_life": ceiling,
        "epsilon_left": None if ceiling is None else _plain(max(0.0, ceiling - spent)),
        "delta": delta,
        "unit": UNIT,
        "neighbouring": NEIGHBOURING,
        "plans": [
            {
                "plan": entry.plan_hash,
                "offer": offer_of(entry.terms),
                "epsilon": _plain(epsilon([entry.release], delta)),
                "steps": entry.release.steps,
                "noise_multiplier": entry.release.noise_multiplier,
                "sampling_rate": entry.release.sampling_rate,
                "rounds_answered": entry.rounds_complete,
            }
            for entry in plans
        ],
    }


def _plain(value: float) -> float | str:
    """A number as JSON can hold it."""
    return value if value != float("inf") else "inf"


def _print(facts: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("plan", "epsilon", "steps", "noise", "rate", "rounds answered", box=None)
    for entry in facts["plans"]:
        table.add_row(
            (entry["offer"] or entry["plan"])[:12],  # as `site plans` names it
            _shown(entry["epsilon"]),
            str(entry["steps"]),
            f"{entry['noise_multiplier']:.4g}",
            f"{entry['sampling_rate']:.4g}",
            str(entry["rounds_answered"]),
        )
    shown = output()
    if facts["plans"]:
        shown.print(table, highlight=False)
    limit = facts["epsilon_over_life"]
    text = "" if limit is None else f" of {limit:g}, which the policy allows over the site's life"
    shown.print(
        f"Spent: epsilon {_shown(facts['epsilon_spent'])}{text} (at most; delta {facts['delta']:g}, unit"
        f" {facts['unit']}, neighbouring: {facts['neighbouring']}).",
        highlight=False,
    )


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _ledger(name: str, words: list[str]) -> int:
    args = home_parser(name, "Go on after a site's privacy ledger was lost.", _ACCEPT)
    args.add_argument("action", choices=["accept"], help="the ledger that is there now")
    args.add_argument("--reason", required=True, help="what happened; stands in the audit log")
    said = read(args, words)
    from client import anchor
    from client.errors import ClientError
    from client.home import SiteHome
    from client.ledger import Ledger
    from client.policy import read_policy
    from trust.audit import AuditLog

    home = SiteHome(said.home)
    home.settings()
    delta = read_policy(home.policy).delta
    with (
        home.lock(),
        AuditLog(home.audit) as log,
        Ledger(home.ledger, ceiling_epsilon=None, delta=delta) as ledger,
    ):
        try:
            anchor.check(ledger, log)
        except ClientError as error:
            if error.code != "ledger_restored":
                raise
        else:
            raise ConfigError("the ledger is the one that the audit log knows; there is nothing to accept")
        done = anchor.accept(ledger, log, who=getpass.getuser(), why=said.reason)
        spent = ledger.spent()
    facts = {"recharged": done.recharged, "ended": done.ended, "epsilon_spent": _plain(spent), "delta": delta}
    if said.json:
        print(json.dumps(facts, indent=2))
        return 0
    print(f"Plans charged again: {done.recharged}. Plans that end at this site: {done.ended}.")
    print(f"Spent: epsilon {_shown(_plain(spent))} (at most; delta {delta:g}, unit patient).")
    return 0
