"""store.toml: how a site's store is unlocked, and how the process that owns it works."""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Final

from client.errors import ClientError
from client.home import SiteHome
from trust.vault import KeyFile, Kms, Lock, Passphrase
from twin.store.store import MEMORY

HEALTH_PORT: Final = 7447
_KINDS: Final = {"str": str, "bool": bool, "int": int}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """What store.toml says. Exactly one of the three ways to unlock the store is named.

    Attributes:
        key_file: file of 32 random bytes; keep it on another disk than the store.
        passphrase_file: file whose first line is a passphrase.
        kms_unwrap, kms_wrap: commands of a key management (trust.vault.Kms).
        presume_consent: whether patients without a word on record are in research; not by default.
        memory: that the database may use.
        health_port: on loopback, for watchers of this machine; 0 is none.
        group: users of it may reach the door; by default only the user who runs the process.
    """

    key_file: str = ""
    passphrase_file: str = ""
    kms_unwrap: str = ""
    kms_wrap: str = ""
    presume_consent: bool = False
    memory: str = MEMORY
    health_port: int = HEALTH_PORT
    group: str = ""

    def lock(self) -> Lock:
        """What unlocks the vault.

        Raises:
            ClientError: the passphrase file cannot be read.
        """
        if self.key_file:
            return KeyFile(path=Path(self.key_file).expanduser())
        if self.kms_unwrap:
            return Kms(unwrap_command=self.kms_unwrap, wrap_command=self.kms_wrap)
        return Passphrase(text=_first_line(Path(self.passphrase_file).expanduser()))

    def to_toml(self) -> str:
        """The file's text, with what each key is for."""
        ways = [
            (name, getattr(self, name))
            for name in ("key_file", "passphrase_file", "kms_unwrap", "kms_wrap")
            if getattr(self, name)
        ]
        lines = ["# How the store is unlocked, and how its process works: docs/site.md.", ""]
        lines += [f"{name} = {_text(value)}" for name, value in ways]
        lines += ["", "# Whether patients who said nothing are in research. Ask your law first."]
        lines += [f"presume_consent = {str(self.presume_consent).lower()}"]
        lines += ["", "# Memory of the database; health and metrics on 127.0.0.1 (0 is none)."]
        lines += [f"memory = {_text(self.memory)}", f"health_port = {self.health_port}"]
        lines += ["", "# Whose members may ask the process; empty: only the user who runs it."]
        return "\n".join([*lines, f"group = {_text(self.group)}", ""])


def read_store_settings(home: SiteHome) -> StoreSettings:
    """What store.toml says.

    Raises:
        ClientError: home_unreadable, with every fault.
    """
    path = home.store_settings
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _unreadable(
            f"{home.directory} has no store: make one with `twinward site store init`."
        ) from None
    except (OSError, ValueError) as error:
        raise _unreadable(f"Expected TOML in {path} ({type(error).__name__}); see docs/site.md.") from None
    faults = [fault for name, value in data.items() for fault in _faults(name, value)]
    ways = [name for name in ("key_file", "passphrase_file", "kms_unwrap") if data.get(name)]
    if len(ways) != 1:
        faults.append("expected one of key_file, passphrase_file and kms_unwrap")
    if faults:
        raise _unreadable(f"{path}: {'; '.join(faults)}. See docs/site.md.")
    return StoreSettings(**data)


def _faults(name: str, value: Any) -> list[str]:
    known = {entry.name: str(entry.type) for entry in fields(StoreSettings) if entry.default is not MISSING}
    if name not in known:
        return [f"unknown key {name!r}; allowed are {', '.join(known)}"]
    if type(value) is not _KINDS[known[name]]:
        return [f"{name}: expected {known[name]}, not {type(value).__name__}"]
    if isinstance(value, int) and not 0 <= value < 65536:
        return ["health_port: expected 0 to 65535"]
    return []


def _first_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise _unreadable(f"Expected a passphrase in {path} ({type(error).__name__}).") from None
    return lines[0] if lines else ""


def _text(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _unreadable(text: str) -> ClientError:
    return ClientError("home_unreadable", text)
