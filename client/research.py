"""What training reads of a site's store: in the process that owns it, through its door, or by itself.

For research only patients who consent at that moment are in it. The audit log has it first.
"""

from __future__ import annotations

import getpass
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
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
PATIENTS: Final = 100
"""So many are read from a store at a time."""


class Reader(Protocol):
    """Who owns a store in this process (client.custodian.Custodian)."""

    @property
    def words(self) -> int:
        """Counts consents and erasures."""
        ...

    def site(self, name: str, purpose: Purpose, patients: Collection[str] | None = None) -> Site:
        """The patients whom the purpose allows, or those of them who are named."""
        ...

    def allowed(self, purpose: Purpose) -> list[str]:
        """Who they are, sorted."""
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

    def site(self, name: str, purpose: Purpose, patients: Collection[str] | None = None) -> Site:
        return self.store.site(name, purpose=purpose, patients=patients)

    def allowed(self, purpose: Purpose) -> list[str]:
        return self.store.allowed(purpose)


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
    (found,) = parts(home, purpose, patients=None)
    return found


def parts(
    home: SiteHome, purpose: Purpose = "research", *, patients: int | None = PATIENTS
) -> Iterator[Site]:
    """The same, so many patients at a time; who withdraws meanwhile is in no later part.

    Raises:
        As `site`, before the first part.
    """
    name = home.settings().site
    custodian = _OWNED.get(str(home.directory))
    if custodian is None and home.is_running:
        if purpose != "research":
            raise ClientError("unavailable", "The site's process fits its own models, each night.")
        yield _some(site_of(name, ask(home.door, "training")), purpose)
        return
    _record(home, name if custodian is not None else getpass.getuser(), purpose)
    if custodian is not None:
        yield from _of(custodian, name, purpose, patients)
        return
    with opened(home) as store:
        yield from _of(_Opened(store), name, purpose, patients)


def _of(reader: Reader, name: str, purpose: Purpose, patients: int | None) -> Iterator[Site]:
    if patients is None:
        yield _some(reader.site(name, purpose), purpose)
        return
    everybody = reader.allowed(purpose)
    for first in range(0, max(len(everybody), 1), patients):
        some = everybody[first : first + patients]
        found = reader.site(name, purpose, some)
        if len(found.patients.index) or not first:
            yield _some(found, purpose)


def _some(found: Site, purpose: Purpose) -> Site:
    if not len(found.patients.index) and purpose == "research":
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
