"""The kinds of feeds that a site can have, and how an entry of feeds.toml becomes a connector.

A connector is a frozen dataclass whose fields are its options (see `twin.connectors.feed`); a new one is
its file and its line in `KINDS`. Passwords and tokens are options that name a file, never the secret.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from twin.connectors.feed import Connector
from twin.errors import DataError

KINDS: Final[Mapping[str, str]] = {
    "carelink": "twin.connectors.carelink:CareLink",
    "clarity": "twin.connectors.clarity:Clarity",
    "drop": "twin.connectors.drop:Drop",
    "fhir_files": "twin.connectors.fhir_files:FhirFiles",
    "fhir_rest": "twin.connectors.fhir_rest:FhirRest",
    "folder": "twin.connectors.folder_feed:FolderFeed",
    "hl7v2_files": "twin.connectors.hl7v2_files:Hl7v2Files",
    "hl7v2_mllp": "twin.connectors.hl7v2_mllp:Hl7v2Mllp",
    "kafka": "twin.connectors.kafka:Kafka",
    "libreview": "twin.connectors.libreview:LibreView",
    "mqtt": "twin.connectors.mqtt:Mqtt",
    "nightscout": "twin.connectors.nightscout:Nightscout",
    "omics": "twin.connectors.omics:Omics",
    "omop": "twin.connectors.omop:Omop",
    "tidepool": "twin.connectors.tidepool:Tidepool",
    "vcf": "twin.connectors.vcf:Vcf",
}
"""Kind → `module:Class`; a module is imported when a feed of its kind is built."""


def build(kind: str, options: Mapping[str, Any]) -> Connector:
    """The connector of a kind with these options.

    Args:
        options: by field name; `name` among them. A path is given as text.

    Raises:
        DataError: no such kind, an option that it does not have, lacks or that has another type, all of
            them at once; or the kind needs a package that is not installed.
    """
    if kind not in KINDS:
        raise DataError(f"There is no feed of kind {kind!r}; there are: {', '.join(sorted(KINDS))}.")
    made = _class(kind)
    hints = typing.get_type_hints(made)
    known = {entry.name: entry for entry in dataclasses.fields(made) if entry.init}
    wrong = [
        f"unknown option {name!r} (there are: {', '.join(known)})" for name in options if name not in known
    ]
    wrong += [
        f"option {name!r} is missing"
        for name, entry in known.items()
        if name not in options and _needed(entry)
    ]
    values: dict[str, Any] = {}
    for name in options.keys() & known.keys():
        try:
            values[name] = _typed(options[name], hints[name])
        except TypeError as error:
            wrong.append(f"option {name!r} must be {error}")
    if wrong:
        raise DataError(f"feed {options.get('name', '')!r} of kind {kind}: {'; '.join(wrong)}.")
    built: Connector = made(**values)
    return built


def _class(kind: str) -> type[Any]:
    module, _, name = KINDS[kind].partition(":")
    try:
        found: type[Any] = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "twin":
            raise
        raise DataError(
            f"A feed of kind {kind} needs the package {error.name!r}: pip install 'twinward[feeds]'."
        ) from None
    return found


def _needed(entry: dataclasses.Field[Any]) -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING


def _typed(value: Any, hint: Any) -> Any:
    """`value` as its field wants it; TypeError with what it wants."""
    if isinstance(hint, types.UnionType):
        choices = [choice for choice in hint.__args__ if choice is not type(None)]
        return None if value is None else _typed(value, choices[0])
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError("a list")
        return tuple(_typed(entry, typing.get_args(hint)[0]) for entry in value)
    if typing.get_origin(hint) in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise TypeError("a table")
        return dict(value)
    if hint is Path:
        if not isinstance(value, str | Path):
            raise TypeError("a path")
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
        raise TypeError(names.get(hint, str(hint)))
    return value
