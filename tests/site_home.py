"""A site with a store, its feeds of FHIR files, and its process at work in a thread of the test."""

from __future__ import annotations

import getpass
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from client.access import change
from client.founding import found_store
from client.home import SiteHome, SiteSettings
from client.store_settings import StoreSettings
from client.up import SiteProcess
from trust.pseudonym import Pseudonyms
from trust.roles import RIGHTS

ME = getpass.getuser()
LOINC = {"glucose": ("99504-3", "mg/dL"), "heart_rate": ("8867-4", "/min")}


def settle(home: SiteHome, *, feeds: str = "", roles: tuple[str, ...] = tuple(RIGHTS)) -> SiteHome:
    """Makes the store of a site, which this user may ask whatever these roles allow."""
    key = home.directory.parent / "key"
    found_store(home, StoreSettings(key_file=str(key), health_port=0), who="test")
    home.feeds.write_text(feeds)
    for role in roles:
        change(home, ME, role, granted=True)
    return home


def site(directory: Path, *, feeds: str = "", roles: tuple[str, ...] = tuple(RIGHTS)) -> SiteHome:
    """A site without a federation."""
    settings = SiteSettings(federation="", site="st-anna", address="", data_path="store")
    return settle(SiteHome.create(directory / "home", settings), feeds=feeds, roles=roles)


@contextmanager
def at_work(home: SiteHome, *, forecast_s: float = 60.0) -> Iterator[SiteProcess]:
    """The site's process, in a thread; it has ended when this ends."""
    process, ready = SiteProcess(home, forecast_s=forecast_s), threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            process.run(ready.set)
        except BaseException as error:
            failed.append(error)
            ready.set()
            raise

    thread = threading.Thread(target=work, name="site", daemon=True)
    thread.start()
    try:
        assert ready.wait(60.0) and not failed
        yield process
    finally:
        process.stop()
        thread.join(120.0)
        assert not thread.is_alive()


def pseudonym(home: SiteHome, identifier: str) -> str:
    """Under which the site's store knows a patient."""
    return Pseudonyms(home.secret())(identifier)


def observation(number: int, patient: str, signal: str, value: float, time: pd.Timestamp) -> str:
    """A line of a bulk export."""
    code, unit = LOINC[signal]
    return json.dumps(
        {
            "resourceType": "Observation",
            "id": f"o{number}",
            "status": "final",
            "code": {"coding": [{"system": "http://loinc.org", "code": code}]},
            "subject": {"reference": f"Patient/{patient}"},
            "effectiveDateTime": time.isoformat(),
            "valueQuantity": {"value": value, "system": "http://unitsofmeasure.org", "code": unit},
        }
    )


def feed(path: Path, **options: object) -> str:
    """An entry of feeds.toml that reads FHIR files."""
    more = "".join(f"{name} = {json.dumps(value)}\n" for name, value in options.items())
    return f'[[feed]]\nname = "ehr"\nkind = "fhir_files"\npath = "{path}"\n{more}'
