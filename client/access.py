"""A site's access.toml as it is now, and the record of each change to it."""

from __future__ import annotations

import threading
from pathlib import Path

from client.home import SiteHome
from trust.audit import AuditLog
from trust.digest import sha256
from trust.errors import TrustError
from trust.keys import write_file
from trust.roles import EXAMPLE, RIGHTS, Roles, read_roles


class Access:
    """Gives the rights that access.toml gives; other bytes than before are recorded first."""

    def __init__(self, home: SiteHome, log: AuditLog) -> None:
        self._home, self._log, self._lock = home, log, threading.Lock()
        self._digest, self._roles = "", read_roles(home.access)

    def roles(self) -> Roles:
        """The rights as they are now.

        Raises:
            TrustError: the file cannot be read, or the log not written; nobody may do anything then.
        """
        with self._lock:
            digest = sha256(_bytes(self._home.access))
            if digest != self._digest:
                found = read_roles(self._home.access)
                note_access(self._log, digest, who=self._home.settings().site)
                self._digest, self._roles = digest, found
            return self._roles


def note_access(log: AuditLog, digest: str, *, who: str) -> None:
    """Records the SHA-256 of access.toml with the one before, if it is another."""
    last = log.last("access_changed")
    before = "" if last is None else str(last.facts["roles"])
    if digest != before:
        log.append("access_changed", who=who, roles=digest, before=before)


def change(home: SiteHome, user: str, role: str, *, granted: bool) -> dict[str, list[str]]:
    """Writes access.toml with a role given to a user, or taken; the users then, with their roles.

    Raises:
        TrustError: there is no such role, or the file does not hold.
    """
    if role not in RIGHTS:
        raise TrustError(f"Expected one of the roles {', '.join(RIGHTS)}; {role[:40]!r} came.")
    before = read_roles(home.access)
    users = {name: list(held) for name, held in before.users.items()}
    held = users.setdefault(user, [])
    if granted and role not in held:
        held.append(role)
    if not granted and role in held:
        held.remove(role)
    users = {name: roles for name, roles in sorted(users.items()) if roles}
    write_file(home.access, _text(users, _denied(home.access)).encode(), replace=True)
    return users


def _text(users: dict[str, list[str]], denied: str) -> str:
    head = EXAMPLE.partition("[users]")[0]
    lines = [f"{_quoted(name)} = [{', '.join(map(_quoted, roles))}]" for name, roles in users.items()]
    return f"{head}[users]\n" + "\n".join(lines) + f"\n\n{denied}"


def _denied(path: Path) -> str:
    """What stands from [deny] on, as it is."""
    text = path.read_text(encoding="utf-8") if path.exists() else EXAMPLE
    return "[deny]" + text.partition("\n[deny]")[2] if "\n[deny]" in text else "[deny]\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise TrustError(f"Expected to read {path} ({error.strerror}).") from None
