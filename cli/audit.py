"""`twinward audit verify|show|heads|accept`: read an audit log, and find any change to it."""

from __future__ import annotations

import argparse
import getpass
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cli.words import output, parser, read
from conf.errors import ConfigError

if TYPE_CHECKING:
    from trust.heads import SignedHead

_VERIFY = """\
example:
  twinward audit verify site/audit.sqlite
  twinward audit verify site/audit.sqlite --heads from-the-coordinator.json

The first finds any change, cut or reordering in a log. A log that was written anew as a whole is found by
the second alone, with heads that the other side holds: there, `twinward audit heads` prints them.
"""
_HEADS = """\
example:
  twinward audit heads coordinator/audit.sqlite --peer st-anna > from-the-coordinator.json

Prints the signed heads of other logs that this log's owner holds.
"""
_ACCEPT = """\
example:
  twinward audit accept coordinator/audit.sqlite st-anna --reason "their server was stolen"

Forgets the heads exchanged with one member, after people found out why its log is another or went back.
That stands in the log. Restart the process that uses the log.
"""


def run(name: str, words: list[str]) -> int:
    """The command; returns its exit code."""
    return {
        "audit verify": _verify,
        "audit show": _show,
        "audit heads": _heads,
        "audit accept": _accept,
    }[name](name, words)


def _verify(name: str, words: list[str]) -> int:
    args = _parser(name, "Find every change, cut or reordering in an audit log.", _VERIFY)
    args.add_argument("--heads", type=Path, help="heads of this log that others hold (JSON)")
    args.add_argument("--key", help="public key of the log's owner; only its heads count then")
    args.add_argument("--json", action="store_true", help="print JSON")
    said = read(args, words)
    from trust.verification import verify

    heads = [] if said.heads is None else _read_heads(said.heads)
    if said.key is not None:
        heads = [head for head in heads if head.key == said.key]
    if said.heads is not None and not heads:
        raise ConfigError(f"expected heads of this log in {said.heads}; there are none")
    faults = verify(said.path, heads=heads)
    if said.json:
        print(json.dumps({"path": str(said.path), "heads": len(heads), "faults": faults}, indent=2))
    elif faults:
        print("\n".join([f"{said.path} is not what it was:", *(f"  {fault}" for fault in faults)]))
    else:
        against = f", and with {len(heads)} heads that others hold" if heads else ""
        print(f"{said.path} agrees with its own tree{against}.")
    return 1 if faults else 0


def _show(name: str, words: list[str]) -> int:
    args = _parser(name, "Print the newest records of an audit log.", "")
    args.add_argument("--last", type=int, default=20, help="how many; default 20, 0 for all")
    args.add_argument("--kind", action="append", default=[], help="only of this kind; may be repeated")
    args.add_argument("--json", action="store_true", help="print one JSON text a line")
    said = read(args, words)
    from trust.audit import AuditLog

    with AuditLog(_existing(said.path)) as log:
        records = list(log.records(kinds=said.kind))[-said.last :]
    for record in records:
        if said.json:
            print(json.dumps(asdict(record)))
            continue
        facts = " ".join(f"{key}={value}" for key, value in record.facts.items())
        why = f"  ({record.why})" if record.why else ""
        print(f"{record.number:>6}  {record.time[:19]}  {record.kind:<20} {record.who}  {facts}{why}")
    return 0


def _heads(name: str, words: list[str]) -> int:
    args = _parser(name, "Print the heads of other logs that are held here, as JSON.", _HEADS)
    args.add_argument("--peer", help="of this member only")
    said = read(args, words)
    from trust.audit import AuditLog

    with AuditLog(_existing(said.path)) as log:
        held = [(peer, head) for whose, peer, head in log.all_held() if whose == "peer"]
    if said.peer is not None:
        held = [(peer, head) for peer, head in held if peer == said.peer]
        if not held:
            raise ConfigError(f"no head of the log of {said.peer!r} is held in {said.path}")
    print(json.dumps([{"peer": peer, **head.to_dict()} for peer, head in held], indent=2))
    return 0


def _accept(name: str, words: list[str]) -> int:
    args = _parser(name, "Accept that the log of a member is another than before.", _ACCEPT)
    args.add_argument("peer", help="the member, or `coordinator`")
    args.add_argument("--reason", required=True, help="what happened; stands in the log")
    said = read(args, words)
    from trust.audit import AuditLog

    with AuditLog(_existing(said.path)) as log:
        count = log.release(said.peer, who=getpass.getuser(), why=said.reason)
    output().print(f"{count} heads exchanged with {said.peer} are forgotten.", highlight=False)
    return 0


def _existing(path: Path) -> Path:
    """The path of a file that exists: reading a log must not begin one."""
    if not path.is_file():
        raise ConfigError(f"expected an audit log at {path}; there is no file")
    return path


def _read_heads(path: Path) -> list[SignedHead]:
    from trust.errors import TrustError
    from trust.heads import SignedHead

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        entries = data if isinstance(data, list) else [data]
        return [
            SignedHead.from_dict({key: value for key, value in entry.items() if key != "peer"})
            for entry in entries
        ]
    except (OSError, ValueError, AttributeError, TrustError):
        raise ConfigError(f"expected what `twinward audit heads` prints in {path}") from None


def _parser(name: str, doc: str, epilog: str) -> argparse.ArgumentParser:
    args = parser(name, doc, epilog=epilog)
    args.add_argument("path", type=Path, help="the file, audit.sqlite in the folder of a site or coordinator")
    return args
