"""What `twinward doctor` looks at on both sides: files, certificates, disk, clock, versions, sockets."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

from conf.errors import TwinwardError

State = Literal["ok", "warning", "broken"]

FREE_WARNING_BYTES: Final = 1 << 30
FREE_BROKEN_BYTES: Final = 64 << 20
DAYS_WARNING: Final = 14.0
CLOCK_WARNING_S: Final = 300.0
CONNECT_S: Final = 10.0
_BUILT_YEAR: Final = 2026
_LIBRARIES: Final = {"flwr": "1.41.0", "dp-accounting": "0.6.0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: was looked at. found: there.
        mend: what to do; empty if all is well.
    """

    what: str
    state: State
    found: str
    mend: str = ""


def attempt(what: str, work: Callable[[], Finding], mend: str) -> Finding:
    """What `work` finds; an error of ours is a finding too."""
    try:
        return work()
    except TwinwardError as error:
        return Finding(what=what, state="broken", found=str(error), mend=mend)
    except OSError as error:
        return Finding(what=what, state="broken", found=f"{error.strerror or error}", mend=mend)


def private_files(paths: Iterable[Path]) -> list[Finding]:
    """Whether each file, and the folder that holds it, is its owner's alone, and the owner is this user."""
    return [_private(path) for path in paths]


def _private(path: Path) -> Finding:
    what = f"permissions of {path.name}"
    try:
        found = path.stat()
    except FileNotFoundError:
        mend = "restore it from its backup, or found or join anew (docs/trust.md)"
        return Finding(what=what, state="broken", found="the file is absent", mend=mend)
    except PermissionError:
        mend = "run this command as the user who runs the service"
        return Finding(what=what, state="broken", found="not readable by this user", mend=mend)
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        mend = f"chmod {'700' if path.is_dir() else '600'} {path}; if others use this machine, take new keys"
        return Finding(what=what, state="broken", found=f"mode {mode:o}: others can read it", mend=mend)
    if found.st_uid != os.getuid():
        mend = f"chown it to the user who runs the service, or run this command as that user: {path}"
        return Finding(what=what, state="warning", found=f"owned by user {found.st_uid}", mend=mend)
    return Finding(what=what, state="ok", found=f"mode {mode:o}")


def certificate(what: str, pem: bytes, *, mend: str, now: datetime | None = None) -> Finding:
    """Whether a certificate is good now, and its days left."""
    from trust.identity import load_certificate

    now, found = now or datetime.now(UTC), load_certificate(pem)
    days = (found.not_valid_after_utc - now).total_seconds() / 86400.0
    if now < found.not_valid_before_utc:
        text = f"good from {found.not_valid_before_utc:%Y-%m-%d} on"
        return Finding(what=what, state="broken", found=text, mend="set this machine's clock")
    if days <= 0:
        text = f"ended on {found.not_valid_after_utc:%Y-%m-%d}"
        return Finding(what=what, state="broken", found=text, mend=mend)
    state: State = "warning" if days < DAYS_WARNING else "ok"
    return Finding(what=what, state=state, found=f"{days:.0f} days left", mend=mend if state != "ok" else "")


def disk(home: Path) -> Finding:
    """Whether there is room on the file system of a folder."""
    free = shutil.disk_usage(home).free
    text = f"{free / 2**30:.1f} GiB free"
    mend = f"make room on the file system of {home}: without it nothing is released or committed"
    if free < FREE_BROKEN_BYTES:
        return Finding(what="disk", state="broken", found=text, mend=mend)
    state: State = "warning" if free < FREE_WARNING_BYTES else "ok"
    return Finding(what="disk", state=state, found=text, mend=mend if state != "ok" else "")


def clock(ahead_s: float | None) -> Finding:
    """Whether this machine's clock is possible, and near that of the other side.

    Args:
        ahead_s: of the other side's clock; None if it is not known.
    """
    now, mend = datetime.now(UTC), "set the clock, best with NTP (timedatectl set-ntp true)"
    if now.year < _BUILT_YEAR:
        return Finding(what="clock", state="broken", found=f"says {now:%Y-%m-%d}", mend=mend)
    if ahead_s is None:
        text = f"{now:%Y-%m-%d %H:%M:%S} UTC; the other side's is not known"
        return Finding(what="clock", state="ok", found=text)
    text = f"{ahead_s:+.0f} s from the coordinator's"
    state: State = "warning" if abs(ahead_s) > CLOCK_WARNING_S else "ok"
    return Finding(what="clock", state=state, found=text, mend=mend if state != "ok" else "")


def versions() -> list[Finding]:
    """Python, this program, and the libraries whose exact version matters."""
    from link import TLS13_ONLY
    from trust.plan import RELEASE

    python = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    findings = [
        Finding(
            what="versions", state="ok" if good else "broken", found=f"twinward {RELEASE}, Python {python}"
        )
    ]
    for name, wanted in _LIBRARIES.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "none"
        mend = "" if found == wanted else "install with constraints.txt"
        state: State = "ok" if found == wanted else "broken"
        findings.append(Finding(what=name, state=state, found=found, mend=mend))
    mend = "" if TLS13_ONLY else "unset GRPC_SSL_CIPHER_SUITES, and import link before grpc"
    state = "ok" if TLS13_ONLY else "broken"
    findings.append(
        Finding(what="TLS", state=state, found="1.3 only" if TLS13_ONLY else "1.2 possible", mend=mend)
    )
    return findings


def reaches(what: str, address: str, *, mend: str, state: State = "broken") -> Finding:
    """Whether a TCP connection to host:port opens."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_S):
            return Finding(what=what, state="ok", found=f"{address} answers")
    except OSError as error:
        return Finding(what=what, state=state, found=f"{address}: {error.strerror or error}", mend=mend)


def audit_log(path: Path) -> Finding:
    """Whether the audit log is whole."""
    from trust.verification import verify

    faults = verify(path)
    if not faults:
        return Finding(what="audit log", state="ok", found="whole")
    mend = f"stop the service, keep a copy of the file, and see docs/audit.md: twinward audit verify {path}"
    return Finding(what="audit log", state="broken", found=f"{len(faults)} faults: {faults[0]}", mend=mend)
