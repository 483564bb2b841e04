"""`twinward site up|store`: a site's process, and the making and keeping of its store."""

from __future__ import annotations

import argparse
import getpass
import json
import logging
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.site import HOME, home_parser
from cli.words import read
from conf.errors import ConfigError

if TYPE_CHECKING:
    from types import FrameType

    from client.home import SiteHome

_UP = """\
example:
  twinward site up --home /srv/twinward/site

Owns the store, reads the feeds of feeds.toml, keeps every patient's twin, raises alerts, and takes part in
the federation that the site has joined. Ends with Ctrl-C or SIGTERM within seconds; may be killed at any
instant. docs/site.md leads from an empty machine to a running twin.
"""
_STORE = """\
examples:
  twinward site store init --site st-anna --key-file /etc/twinward/st-anna.key
  twinward site store init --site st-anna --passphrase-file /run/credentials/store
  twinward site store check
  twinward site store backup
  twinward site store rotate

init makes store, vault, store.toml, feeds.toml, alerts.toml, codes.toml and access.toml; a key file that is
not there is made. Without the key the store is lost: keep a copy of it apart. backup, rotate and check ask
the running process. rotate makes backups from before unreadable, and makes a new one. restore puts a backup
in the place of a store that was moved away, without the patients who were erased since.
"""


def run(name: str, words: list[str]) -> int:
    """The command; returns its exit code."""
    return _up(name, words) if name == "site up" else _store(name, words)


def _up(name: str, words: list[str]) -> int:
    args = home_parser(name, "Run a site with its store, feeds, twins and alerts.", _UP)
    args.add_argument("--forecast-every", type=float, default=60.0, metavar="S", help="seconds; default 60")
    args.add_argument("--verbose", action="store_true", help="log what is done, not only what fails")
    said = read(args, words)
    if not said.forecast_every > 0:
        raise ConfigError(f"--forecast-every must be above 0; {said.forecast_every:g} came")
    from client.home import SiteHome
    from client.up import SiteProcess

    _log(verbose=said.verbose)
    process = SiteProcess(SiteHome(said.home), forecast_s=said.forecast_every)

    def end(_: int, __: FrameType | None) -> None:
        # In a thread: this one may hold the very lock that the stop needs.
        threading.Thread(target=process.stop, name="stop").start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)

    def ready() -> None:
        feeds = len(process.ready.feeds)
        if not said.json:
            member = "" if process.home.is_member else "; it has joined no federation"
            text = f"{process.home.settings().site} runs with {feeds} feed{'s' * (feeds != 1)}{member}."
            print(text, flush=True)

    process.run(ready)
    return 0


def _log(*, verbose: bool) -> None:
    """Every text with its time, also one that was said before: this process lives for months."""
    text = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(format=text, level=logging.WARNING, force=True)
    logging.getLogger("twinward").setLevel(logging.INFO if verbose else logging.WARNING)


def _store(name: str, words: list[str]) -> int:
    args = home_parser(name, "Make a site's store, and look after it.", _STORE)
    args.add_argument("what", choices=("init", "backup", "rotate", "check", "restore"))
    args.add_argument("backup", nargs="?", type=Path, help="of restore: the file")
    args.add_argument("--site", help="of init: name of a site that has no folder yet")
    args.add_argument("--timezone", help="of init: IANA zone of times that carry none")
    way = args.add_mutually_exclusive_group()
    way.add_argument("--key-file", type=Path, help="of init: file of the key; made if it is absent")
    way.add_argument("--passphrase-file", type=Path, help="of init: file whose first line is a passphrase")
    way.add_argument("--kms-unwrap", help="of init: command that unwraps the key, from stdin to stdout")
    args.add_argument("--kms-wrap", help="of init and rotate: command that wraps the key")
    said = read(args, words)
    from client.home import SiteHome

    home = SiteHome(said.home)
    if said.what == "init":
        return _told(_init(home, said), said)
    if said.what == "restore":
        return _told(_restore(home, said), said)
    from client.counter import ask

    return _told(dict(ask(home.door, said.what).facts), said)


def _init(home: SiteHome, said: argparse.Namespace) -> dict[str, Any]:
    from client.founding import found_store
    from client.home import SiteHome, SiteSettings
    from client.store_settings import StoreSettings

    settings = StoreSettings(
        key_file=_place(said.key_file),
        passphrase_file=_place(said.passphrase_file),
        kms_unwrap=said.kms_unwrap or "",
        kms_wrap=said.kms_wrap or "",
    )
    if not (settings.key_file or settings.passphrase_file or settings.kms_unwrap):
        raise ConfigError("say how the store is locked: --key-file, --passphrase-file or --kms-unwrap")
    if not home.settings_path.exists():
        if not said.site:
            raise ConfigError(f"{home.directory} is no site's folder yet: say its name with --site")
        SiteHome.create(
            home.directory,
            SiteSettings(
                federation="", site=said.site, address="", timezone=said.timezone, data_path="store"
            ),
        )
    found_store(home, settings, who=getpass.getuser())
    return {
        "home": str(home.directory),
        "store": str(home.store),
        "key": settings.key_file or settings.passphrase_file or "kms",
        "next": f"twinward site access grant {getpass.getuser()} clinician --home {said.home or HOME}",
    }


def _restore(home: SiteHome, said: argparse.Namespace) -> dict[str, Any]:
    if said.backup is None:
        raise ConfigError("say which backup: twinward site store restore FILE")
    from client.founding import restore_store

    restore_store(home, said.backup, who=getpass.getuser())
    return {"store": str(home.store), "from": str(said.backup)}


def _place(path: Path | None) -> str:
    return "" if path is None else str(path.expanduser().absolute())


def _told(facts: dict[str, Any], said: argparse.Namespace) -> int:
    if said.json:
        print(json.dumps(facts, indent=2))
        return 0
    for key, value in facts.items():
        print(f"{key.replace('_', ' '):<14} {value}")
    return 0
