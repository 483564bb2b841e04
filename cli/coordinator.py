"""`twinward coordinator serve|launch|runs|status|watch|begin|pause|resume|stop|models|promote`.

`serve` works on the coordinator's folder. All others are an operator's: they call a coordinator over
the network, with the key and certificate in the operator's folder.
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.words import OVERRIDE_DOC, parser, read, settings
from conf.errors import ConfigError

if TYPE_CHECKING:
    from server.operator import Coordinator

HOME = Path("coordinator")
OPERATOR = HOME / "operators" / "founder"
WAIT_S = 20.0
ENDS = {"done": 0, "failed": 1, "stopped": 1}
LAUNCH_GROUPS = ("task", "model", "strategy", "privacy")
LAUNCH_KEYS = ("rounds",)

_SERVE = """\
example:
  twinward coordinator serve --home coordinator

Runs until it is told to end (SIGTERM, or Ctrl-C). Killed at any instant, it goes on where it was when it
is started again.
"""
_LAUNCH = """\
examples:
  twinward coordinator launch
  twinward coordinator launch privacy.epsilon=2 rounds=30 --quorum 3 --round-deadline 30m
  twinward coordinator launch task=heart --sites alpha,beta,gamma --approval-deadline 2d

Hospitals bring their own data, so only the task, the model, the strategy, the privacy and the number of
rounds are chosen here.
"""


def run(name: str, words: list[str]) -> int:
    """The command; returns its exit code."""
    return _COMMANDS[name](name, words)


def _serve(name: str, words: list[str]) -> int:
    import logging

    from server.daemon import Daemon, serve  # before anything that imports gRPC
    from server.home import CoordinatorHome

    args = parser(name, "Run a coordinator.", epilog=_SERVE)
    args.add_argument("--home", type=Path, default=HOME, help=f"the coordinator's folder; default {HOME}")
    args.add_argument("--verbose", action="store_true", help="log what happens on connections")
    said = read(args, words)
    logging.getLogger("twinward").setLevel(logging.INFO if said.verbose else logging.WARNING)
    home = CoordinatorHome(said.home)
    hosts = home.settings()

    def ready(_: Daemon) -> None:
        print(
            f"Coordinator of {hosts.federation}: hospitals at {hosts.hospitals}, enrolment at"
            f" {hosts.enrolment}, operators at {hosts.operators}."
        )
        if hosts.health_port:
            print(f"Health and metrics: http://127.0.0.1:{hosts.health_port}/health and /metrics.")
        sys.stdout.flush()

    serve(home, on_ready=ready)
    return 0


def _launch(name: str, words: list[str]) -> int:
    args = operator_parser(name, "Offer a plan to the hospitals and train it.", f"{_LAUNCH}\n{settings()}")
    args.add_argument("settings", nargs="*", metavar="key=value", help=OVERRIDE_DOC)
    args.add_argument("--quorum", type=int, default=2, help="least number of sites; default 2")
    args.add_argument(
        "--round-deadline", type=seconds, default=3600.0, help="90s, 30m, 2h, 7d: then a quorum is enough"
    )
    args.add_argument(
        "--approval-deadline",
        type=seconds,
        default=7 * 86400.0,
        help="how long hospitals may take to approve",
    )
    args.add_argument("--sites", default="", help="names with commas between them; default all members")
    said = read(args, words)
    from conf.load import to_json

    config = to_json(configuration(said.settings))
    with _coordinator(said) as at:
        answer = at.call(
            "launch",
            config=config,
            request=secrets.token_hex(16),
            quorum=said.quorum,
            round_s=said.round_deadline,
            approval_s=said.approval_deadline,
            sites=[site for site in said.sites.split(",") if site],
        )
    found = answer["run"]
    if said.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"Launched {found['id']}. Follow it: twinward coordinator watch {found['id']}")
    return 0


def configuration(words: list[str]) -> Any:
    """The configuration of a launch; refuses what would have no effect."""
    from conf.load import load_plan

    foreign = []
    for word in words:
        key = re.split("[=.]", word.lstrip("+~"), maxsplit=1)[0]
        if key not in (*LAUNCH_GROUPS, *LAUNCH_KEYS):
            foreign.append(word)
    if foreign:
        raise ConfigError(
            f"launch takes {', '.join((*LAUNCH_GROUPS, *LAUNCH_KEYS))}; not {', '.join(foreign)}: hospitals"
            " bring their own data, and nothing is judged here"
        )
    return load_plan(words)


def _runs(name: str, words: list[str]) -> int:
    said = read(operator_parser(name, "List all runs.", ""), words)
    with _coordinator(said) as at:
        found = at.call("runs")["runs"]
    if said.json:
        print(json.dumps(found, indent=2))
    else:
        from cli.coordinator_tables import show_runs

        show_runs(found)
    return 0


def _status(name: str, words: list[str]) -> int:
    said = read(_run_parser(name, "Say how far a run is, and what each site says to it."), words)
    with _coordinator(said) as at:
        found = at.call("status", run=said.run)
    if said.json:
        print(json.dumps(found, indent=2))
    else:
        from cli.coordinator_tables import show_status

        show_status(found)
    return 0


def _watch(name: str, words: list[str]) -> int:
    """Prints each change until the run has ended; exit code 0 only if it is done."""
    from cli.coordinator_tables import line

    said = read(_run_parser(name, "Follow a run until it ends."), words)
    last = None
    with _coordinator(said) as at:
        while True:
            found = at.call("status", run=said.run)
            text = json.dumps(found) if said.json else line(found)
            shown = text if not said.json else json.dumps(found["progress"]) + found["run"]["state"]
            if shown != last:
                print(text, flush=True)
                last = shown
            if found["run"]["state"] in ENDS:
                return ENDS[found["run"]["state"]]
            at.call("wait", seen=found["changes"], timeout_s=WAIT_S)


def _mover(command: str, doc: str, done: str) -> Callable[[str, list[str]], int]:
    def move(name: str, words: list[str]) -> int:
        args = _run_parser(name, doc)
        args.add_argument("--why", default="", help="reason, for the audit log")
        said = read(args, words)
        with _coordinator(said) as at:
            found = at.call(command, run=said.run, why=said.why)["run"]
        print(json.dumps(found, indent=2) if said.json else f"{found['id']} {done}")
        return 0

    return move


def _models(name: str, words: list[str]) -> int:
    said = read(operator_parser(name, "List all models with their lineage.", ""), words)
    with _coordinator(said) as at:
        found = at.call("models")["models"]
    if said.json:
        print(json.dumps(found, indent=2))
    else:
        from cli.coordinator_tables import show_models

        show_models(found)
    return 0


def _promote(name: str, words: list[str]) -> int:
    args = operator_parser(name, "Make a model the current one of its task; members fetch it.", "")
    args.add_argument("number", type=int, help="of the model, as `twinward coordinator models` lists it")
    args.add_argument("--why", default="", help="reason, for the audit log")
    said = read(args, words)
    with _coordinator(said) as at:
        card = at.call("promote", number=said.number, why=said.why)["card"]
    text = f"Model {card['number']} of {card['run']} is the current one for {card['task']}."
    print(json.dumps(card, indent=2) if said.json else text)
    return 0


def coordinator_of(folder: Path, address: str = "") -> Coordinator:
    """A connection with the key in an operator's folder, to the address there or to another.

    Raises:
        ConfigError: it is no operator's folder.
    """
    from server.operator import Coordinator

    known, mine = _operator(folder)
    return Coordinator(address or known, mine)


def _coordinator(said: argparse.Namespace) -> Coordinator:
    return coordinator_of(said.operator, said.address)


def _operator(folder: Path) -> tuple[str, Any]:
    """Address and credentials in an operator's folder."""
    from link.tls import Credentials
    from trust.keys import read_private

    try:
        address = str(json.loads((folder / "operator.json").read_text(encoding="utf-8"))["address"])
        certificate, authority = (folder / "certificate.pem", folder / "authority.pem")
        mine = Credentials(
            key=read_private(folder / "key.pem"),
            certificate=certificate.read_bytes(),
            authorities=authority.read_bytes(),
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{folder} is no operator's folder; say where yours is with --operator. A coordinator makes one"
            " with `twinward coordinator operator NAME`"
        ) from None
    return address, mine


def seconds(text: str) -> float:
    """Seconds that a text such as 90s, 30m, 2h or 7d means; a bare number is in seconds."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a time such as 90s, 30m, 2h or 7d; {text!r} came")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def operator_parser(name: str, doc: str, epilog: str) -> argparse.ArgumentParser:
    """A parser with the words that say which operator asks which coordinator."""
    args = parser(name, doc, epilog=epilog)
    args.add_argument(
        "--operator", type=Path, default=OPERATOR, help=f"folder with your key; default {OPERATOR}"
    )
    args.add_argument("--address", default="", help="host:port instead of the one in that folder")
    args.add_argument("--json", action="store_true", help="print JSON")
    return args


def _run_parser(name: str, doc: str) -> argparse.ArgumentParser:
    args = operator_parser(name, doc, "")
    args.add_argument("run", help="id of the run, such as run-0001")
    return args


_COMMANDS: dict[str, Callable[[str, list[str]], int]] = {
    "coordinator serve": _serve,
    "coordinator launch": _launch,
    "coordinator runs": _runs,
    "coordinator status": _status,
    "coordinator watch": _watch,
    "coordinator begin": _mover(
        "begin",
        "Do not wait for more sites than a quorum to take the plan.",
        "begins with those that took it.",
    ),
    "coordinator pause": _mover("pause", "Halt a run; nothing is lost.", "is paused."),
    "coordinator resume": _mover("resume", "Go on with a run that was paused or has failed.", "goes on."),
    "coordinator stop": _mover("stop", "End a run for good.", "is stopped."),
    "coordinator models": _models,
    "coordinator promote": _promote,
}
