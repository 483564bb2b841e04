"""What `twinward doctor` looks at in a hospital's folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from client.home import SiteHome

_REJOIN = "ask for `twinward coordinator invite NAME --replace`, then: twinward site join TOKEN --replace"
_STALE_S = 60.0


def examine(directory: Path, *, online: bool) -> list[Finding]:
    """All findings, in the order in which one would mend them."""
    from client.agent import read_status
    from client.home import SiteHome

    home = SiteHome(directory)
    settings, status = home.settings(), read_status(home)
    connected = bool(home.is_running and status.get("connected"))
    ahead = float(str(status["clock_ahead_s"])) if connected else None
    files = [home.directory, home.key, home.secret_path, home.audit_key, home.ledger]
    findings = [*versions(), clock(ahead), disk(home.directory)]
    findings += private_files(path for path in files if path != home.ledger or path.exists())
    findings.append(
        attempt(
            "certificate",
            lambda: certificate("certificate", home.certificate.read_bytes(), mend=_REJOIN),
            _REJOIN,
        )
    )
    findings.append(attempt("policy", lambda: _policy(home), f"mend {home.policy} (docs/policy.md)"))
    if settings.role == "site":
        findings.append(
            attempt("ledger", lambda: _ledger(home), "see docs/privacy.md; do not restore an old copy")
        )
        findings.append(
            attempt("data", lambda: _data(home), "twinward data check FOLDER says more (docs/data.md)")
        )
    findings.append(attempt("audit log", lambda: audit_log(home.audit), "start the site once"))
    findings.append(_process(home, status))
    if online and not connected:
        through = settings.proxy.removeprefix("http://").rstrip("/") if settings.proxy else ""
        mend = "ask whoever runs the firewall for outbound TCP to that host and port"
        findings.append(reaches("way to the coordinator", through or settings.address, mend=mend))
    return findings


def _policy(home: SiteHome) -> Finding:
    from client.policy import read_policy

    policy = read_policy(home.policy)
    text = f"epsilon {policy.epsilon_per_plan:g} per plan, {policy.epsilon_over_life:g} over life"
    if not policy.required:
        mend = "set [privacy] required = true, unless every update may show patients"
        return Finding(what="policy", state="warning", found="plans without privacy are admitted", mend=mend)
    return Finding(what="policy", state="ok", found=text)


def _ledger(home: SiteHome) -> Finding:
    from client.ledger import Ledger
    from client.policy import read_policy

    policy = read_policy(home.policy)
    if not home.ledger.exists():
        return Finding(what="ledger", state="ok", found="nothing was released yet")
    with Ledger(home.ledger, ceiling_epsilon=policy.ceiling, delta=policy.delta) as ledger:
        spent = ledger.spent()
    text = f"epsilon {spent:.4g} of {policy.epsilon_over_life:g} spent, delta {policy.delta:g}"
    if policy.required and spent >= policy.epsilon_over_life:
        return Finding(what="ledger", state="warning", found=text, mend="no plan will be admitted any more")
    return Finding(what="ledger", state="ok", found=text)


def _data(home: SiteHome) -> Finding:
    from client import research
    from client.data import read_data, reads_store

    if reads_store(home):
        if not home.is_running:
            with research.opened(home):
                pass
        return Finding(what="data", state="ok", found="the store opens, or is open")
    site = read_data(home)
    if not len(site.patients):
        return Finding(what="data", state="broken", found="no patients", mend="see docs/data.md")
    return Finding(what="data", state="ok", found="can be read")  # no number of patients: this may be copied


def _process(home: SiteHome, status: dict[str, object]) -> Finding:
    what, ended = "process", str(status.get("ended", ""))
    if not home.is_running:
        command = "up" if home.has_store else "run"
        mend = f"start it: twinward site {command} --home {home.directory}"
        return Finding(what=what, state="warning", found="does not run", mend=mend)
    if status.get("connected"):
        age_s = time.time() - float(str(status.get("written_s", 0.0)))
        if age_s > _STALE_S:
            mend = "restart it; its log says what it was doing"
            return Finding(what=what, state="broken", found=f"wrote no status for {age_s:.0f} s", mend=mend)
        return Finding(what=what, state="ok", found="runs, and is connected")
    mend = _REJOIN if ended in ("not_admitted", "revoked") else "see the way to the coordinator"
    return Finding(what=what, state="broken", found=f"runs, but is not connected ({ended})", mend=mend)
