"""`twinward coordinator init|invite|revoke|sites|operator|trust-pki`: who belongs to a federation.

These work on the coordinator's folder, also while `twinward coordinator serve` runs on it.
"""

from __future__ import annotations

import argparse
import getpass
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from cli.words import output, parser, read
from conf.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from server.home import CoordinatorHome
    from server.members import Member, Members
    from trust.audit import AuditLog
    from trust.authority import Authority
    from trust.identity import Role

HOME = "coordinator"
TOKEN_DAYS = 7.0
_INIT = """\
example:
  twinward coordinator init --federation north-sea --host twinward.example.org

Hospitals reach the host on two ports, one to join and one for everything else; operators on a third.
"""
_INVITE = """\
example:
  twinward coordinator invite st-anna

Prints one line of text. It works once, until it expires: send it as you would send a password.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    home: CoordinatorHome
    authority: Authority
    members: Members
    audit: AuditLog
    now: datetime

    def record(self, kind: str, name: str, why: str = "", **facts: str | int) -> None:
        self.audit.append(kind, who=getpass.getuser(), why=why, name=name, **facts)


def run(name: str, words: list[str]) -> int:
    """The command; returns its exit code."""
    return _COMMANDS[name](name, words)


def _init(name: str, words: list[str]) -> int:
    from server.home import ENROLMENT_PORT, HOSPITALS_PORT, OPERATORS_PORT

    args = _parser(name, "Found a federation: its authority, signing key and settings.", _INIT)
    args.add_argument("--federation", required=True, help="name: 1 to 63 of a-z, 0-9, _ and -")
    args.add_argument("--host", required=True, help="DNS name or address under which hospitals reach you")
    args.add_argument("--bind", default="0.0.0.0", help="address to listen on; default all")  # noqa: S104  hospitals come from outside
    args.add_argument("--operator", default="founder", help="name of the first operator")
    args.add_argument("--hospitals-port", type=int, default=HOSPITALS_PORT)
    args.add_argument("--enrolment-port", type=int, default=ENROLMENT_PORT)
    args.add_argument("--operators-port", type=int, default=OPERATORS_PORT)
    args.add_argument("--health-port", type=int, default=None, help="on loopback; 0 for none")
    said = read(args, words)
    home = _founded(said)
    with _opened(home.directory) as at:
        at.record("federation_founded", at.authority.federation, operator=said.operator)
        facts = {
            "federation": at.authority.federation,
            "home": str(home.directory),
            "fingerprint": at.authority.fingerprint,
            "operator": str(home.operators / said.operator),
        }
        hosts = home.settings()
    if said.json:
        print(json.dumps(facts, indent=2))
        return 0
    print(f"Federation {facts['federation']} is founded in {home.directory}.")
    print(f"Fingerprint of its authority: {facts['fingerprint']}")
    print(f"What the operator {said.operator!r} needs lies in {facts['operator']}.")
    print(f"Hospitals must reach {hosts.enrolment} (to join) and {hosts.hospitals}.")
    print(f"Keep a copy of {home.authority} and {home.signing_key} offline: without them nobody can join.")
    print(f"Next: twinward coordinator invite SITE --home {said.home}")
    return 0


def _founded(said: argparse.Namespace) -> CoordinatorHome:
    from server.founding import found
    from server.home import HEALTH_PORT, Settings

    settings = Settings(
        federation=said.federation,
        host=said.host,
        bind=said.bind,
        hospitals_port=said.hospitals_port,
        enrolment_port=said.enrolment_port,
        operators_port=said.operators_port,
        health_port=HEALTH_PORT if said.health_port is None else said.health_port,
    )
    return found(said.home, settings, operator=said.operator, now=datetime.now(UTC))


def _invite(name: str, words: list[str]) -> int:
    from trust.invitation import Invitation

    args = _parser(name, "Print an invitation for one hospital.", _INVITE)
    args.add_argument("site", help="name under which it joins: 1 to 63 of a-z, 0-9, _ and -")
    args.add_argument("--days", type=float, default=TOKEN_DAYS, help="how long it works; default 7")
    args.add_argument("--receiver", action="store_true", help="it only receives models")
    args.add_argument("--replace", action="store_true", help="the name is known: its certificates then end")
    said = read(args, words)
    if not 0 < said.days <= 366:
        raise ConfigError(f"--days must be above 0 and at most 366; {said.days:g} came")
    role: Role = "receiver" if said.receiver else "site"
    with _opened(said.home) as at:
        expires = at.now + timedelta(days=said.days)
        secret = at.members.invite(said.site, role, expires=expires, replace=said.replace)
        at.record("site_invited", said.site, role=role, replaces=said.replace)
        token = Invitation(
            address=at.home.settings().enrolment,
            fingerprint=at.authority.fingerprint,
            site=said.site,
            role=role,
            secret=secret,
            expires=int(expires.timestamp()),
        ).token
    if said.json:
        print(json.dumps({"site": said.site, "role": role, "expires": expires.isoformat(), "token": token}))
        return 0
    print(f"An invitation for the {role} {said.site}, good once and until {expires:%Y-%m-%d %H:%M} UTC.")
    print(
        f"At the hospital: twinward site join -\nand paste this line there, which is the token:\n\n{token}\n"
    )
    return 0


def _revoke(name: str, words: list[str]) -> int:
    args = _parser(name, "End a membership at once, also on open connections, or an invitation.", "")
    args.add_argument("member", help="name of a site, receiver or operator")
    args.add_argument("--why", default="", help="reason, for the audit log")
    said = read(args, words)
    with _opened(said.home) as at:
        withdrawn = at.members.withdraw(said.member)
        member = at.members.member(said.member)
        if member is None and not withdrawn:
            at.members.end(said.member, "revoked", said.why, at.now)  # raises, and lists the names
        if member is not None and (member.state == "active" or not withdrawn):
            at.members.end(said.member, "revoked", said.why, at.now)
            at.record("member_revoked", said.member, said.why)
            withdrawn = 0
        else:
            at.record("invitation_withdrawn", said.member, said.why)
    text = "invitation withdrawn" if withdrawn else "revoked"
    print(json.dumps({"member": said.member, "done": text}) if said.json else f"{said.member}: {text}.")
    return 0


def _sites(name: str, words: list[str]) -> int:
    said = read(_parser(name, "List members, operators and open invitations.", ""), words)
    with _opened(said.home) as at:
        members, invited, now = at.members.members(), at.members.open_invitations(at.now), at.now
        own = {member.name for member in members if at.members.pki(member.name)}
    if said.json:
        print(json.dumps([_facts(member, own) for member in members] + _invited(invited), indent=2))
        return 0
    _print_members(members, invited, own, now)
    return 0


def _operator(name: str, words: list[str]) -> int:
    from server.founding import OPERATOR_DAYS, add_operator

    args = _parser(name, "Make key and certificate of an operator, who may launch plans.", "")
    args.add_argument("operator", help="name: 1 to 63 of a-z, 0-9, _ and -")
    args.add_argument("--days", type=float, default=OPERATOR_DAYS, help="how long they work; default 365")
    said = read(args, words)
    if not 0 < said.days <= 366:
        raise ConfigError(f"--days must be above 0 and at most 366; {said.days:g} came")
    with _opened(said.home) as at:
        folder = add_operator(at.home, at.authority, at.members, said.operator, days=said.days, now=at.now)
        at.record("operator_added", said.operator)
    facts = {"operator": said.operator, "folder": str(folder)}
    print(json.dumps(facts) if said.json else f"Hand over {folder}: it holds a private key.")
    return 0


def _trust_pki(name: str, words: list[str]) -> int:
    args = _parser(name, "Take certificates of a hospital's own authority, for that one site.", "")
    args.add_argument("site", help="the name that these authorities may certify, and no other")
    args.add_argument("authorities", nargs="?", type=Path, help="PEM file; the one that issues the site's")
    args.add_argument("--remove", action="store_true", help="take none any more")
    said = read(args, words)
    if said.remove == (said.authorities is not None):
        raise ConfigError("give either a PEM file or --remove")
    found = [] if said.remove else _certificates(said.authorities)
    with _opened(said.home) as at:
        at.members.trust_pki(said.site, tuple(certificate for certificate, _ in found))
        at.record("authority_trusted", said.site, count=len(found))
    prints = [shown for _, shown in found]
    if said.json:
        print(json.dumps({"site": said.site, "fingerprints": prints}))
        return 0
    print(f"{len(prints)} authorities may certify {said.site}, and no other name.")
    print("\n".join(f"  {shown}" for shown in prints))
    return 0


def _certificates(path: Path) -> list[tuple[Certificate, str]]:
    from cryptography import x509

    from trust.authority import fingerprint

    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        raise ConfigError(f"expected certificates in PEM in {path}; it cannot be read") from None
    return [(certificate, fingerprint(certificate)) for certificate in found]


@contextmanager
def _opened(directory: Path) -> Iterator[_Opened]:
    from server.home import CoordinatorHome
    from server.members import Members
    from trust.audit import AuditLog
    from trust.authority import Authority
    from trust.signing import Signer

    home = CoordinatorHome(directory)
    home.settings()  # says it well where there is none
    authority = Authority.open(home.authority)
    signer = Signer.load(home.signing_key)
    with Members(home.members) as members, AuditLog(home.audit, signer=signer) as audit:
        yield _Opened(home=home, authority=authority, members=members, audit=audit, now=datetime.now(UTC))


def _facts(member: Member, own: set[str]) -> dict[str, str]:
    facts = {key: str(value) for key, value in asdict(member).items()}
    facts["changed"] = member.changed.isoformat()
    facts["not_after"] = member.not_after.isoformat() if member.not_after else ""
    return facts | {"own_authority": "yes" if member.name in own else "no"}


def _invited(invited: dict[str, datetime]) -> list[dict[str, str]]:
    return [{"name": name, "state": "invited", "not_after": end.isoformat()} for name, end in invited.items()]


def _print_members(
    members: tuple[Member, ...], invited: dict[str, datetime], own: set[str], now: datetime
) -> None:
    from rich.table import Table

    table = Table("name", "role", "state", "since (UTC)", "certificate ends", "why", box=None)
    for entry in members:
        days = "" if entry.not_after is None else f"in {(entry.not_after - now).days} days"
        ends = days or ("own authority" if entry.name in own else "")
        table.add_row(entry.name, entry.role, entry.state, f"{entry.changed:%Y-%m-%d %H:%M}", ends, entry.why)
    for name, end in invited.items():
        table.add_row(name, "", "invited", "", f"invitation until {end:%Y-%m-%d %H:%M}", "")
    output().print(table)


def _parser(name: str, doc: str, epilog: str) -> argparse.ArgumentParser:
    args = parser(name, doc, epilog=epilog)
    args.add_argument(
        "--home", type=Path, default=Path(HOME), help=f"the coordinator's folder; default {HOME}"
    )
    args.add_argument("--json", action="store_true", help="print JSON")
    return args


_COMMANDS: dict[str, Callable[[str, list[str]], int]] = {
    "coordinator init": _init,
    "coordinator invite": _invite,
    "coordinator revoke": _revoke,
    "coordinator sites": _sites,
    "coordinator operator": _operator,
    "coordinator trust-pki": _trust_pki,
}
