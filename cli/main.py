"""Entry of the `twinward` command: finds the command, and turns errors into messages and exit codes.

Exit codes: 0 it succeeded; 1 it failed (data, a run); 2 the command or configuration is wrong, nothing
was done; 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from conf.errors import ConfigError, TwinwardError
from conf.validation import suggestion

# command words → module of cli/ with `run(words) -> exit code`; imported only when it is called.
COMMANDS: dict[str, tuple[str, str]] = {
    "simulate": ("cli.simulate", "train a federation of simulated hospitals and write a report"),
    "demo": ("cli.demo", "found a federation of processes on this machine, and run a plan"),
    "doctor": ("cli.doctor", "examine a coordinator's or a site's folder, and say how to mend it"),
    "compare": ("cli.compare", "lay finished runs beside each other: accuracy against its price"),
    "evaluate": ("cli.evaluate", "judge a trained model on data that it has never met"),
    "data check": ("cli.data", "say what is wrong with a federation folder and what it holds"),
    "data convert": ("cli.data", "turn published recordings into a federation folder"),
    "privacy plan": ("cli.privacy", "say before training what a schedule costs and who can be heard"),
    "coordinator init": ("cli.membership", "found a federation: authority, signing key, first operator"),
    "coordinator invite": ("cli.membership", "print an invitation for one hospital"),
    "coordinator sites": ("cli.membership", "list members, operators and open invitations"),
    "coordinator revoke": ("cli.membership", "end a membership at once, or an invitation"),
    "coordinator operator": ("cli.membership", "make key and certificate of an operator"),
    "coordinator trust-pki": ("cli.membership", "take certificates of a hospital's own authority"),
    "coordinator serve": ("cli.coordinator", "run a coordinator"),
    "coordinator launch": ("cli.coordinator", "offer a plan to the hospitals and train it"),
    "coordinator runs": ("cli.coordinator", "list all runs"),
    "coordinator status": ("cli.coordinator", "say how far a run is, and what each site says to it"),
    "coordinator watch": ("cli.coordinator", "follow a run until it ends"),
    "coordinator begin": ("cli.coordinator", "begin a run with the sites that have taken its plan"),
    "coordinator pause": ("cli.coordinator", "halt a run; nothing is lost"),
    "coordinator resume": ("cli.coordinator", "go on with a run that was paused or has failed"),
    "coordinator stop": ("cli.coordinator", "end a run for good"),
    "coordinator ask": ("cli.asking", "ask hospitals how many patients are so and so, with privacy"),
    "coordinator questions": ("cli.asking", "list questions, show the answers to one, withdraw one"),
    "coordinator models": ("cli.coordinator", "list all models with their lineage"),
    "coordinator promote": ("cli.coordinator", "make a model the one that members fetch"),
    "site join": ("cli.joining", "join a federation with an invitation"),
    "site run": ("cli.site", "run a hospital's process"),
    "site up": ("cli.store", "run a hospital's feeds, store, twins, alerts and federation in one process"),
    "site store": ("cli.store", "make a site's encrypted store, back it up, rotate its key"),
    "site feeds": ("cli.stewards", "list a site's feeds, or check feeds.toml"),
    "site broker": ("cli.broker", "start a Mosquitto on this machine to try MQTT feeds with"),
    "site quality": ("cli.stewards", "say what became of every row that feeds delivered"),
    "site quarantine": ("cli.stewards", "list unknown codes and units, bring rows back"),
    "site twin": ("cli.twins", "print a patient's twin"),
    "site alerts": ("cli.twins", "list alerts, acknowledge or snooze one"),
    "site identify": ("cli.twins", "give the pseudonym of a hospital's own identifier"),
    "site consent": ("cli.stewards", "record whether patients are in research"),
    "site erase": ("cli.stewards", "erase a patient everywhere"),
    "site export": ("cli.stewards", "write a de-identified folder for research"),
    "site access": ("cli.stewards", "list who may do what; give or take a role"),
    "site status": ("cli.site", "say how a site stands"),
    "site plans": ("cli.plans", "list the plans that were offered"),
    "site rehearse": ("cli.plans", "run a plan without sending: what would leave, what it would cost"),
    "site approve": ("cli.plans", "let a plan run"),
    "site refuse": ("cli.plans", "let a plan not run, or no further round of it"),
    "site personalise": ("cli.site", "fit the site's and each patient's model from the federation's"),
    "site plugins": ("cli.site", "list plug-ins with the sums that the policy pins"),
    "site leave": ("cli.joining", "leave the federation; key and certificate are destroyed"),
    "site budget": ("cli.ledger", "say what a site has spent of its privacy budget"),
    "site ledger": ("cli.ledger", "go on after a site's privacy ledger was lost"),
    "audit verify": ("cli.audit", "find any change, cut or reordering in an audit log"),
    "audit show": ("cli.audit", "print an audit log's newest records"),
    "audit heads": ("cli.audit", "print the heads of other logs that are held"),
    "audit accept": ("cli.audit", "accept that a member's log is another than before"),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # nobody is told that a hospital trains
    import_module("link")  # before anything imports gRPC: it leaves TLS 1.3 alone
    words = list(sys.argv[1:] if words is None else words)
    _log_to_stderr()
    try:
        return _dispatch(words)
    except TwinwardError as error:
        print(f"twinward: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print("twinward: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a folder that cannot be written, a full disk
        where = f"{error.filename}: " if error.filename else ""
        print(f"twinward: {where}{error.strerror or error}. Is run.dir a place to write to?", file=sys.stderr)
        return 1


def usage() -> str:
    """The text of `twinward --help`."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {doc}" for name, (_, doc) in COMMANDS.items())
    return (
        "usage: twinward COMMAND ...\n\n"
        "A federated learning network of hospital digital twins.\n\n"
        f"commands:\n{listed}\n\n"
        "A run that works, from nothing to a report, in some minutes:\n  twinward simulate\n\n"
        "More of a command: twinward COMMAND --help. Version: twinward --version."
    )


def _log_to_stderr() -> None:
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(Once())


class Once(logging.Filter):
    """Lets a text through the first time only: a run trains many federations, and each would repeat it."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this text is new."""
        text = record.getMessage()
        new = text not in self._said
        self._said.add(text)
        return new


def _dispatch(words: list[str]) -> int:
    if words in (["--version"], ["-V"]):
        print(f"twinward {_version()}")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            run: Callable[[str, list[str]], int] = import_module(COMMANDS[name][0]).run
            return run(name, words[length:])
    return _unknown(words)


def _unknown(words: list[str]) -> int:
    family = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if family and words[1:2] in (["-h"], ["--help"], []):
        width = max(map(len, family))
        print(
            "\n".join(["commands:", *(f"  twinward {name:<{width}}  {COMMANDS[name][1]}" for name in family)])
        )
        return 0 if len(words) > 1 else 2
    name = " ".join(words[: 2 if family else 1])
    raise ConfigError(
        f"there is no command {name!r}{suggestion(name, COMMANDS)}\nAll commands: twinward --help"
    )


def _version() -> str:
    try:
        return version("twinward")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
