"""FHIR's XML as the plain data that its JSON would be.

A primitive is an element with the attribute `value`; everything else has children. XML does not say which
elements may repeat, so the few that are lists in the resources which are read here stand in `_LISTS`; the
others are read as single ones, numbers as text. Extensions, narrative and identifiers of elements are left
out. A document type is refused before anything of it is read, and entities with it: they can grow a small
file beyond any memory, or read files of this machine.
"""

from __future__ import annotations

from typing import Any, Final
from xml.parsers import expat

SPACE: Final = "http://hl7.org/fhir"
DEEPEST: Final = 64
_LISTS: Final = frozenset({"coding", "component", "entry", "link", "contained", "doseAndRate", "identifier"})
_LISTS_OF: Final = {"MedicationAdministration": {"device"}, "MedicationStatement": {"dosage"}}
_SINGLE_OF: Final = {"identifier": {"subject", "device", "reference", "medicationReference"}}
_LEFT_OUT: Final = frozenset({"text", "extension", "modifierExtension", "note", "meta", "resourceType"})
_HOLDERS: Final = frozenset({"resource", "contained"})


def resource_of(text: bytes) -> dict[str, Any]:
    """The resource of a text of XML, with its type under "resourceType".

    Raises:
        ValueError: it is no XML of FHIR, has a document type, or is nested deeper than `DEEPEST`; the text
            of the error holds nothing of the resource.
    """
    reader = _Reader()
    parser = expat.ParserCreate(namespace_separator="|")
    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    try:
        parser.Parse(text, True)
    except (expat.ExpatError, LookupError):  # of an encoding that there is not
        raise ValueError("not XML") from None
    if reader.root is None:
        raise ValueError("no FHIR resource")
    return reader.root


def _refuse_doctype(*_: object) -> None:
    raise ValueError("XML with a document type")


class _Reader:
    """Builds the data while expat reads."""

    def __init__(self) -> None:
        self.root: dict[str, Any] | None = None
        self._path: list[tuple[str, dict[str, Any], bool]] = []
        self._types: list[str] = []
        self._skipped = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        space, _, tag = name.rpartition("|")
        if len(self._path) + self._skipped >= DEEPEST:
            raise ValueError("XML nested too deep")
        if self._skipped or space != SPACE or tag in _LEFT_OUT:
            if not self._path and not self._skipped:
                raise ValueError("no FHIR resource")
            self._skipped += 1
            return
        made: dict[str, Any] = {}
        if "value" in attributes:
            made["="] = attributes["value"]
        is_resource = not self._path or self._path[-1][0] in _HOLDERS
        if is_resource:
            made["resourceType"] = tag
            self._types.append(tag)
        self._path.append((tag, made, is_resource))

    def end(self, _: str) -> None:
        if self._skipped:
            self._skipped -= 1
            return
        tag, made, is_resource = self._path.pop()
        kind = self._types.pop() if is_resource else self._types[-1]
        if not self._path:
            self.root = made
            return
        holder, parent, _is_resource = self._path[-1]
        value = made["="] if set(made) == {"="} else {key: entry for key, entry in made.items() if key != "="}
        if is_resource:  # <resource> and <contained> only wrap it
            parent.update(value)
        elif self._is_list(tag, holder, kind):
            parent.setdefault(tag, []).append(value)
        else:
            parent[tag] = value

    def _is_list(self, tag: str, holder: str, kind: str) -> bool:
        if tag in _LISTS:
            return holder not in _SINGLE_OF.get(tag, ())
        return tag in _LISTS_OF.get(kind, ()) and holder == kind
