"""A site's own models where it has a store: in it, encrypted, a patient's with the patient.

Erasing a patient takes the patient's models along, and those of the whole site, which were fitted to the
patient's rows too; they are fitted anew (`twinward site personalise`, or by itself each night).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from trust.digest import Arrays, arrays_from_bytes, arrays_to_bytes
from twin.store import Store, StoreError

_PERSONAL: Final = "personal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """What a site made of a model of the federation.

    Attributes:
        base: SHA-256 of that model. site: arrays of the site's model.
        personal: of the patients', patients first; `patients` say whose. None if there are none.
    """

    base: str
    site: Arrays
    personal: Arrays | None = None
    patients: tuple[str, ...] = ()


class OwnModels:
    """The models in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._versions: dict[str, int] = {}

    def version(self, task: str) -> tuple[int, bool]:
        """Another one after each `keep` in this process, and once an erasure took the site's model."""
        return (self._versions.get(task, 0), self._store.model("", _name(task, "facts")) is not None)

    def keep(self, task: str, own: Own) -> None:
        """Keeps them in place of those before; a patient who was erased meanwhile is left out."""
        self._store.keep_model("", _name(task, "facts"), json.dumps({"base": own.base}).encode())
        self._store.keep_model("", _name(task, "site"), arrays_to_bytes(own.site))
        for row, patient in enumerate(own.patients if own.personal is not None else ()):
            # Not `ascontiguousarray`, which would make a number of each patient an array of one.
            arrays = {name: np.array(values[row]) for name, values in (own.personal or {}).items()}
            try:
                self._store.keep_model(patient, _name(task, _PERSONAL), _bytes(own.base, arrays))
            except StoreError:
                continue
        self._versions[task] = self._versions.get(task, 0) + 1

    def of(self, task: str, base: str) -> Own | None:
        """What was made of the model `base`; None if there is nothing."""
        facts, site = self._store.model("", _name(task, "facts")), self._store.model("", _name(task, "site"))
        if facts is None or site is None or json.loads(facts)["base"] != base:
            return None
        found = self._store.models()
        names = found.loc[found["name"].eq(_name(task, _PERSONAL)) & found["patient_id"].ne(""), "patient_id"]
        parts: dict[str, Mapping[str, np.ndarray]] = {}
        for patient in map(str, names):
            data = self._store.model(patient, _name(task, _PERSONAL))
            if data is not None and data[:64].decode() == base:
                parts[patient] = arrays_from_bytes(data[64:])
        return Own(base=base, site=arrays_from_bytes(site), personal=_stacked(parts), patients=tuple(parts))


def _stacked(parts: Mapping[str, Mapping[str, np.ndarray]]) -> Arrays | None:
    rows: Sequence[Mapping[str, np.ndarray]] = list(parts.values())
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]} if rows else None


def _bytes(base: str, arrays: Arrays) -> bytes:
    return base.encode() + arrays_to_bytes(arrays)


def _name(task: str, what: str) -> str:
    return f"{task} {what}"
