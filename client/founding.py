"""Making a site's store with everything that stands beside it, and putting a backup in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from client.errors import ClientError
from client.feeds import EXAMPLE as FEEDS
from client.home import SiteHome
from client.sinks import EXAMPLE as ALERTS
from client.store_settings import StoreSettings, read_store_settings
from client.strongroom import make_store
from trust.audit import AuditLog
from trust.keys import write_file
from trust.roles import EXAMPLE as ACCESS
from trust.vault import KeyFile, Vault
from twin.store import Store, WrongKeyError

CODES: Final = """\
# Codes of this site that the catalogue lacks, a table for each system: docs/cleaning.md.
# `twinward site quarantine --bring-back` then takes the rows that wait for them.

# [monitor]
# "HR SpO2" = "pulse_rate"
"""


def found_store(home: SiteHome, settings: StoreSettings, *, who: str) -> None:
    """Makes store, vault and files with examples; files that are there stay as they are.

    Raises:
        ClientError: home_unreadable, if there is a store already.
        TrustError, StoreError: the lock does not work, or DuckDB is not installed.
    """
    if home.has_store:
        raise ClientError("home_unreadable", f"Expected a site without a store; {home.directory} has one.")
    home.store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if settings.key_file and not Path(settings.key_file).exists():
        Path(settings.key_file).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        KeyFile.create(Path(settings.key_file))
    with make_store(home.store, home.vault, settings.lock()) as store:
        store.presume_consent(settings.presume_consent)
    texts = {
        home.store_settings: settings.to_toml(),
        home.feeds: FEEDS,
        home.access: ACCESS,
        home.alerts: ALERTS,
        home.codes: CODES,
    }
    for path, text in texts.items():
        if not path.exists():
            write_file(path, text.encode())
    with AuditLog(home.audit) as log:
        log.append("store_made", who=who)


def restore_store(home: SiteHome, backup: Path, *, who: str) -> None:
    """Puts a backup in the place of the store, which must have been moved away; the site must not run.

    Raises:
        ClientError: home_unreadable, another process runs the site.
        StoreError, TrustError: there is a store, or none of the vault's keys opens the backup.
    """
    settings = read_store_settings(home)
    with home.lock(), AuditLog(home.audit) as log:
        for key in Vault.open(home.vault, settings.lock()).keys:
            try:
                Store.restore(backup, home.store, key).close()
            except WrongKeyError:
                continue
            log.append("store_restored", who=who)
            return
    raise WrongKeyError(f"Expected a backup under a key of {home.vault}; {backup} is under another.")
