"""Who may do what with a site's patients: five roles, decided by casbin, denied unless allowed.

The site's access.toml says which users of its machine have which roles, and may take rights from a role; it
cannot add any. Users are those of the operating system, as the kernel names them to the other end of a
socket, so there is no password here that could be lost.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trust.errors import TrustError

RIGHTS: Final[Mapping[str, tuple[str, ...]]] = {
    "clinician": (
        "alerts:handle",
        "alerts:read",
        "identify",
        "observations:read",
        "quality:read",
        "twin:read",
    ),
    "researcher": ("export:make", "quality:totals"),
    "data_steward": (
        "consent:write",
        "erase",
        "export:make",
        "feeds:read",
        "identify",
        "models:fit",
        "quality:read",
        "quality:totals",
        "quarantine:read",
        "quarantine:release",
        "training:read",
    ),
    "operator": (
        "feeds:read",
        "models:fit",
        "quality:totals",
        "status:read",
        "store:backup",
        "store:check",
        "store:rotate",
    ),
    "auditor": ("access:read", "audit:read", "quality:totals", "status:read"),
}
"""What each role may do; whatever stands nowhere here, nobody may."""

EXAMPLE: Final = """\
# Who of this machine's users may do what with the patients' data: docs/access.md.
# Roles: clinician, researcher, data_steward, operator, auditor. Nobody else may do anything.
[users]
# anna = ["clinician"]
# piotr = ["data_steward", "auditor"]

# Takes rights from a role at this site.
[deny]
# researcher = ["export:make"]
"""

_MODEL: Final = """
[request_definition]
r = sub, act
[policy_definition]
p = sub, act, eft
[role_definition]
g = _, _
[policy_effect]
e = some(where (p.eft == allow)) && !some(where (p.eft == deny))
[matchers]
m = g(r.sub, p.sub) && r.act == p.act
"""
_ROLE: Final = "role:"  # so that a user who is called like a role does not have it


@dataclass(frozen=True, slots=True)
class Roles:
    """The rights of a site's users. Ask `may`; None of it changes while it is held."""

    users: Mapping[str, tuple[str, ...]]
    _enforcer: Any

    def may(self, user: str, action: str) -> bool:
        """Whether the user has a role with this right, and none that is denied it."""
        return bool(self._enforcer.enforce(user, action))


def read_roles(path: Path) -> Roles:
    """The rights that access.toml gives; a file that is not there gives none.

    Raises:
        TrustError: it cannot be read, or names a role or a right that does not exist; every fault at once.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise TrustError(f"Expected TOML in {path} ({type(error).__name__}); see docs/access.md.") from None
    return roles(data.get("users", {}), data.get("deny", {}), extra=sorted(data.keys() - {"users", "deny"}))


def roles(users: Any, deny: Any, *, extra: list[str] | None = None) -> Roles:
    """The rights that these tables give: roles by user, denied rights by role.

    Raises:
        TrustError: every fault at once.
    """
    faults = [f"unknown table [{name}]" for name in extra or []]
    faults += _faults("users", users, frozenset(RIGHTS))
    faults += _faults("deny", deny, frozenset(right for rights in RIGHTS.values() for right in rights))
    if isinstance(deny, Mapping):
        faults += [f"[deny] names {role!r}, which is no role" for role in deny if role not in RIGHTS]
    if faults:
        raise TrustError(
            f"access.toml: {'; '.join(faults)}. Roles are {', '.join(RIGHTS)}; see docs/access.md."
        )
    return Roles(users={user: tuple(held) for user, held in users.items()}, _enforcer=_enforcer(users, deny))


def _faults(table: str, given: Any, known: frozenset[str]) -> list[str]:
    if not isinstance(given, Mapping):
        return [f"[{table}] is no table"]
    faults = []
    for name, values in given.items():
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            faults.append(f"[{table}] {name}: expected a list of texts")
        else:
            faults += [f"[{table}] {name}: there is no {value!r}" for value in values if value not in known]
    return faults


def _enforcer(users: Mapping[str, list[str]], deny: Mapping[str, list[str]]) -> Any:
    try:
        import casbin
    except ModuleNotFoundError:
        raise TrustError("Roles need the package casbin: pip install 'twinward[site]'.") from None
    model = casbin.Enforcer.new_model(text=_MODEL)
    enforcer = casbin.Enforcer(model)
    for role, rights in RIGHTS.items():
        for right in rights:
            enforcer.add_policy(_ROLE + role, right, "allow")
        for right in deny.get(role, []):
            enforcer.add_policy(_ROLE + role, right, "deny")
    for user, held in users.items():
        for role in held:
            enforcer.add_grouping_policy(user, _ROLE + role)
    return enforcer
