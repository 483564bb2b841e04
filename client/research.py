"""What training reads of a site's store: in the process that owns it, through its door, or by itself.

For research only patients who consent at that moment are in it. The audit log has it first.
"""

from __future__ import annotations

import getpass
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import pandas as pd

from client.counter import Answer, ask
from client.errors import ClientError
from client.home import SiteHome
from client.records import AuditRecords
from client.store_settings import read_store_settings
from client.strongroom import open_store
from twin.site import Quality, Site
from twin.store import Store
from twin.store.reading import Purpose

RIGHT: Final = "training:read"
FRESH_S: Final = 900.0
"""Training sees new observations within this time; a patient's word at once."""


class Reader(Protocol):
    """Who owns a store in this process (client.custodian.Custodian)."""

    @property
    def words(self) -> int:
        """Counts consents and erasures."""
        ...

    def site(self, name: str, purpose: Purpose) -> Site:
        """The patients whom the purpose allows."""
        ...


_OWNED: dict[str, Reader] = {}
_LOCK: Final = threading.Lock()


@contextmanager
def owned(home: SiteHome, custodian: Reader, *, forget: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within it this process owns the home's store, and reads it without its door."""
    with _LOCK:
        _OWNED[str(home.directory)] = custodian
    try:
        yield
    finally:
        with _LOCK:
            del _OWNED[str(home.directory)]
        forget()


@dataclass(frozen=True, slots=True)
class _Opened:
    store: Store
    words: int = 0

    def site(self, name: str, purpose: Purpose) -> Site:
        return self.store.site(name, purpose=purpose)


@contextmanager
def opened(home: SiteHome) -> Iterator[Store]:
    """The store of a home that no process runs, owned by this one."""
    settings = read_store_settings(home)
    with open_store(home.store, home.vault, settings.lock()) as store, owned(home, _Opened(store)):
        yield store


def stamp(home: SiteHome) -> tuple[object, ...]:
    """Another one whenever what research may read must be read anew."""
    custodian = _OWNED.get(str(home.directory))
    words = 0 if custodian is None else custodian.words
    return (words, custodian is None, int(time.monotonic() // FRESH_S))


def site(home: SiteHome, purpose: Purpose = "research") -> Site:
    """The patients whom the purpose allows, with their observations.

    Raises:
        ClientError: too_few_patients, if there is nobody; access_refused, unavailable.
        StoreError, TrustError: the store cannot be opened.
    """
    name = home.settings().site
    custodian = _OWNED.get(str(home.directory))
    if custodian is not None:
        _record(home, name, purpose)
        found = custodian.site(name, purpose)
    elif home.is_running:
        if purpose != "research":
            raise ClientError("unavailable", "The site's process fits its own models, each night.")
        found = site_of(name, ask(home.door, "training"))
    else:
        with opened(home) as store:
            _record(home, getpass.getuser(), purpose)
            found = store.site(name, purpose=purpose)
    if found.patients.empty and purpose == "research":
        raise ClientError(
            "too_few_patients",
            "Nobody in the store consents to research: `twinward site consent`, docs/access.md.",
        )
    return found


def answer_of(found: Site) -> Answer:
    """A site as it goes through the door."""
    columns: dict[str, Any] = {}
    for name, values in found.patients.items():
        number = values.dtype.kind == "f"
        plain = [None if pd.isna(value) else float(value) if number else str(value) for value in values]
        columns[str(name)] = {"number": number, "values": plain}
    facts = {"patients": list(map(str, found.patients.index)), "columns": columns, "steps": found.step_min}
    return Answer(facts=facts, table=found.observations)


def site_of(name: str, answer: Answer) -> Site:
    """What `answer_of` sent."""
    facts, rows = answer.facts, answer.table
    if rows is None:
        raise ClientError("malformed", "Expected observations; the site's process sent none.")
    made = {
        column: pd.Series(
            [np.nan if value is None else value for value in held["values"]],
            index=facts["patients"],
            dtype="float64" if held["number"] else "str",
        )
        for column, held in facts["columns"].items()
    }
    index = pd.Index(facts["patients"], dtype="str", name="patient_id")
    text = dict.fromkeys(("patient_id", "signal", "source", "quality"), "str")
    return Site(
        name=name,
        observations=rows.astype(text),
        patients=pd.DataFrame(made, index=index),
        step_min={key: float(value) for key, value in facts["steps"].items()},
        quality=Quality(rows_read=len(rows), rows_kept=len(rows)),
    )


def _record(home: SiteHome, who: str, purpose: Purpose) -> None:
    whom = "consenting patients" if purpose == "research" else "all patients, for their own models"
    records = AuditRecords(home)
    try:
        records.write("access_granted", who=who, right=RIGHT, about=f"{whom}, process {os.getpid()}")
    finally:
        records.close()
