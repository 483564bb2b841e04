"""What `twinward doctor` looks at in a coordinator's folder."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

from cli.examination import (
    Finding,
    attempt,
    audit_log,
    certificate,
    clock,
    disk,
    private_files,
    reaches,
    versions,
)

_START = "start it: twinward coordinator serve --home"


def examine(directory: Path, *, online: bool) -> list[Finding]:
    """All findings, in the order in which one would mend them."""
    from server.home import CoordinatorHome

    home = CoordinatorHome(directory)
    settings = home.settings()
    keys = [home.directory, home.server_key, home.signing_key, *home.authority.glob("*key*")]
    findings = [*versions(), clock(None), disk(home.directory), *private_files(keys)]
    mend = "restart the coordinator: it renews its certificate when it starts"
    findings.append(
        attempt(
            "listeners' certificate",
            lambda: certificate("listeners' certificate", home.server_certificate.read_bytes(), mend=mend),
            mend,
        )
    )
    findings.append(attempt("authority", lambda: _authority(home.authority), "restore it from its backup"))
    findings.append(attempt("audit log", lambda: audit_log(home.audit), "restore it from its backup"))
    findings.append(attempt("members", lambda: _members(home.members), "restore it from its backup"))
    if online:
        start = f"{_START} {directory}; then look at firewall and coordinator.json"
        findings += [
            reaches(f"port for {who}", address, mend=start)
            for who, address in (
                ("hospitals", settings.hospitals),
                ("enrolment", settings.enrolment),
                ("operators", settings.operators),
            )
        ]
        if settings.health_port:
            findings.append(_health(settings.health_port))
    return findings


def _authority(directory: Path) -> Finding:
    from trust.authority import Authority

    authority = Authority.open(directory)
    return certificate("authority", authority.certificate_pem, mend="found the federation anew")


def _members(path: Path) -> Finding:
    from datetime import UTC, datetime

    from server.members import Members

    with Members(path) as members:
        active = [
            member for member in members.members() if member.state == "active" and member.role == "site"
        ]
        now = datetime.now(UTC)
        ended = [member.name for member in active if member.not_after and member.not_after < now]
    text = f"{len(active)} active sites"
    if ended:
        mend = f"twinward coordinator invite {ended[0]} --replace, and at the site: site join TOKEN --replace"
        return Finding(
            what="members", state="warning", found=f"{text}; certificate ended: {', '.join(ended)}", mend=mend
        )
    return Finding(what="members", state="ok", found=text)


def _health(port: int) -> Finding:
    what, url = "health", f"http://127.0.0.1:{port}/health"
    try:
        with urllib.request.urlopen(url, timeout=10.0) as answer:
            parts = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        parts = json.loads(error.read())
    except OSError as error:
        return Finding(what=what, state="broken", found=f"{url}: {error}", mend="start the coordinator")
    bad = sorted(part for part, works in parts.items() if not works)
    if bad:
        mend = "the coordinator's log says why; a full disk stops runs until there is room"
        return Finding(what=what, state="broken", found=f"not well: {', '.join(bad)}", mend=mend)
    return Finding(what=what, state="ok", found=", ".join(sorted(parts)))
