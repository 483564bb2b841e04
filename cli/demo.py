"""`twinward demo`: a whole federation on this machine, from founding to a model, in some minutes."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cli.words import OVERRIDE_DOC, output, parser, read
from conf.errors import ConfigError

if TYPE_CHECKING:
    from cli.demo_federation import DemoFederation

DOC = "Found a federation of virtual hospitals in separate processes on this machine, and run a plan."
FEDERATION: Final = "demo"
RUN_S: Final = 3600.0
ROUNDS: Final = 5
_EXAMPLES = """\
examples:
  twinward demo
  twinward demo rounds=20 privacy.epsilon=4 --stay
  twinward demo --sites 5 --dir /tmp/five

A coordinator and each hospital are a process of their own. They have real certificates and speak mutual
TLS 1.3 on free ports of 127.0.0.1. The hospitals' data are virtual people. Each hospital's policy is
written by this command so that the plan runs without a person; real hospitals approve. All processes end
with this command.
"""


def run(name: str, words: list[str]) -> int:
    """The command; returns its exit code."""
    args = parser(name, DOC, epilog=_EXAMPLES)
    args.add_argument(
        "settings", nargs="*", metavar="key=value", help=f"{OVERRIDE_DOC}, as launch takes them"
    )
    args.add_argument("--dir", type=Path, default=Path("demo"), help="empty or new folder; default demo")
    args.add_argument("--sites", type=int, default=3, help="hospitals, 2 to 20; default 3")
    args.add_argument("--patients", type=int, default=24, help="virtual people each, 10 to 1000; default 24")
    args.add_argument("--days", type=int, default=6, help="of record, 2 to 100; default 6")
    args.add_argument("--stay", action="store_true", help="keep everything running until Ctrl-C")
    args.add_argument("--json", action="store_true", help="print JSON at the end")
    said = read(args, words)
    _check(said)
    from cli.processes import ended_by_signals

    with ended_by_signals():
        return _demo(said)


def _check(said: argparse.Namespace) -> None:
    for key, low, high in (("sites", 2, 20), ("patients", 10, 1000), ("days", 2, 100)):
        if not low <= getattr(said, key) <= high:
            raise ConfigError(f"--{key} must be from {low} to {high}; {getattr(said, key)} came")
    if said.dir.exists() and (not said.dir.is_dir() or any(said.dir.iterdir())):
        raise ConfigError(
            f"--dir must be an empty or absent folder; {said.dir} is not: remove it, or name another"
        )
    from cli.coordinator import configuration

    configuration(said.settings)  # says now what launch would refuse


def _demo(said: argparse.Namespace) -> int:
    from cli.demo_federation import DemoFederation
    from client.home import SiteHome

    with DemoFederation(said.dir, tell=lambda words: _say(f"$ twinward {words}")) as there:
        sites = _hospitals(there, said)
        run = there.launch([*_plan(said.settings), f"--quorum={len(sites)}", "--round-deadline=30m"])
        state = _follow(there, run)
        if state["run"]["state"] != "done":
            raise ConfigError(f"{run} ended as {state['run']['state']}: {state['run']['reason']}")
        facts = _facts(there, sites, state)
        _show(facts, there, as_json=said.json)
        if said.stay:
            _stay(there)
    if not said.stay:
        site = there.site_home(sites[0])
        _say("All processes have ended, the files stay. To look at them, for one:")
        _say(f"  twinward site budget --home {site}")
        _say(f"  twinward audit show {SiteHome(site).audit}")
        _say("With --stay everything keeps running, and all commands can be tried.")
    return 0


def _plan(settings: list[str]) -> list[str]:
    given = any(word.startswith("rounds=") for word in settings)
    return settings if given else [f"rounds={ROUNDS}", *settings]


def _hospitals(there: DemoFederation, said: argparse.Namespace) -> list[str]:
    """Founds, serves, invites, joins and starts; gives the names of the hospitals."""
    from cli.demo_data import write_hospitals

    _say(f"Making {said.sites} hospitals of {said.patients} virtual people …")
    folders = write_hospitals(
        there.directory / "hospitals", sites=said.sites, patients=said.patients, days=said.days
    )
    there.found(FEDERATION)
    there.serve()
    for site, folder in folders.items():
        there.join(site, folder)
        there.admit_automatically(site)
    for site in folders:
        there.run_site(site)
    there.processes.wait_for(
        "all hospitals to connect", lambda: set(there.ask("connected")["connected"]) >= set(folders), 300.0
    )
    return list(folders)


def _follow(there: DemoFederation, run: str) -> dict[str, Any]:
    """Prints each change until the run has ended."""
    from cli.coordinator import ENDS
    from cli.coordinator_tables import line

    last, end_s = "", time.monotonic() + RUN_S
    while time.monotonic() < end_s:
        there.processes.check()
        found = there.ask("status", run=run)
        if (text := line(found)) != last:
            _say(text)
            last = text
        if found["run"]["state"] in ENDS:
            return found
        there.ask("wait", seen=found["changes"], timeout_s=2.0)
    raise ConfigError(f"{run} did not end within {RUN_S:g} s; ask for fewer rounds, or use --stay")


def _facts(there: DemoFederation, sites: list[str], state: dict[str, Any]) -> dict[str, Any]:
    """What each hospital has released, as its own files say."""
    from client.home import SiteHome
    from client.ledger import Ledger
    from client.policy import read_policy
    from trust.verification import verify

    rows = []
    for site in sites:
        home = SiteHome(there.site_home(site))
        policy = read_policy(home.policy)
        with Ledger(home.ledger, ceiling_epsilon=policy.ceiling, delta=policy.delta) as ledger:
            plans = ledger.plans()
            rows.append(
                {
                    "site": site,
                    "rounds_answered": sum(plan.rounds_complete for plan in plans),
                    "epsilon_spent": round(ledger.spent(), 4),
                    "epsilon_over_life": policy.epsilon_over_life,
                    "delta": policy.delta,
                    "audit_faults": len(verify(home.audit)),
                }
            )
    return {
        "run": state["run"]["id"],
        "rounds": state["progress"]["committed"],
        "model_sha256": state["progress"]["model"],
        "audit_faults": len(verify(there.home / "audit.sqlite")),
        "sites": rows,
        "directory": str(there.directory),
    }


def _show(facts: dict[str, Any], there: DemoFederation, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts, indent=2), flush=True)
        return
    from rich.table import Table

    table = Table("hospital", "rounds answered", "epsilon spent", "of", "at delta", "audit log", box=None)
    for row in facts["sites"]:
        table.add_row(
            row["site"],
            f"{row['rounds_answered']} of {facts['rounds']}",
            f"{row['epsilon_spent']:g}",
            f"{row['epsilon_over_life']:g}",
            f"{row['delta']:g}",
            _verdict(row["audit_faults"]),
        )
    output().print(table)
    print(f"Model {facts['model_sha256'][:16]} after {facts['rounds']} rounds of {facts['run']}.")
    print(f"The coordinator's audit log: {_verdict(facts['audit_faults'])}.")
    print(f"Coordinator: {there.home}   (operator's key: {there.operator})")
    print(f"Hospitals:   {there.directory / 'hospitals'}/<name>/home, their data beside it")
    print(f"Logs:        {there.processes.logs}", flush=True)


def _verdict(faults: int) -> str:
    return f"{faults} faults" if faults else "verified"


def _stay(there: DemoFederation) -> None:
    _say("Everything keeps running until Ctrl-C. In another terminal:")
    _say(f"  twinward coordinator models --operator {there.operator}")
    _say(f"  twinward site status --home {there.site_home('hospital_1')}")
    try:
        while True:
            there.processes.check()
            time.sleep(0.5)
    except KeyboardInterrupt:
        _say("All processes are told to end.")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
