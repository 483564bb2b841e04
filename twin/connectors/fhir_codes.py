"""Which code, unit and patient a FHIR resource means, in the words of `twin.connectors.feed`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from twin.codes import SYSTEMS, signal_of
from twin.connectors.fhir_models import Coding, Concept, Identifier, Quantity, Reference

UCUM: Final = "http://unitsofmeasure.org"
OWN: Final = "fhir"
_ORDER: Final = {"mdc": 0, "loinc": 1, "rxnorm": 2, "snomed": 3}
_VERSION = re.compile(r"/_history/[^/]*$")
_REFERENCE = re.compile(r"(?:^|/)(?P<type>[A-Z][A-Za-z]+)/(?P<id>[A-Za-z0-9.\-]{1,128})$")


def code_of(concept: Concept | None) -> tuple[str, str] | None:
    """(system, code) of a concept; None if it has words only.

    Of several codings of the same thing the first counts whose signal the catalogue knows, else the first,
    both in the order IEEE 11073, LOINC, RxNorm, SNOMED, others: a device's own code says more (pulse by an
    oximeter) than the LOINC code that FHIR's vital signs ask for beside it (heart rate). A code of another
    system is written as FHIR writes it in searches: uri|code.
    """
    codes = codes_of(concept)
    return next((code for code in codes if is_signal(*code)), codes[0] if codes else None)


def codes_of(concept: Concept | None) -> list[tuple[str, str]]:
    """Every (system, code) of a concept, best system first."""
    found = [_code(coding) for coding in concept.coding if coding.code.strip()] if concept else []
    return sorted(found, key=lambda code: _ORDER.get(code[0], len(_ORDER)))


def _code(coding: Coding) -> tuple[str, str]:
    code = coding.code.strip()
    system = SYSTEMS.get(coding.system.strip().casefold())
    return (system, code) if system else (OWN, f"{coding.system.strip()}|{code}")


def is_signal(system: str, code: str) -> bool:
    """Whether the catalogue knows a code."""
    return signal_of(system, code) is not None


def unit_of(quantity: Quantity | None) -> str:
    """The unit in UCUM where the resource gives it, else as people read it."""
    if quantity is None:
        return ""
    coded = quantity.code if quantity.system in (UCUM, "") else ""
    return coded or quantity.unit or quantity.code


def target_of(reference: Reference | None) -> tuple[str, str]:
    """(type, id) that a reference points to; the type is "" where it does not say.

    A relative reference, one with a server's address and one to a version mean the same; a urn of a bundle
    has its uuid or oid as id, a reference within the resource starts with #.
    """
    if reference is None:
        return "", ""
    text = _VERSION.sub("", reference.reference.strip())
    if text.startswith("urn:"):
        return reference.type, text.split(":", 2)[-1]
    match = _REFERENCE.search(text)
    if match:
        return match["type"], match["id"]
    return reference.type, text if text.startswith("#") else ""


def identifier_of(identifiers: Sequence[Identifier], system: str) -> str:
    """The value of the first identifier of a system; "" if there is none."""
    return next((entry.value for entry in identifiers if entry.system == system and entry.value), "")
