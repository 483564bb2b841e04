"""`twinward site join` and `twinward site leave`: a hospital becomes a member, and stops being one."""

from __future__ import annotations

import getpass
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cli.words import parser, read
from conf.errors import ConfigError

if TYPE_CHECKING:
    from client.home import SiteHome
    from client.joining import Joined, OwnCertificate

HOME = "site"
_JOIN = """\
example:
  twinward site join TOKEN --data /srv/twinward/data

TOKEN is the line that the coordinator sent; - reads it from standard input, so that no other user of
this machine sees it. Nothing is sent before the coordinator has shown the authority that it names.
"""
_LEAVE = """\
Key and certificate are destroyed. Ledger, secret and audit log stay: what was released stays released.
"""


def run(name: str, words: list[str]) -> int:
    """The command; returns its exit code."""
    return _join(name, words) if name == "site join" else _leave(name, words)


def _join(name: str, words: list[str]) -> int:
    args = parser(name, "Join a federation with the invitation that its coordinator sent.", epilog=_JOIN)
    args.add_argument("token", help="the invitation, or - for standard input")
    args.add_argument("--home", type=Path, default=Path(HOME), help=f"the site's folder; default {HOME}")
    args.add_argument("--data", type=Path, help="folder that holds the site's observations and patients")
    args.add_argument("--timezone", help="IANA zone of times in the data that carry none")
    args.add_argument("--proxy", help="http://host:port that tunnels; default: the environment's https_proxy")
    args.add_argument("--replace", action="store_true", help="replace the certificate that is there")
    args.add_argument("--key", type=Path, help="of your own authority, with --certificate (EC P-256, PEM)")
    args.add_argument("--certificate", type=Path, help="of your own authority, for that key (PEM)")
    args.add_argument("--json", action="store_true", help="print JSON")
    said = read(args, words)
    from client.joining import join

    joined = join(
        sys.stdin.readline() if said.token == "-" else said.token,  # noqa: S105  not a password
        said.home,
        data_path=None if said.data is None else str(said.data.expanduser().absolute()),
        timezone=said.timezone,
        proxy=said.proxy,
        own=_own(said.key, said.certificate),
        replace=said.replace,
    )
    _record(joined.home, "site_joined", joined.identity.name)
    _print(joined, as_json=said.json)
    return 0


def _leave(name: str, words: list[str]) -> int:
    args = parser(name, "Leave the federation.", epilog=_LEAVE)
    args.add_argument("--home", type=Path, default=Path(HOME), help=f"the site's folder; default {HOME}")
    args.add_argument("--why", default="", help="reason, for the coordinator and the audit logs")
    args.add_argument("--offline", action="store_true", help="do not tell the coordinator")
    said = read(args, words)
    from client.calling import call_once
    from client.home import SiteHome
    from client.joining import certificate_of, leave

    home = SiteHome(said.home)
    identity = certificate_of(home)[0]
    with home.lock():  # no site runs that would still need its key
        told = leave(home, None if said.offline else partial(call_once, home), said.why)
        _record(home, "site_left", identity.name, said.why)
    print(f"{identity.name} has left {identity.federation}; its key and certificate are destroyed.")
    if not told:
        print(f"The coordinator does not know: ask it for `twinward coordinator revoke {identity.name}`.")
    return 0


def _own(key: Path | None, certificate: Path | None) -> OwnCertificate | None:
    if key is None and certificate is None:
        return None
    if key is None or certificate is None:
        raise ConfigError("--key and --certificate go together")
    from client.joining import OwnCertificate
    from trust.keys import read_private

    try:
        return OwnCertificate(key=read_private(key), certificate=certificate.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from None


def _record(home: SiteHome, kind: str, name: str, why: str = "") -> None:
    from trust.audit import AuditLog

    with AuditLog(home.audit) as audit:
        audit.append(kind, who=getpass.getuser(), why=why, name=name)


def _print(joined: Joined, *, as_json: bool) -> None:
    settings = joined.home.settings()
    if as_json:
        facts = {
            "identity": joined.identity.uri,
            "home": str(joined.home.directory),
            "address": settings.address,
            "not_after": joined.not_after.isoformat(),
            "clock_ahead_s": joined.skew_s,
        }
        print(json.dumps(facts, indent=2))
        return
    print(f"{joined.identity.name} is a {joined.identity.role} of {joined.identity.federation}.")
    print(
        f"Everything lies in {joined.home.directory}; the certificate is good until"
        f" {joined.not_after:%Y-%m-%d}."
    )
    if joined.clock_is_off:
        print(f"This machine's clock is {joined.skew_s:+d} s from the coordinator's: set it, or use NTP.")
    print(f"Next: read {joined.home.policy}, which says what the site takes; then: twinward site run")
