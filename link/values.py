"""Settings and metrics of a message, entry by entry, each of one of ten types."""

from __future__ import annotations

from typing import Any

from flwr.app import ConfigRecord, MetricRecord

from link.errors import LinkError
from link.generated import link_pb2 as pb

_LISTS: dict[type, tuple[str, type]] = {
    bool: ("truths", pb.Truths),
    int: ("integers", pb.Integers),
    float: ("numbers", pb.Numbers),
    str: ("texts", pb.Texts),
    bytes: ("datas", pb.Datas),
}
_SCALARS: dict[type, str] = {
    bool: "truth",
    int: "integer",
    float: "number",
    str: "text",
    bytes: "data",
}
_LIST_NAMES = frozenset(name for name, _ in _LISTS.values())


def write_values(record: ConfigRecord | MetricRecord) -> pb.Values:
    """The entries of a record of settings or metrics.

    Raises:
        LinkError: a value of another type, or one too great.
    """
    values = pb.Values()
    for key, value in record.items():
        entry = pb.Entry(key=key)
        try:
            if isinstance(value, list):
                kind = type(value[0]) if value else float
                name, message = _LISTS[kind]
                getattr(entry, name).CopyFrom(message(values=value))
            else:
                setattr(entry, _SCALARS[type(value)], value)
        except (KeyError, TypeError, ValueError):
            raise LinkError(f"Expected a value that can travel at {key!r}.") from None
        values.entries.append(entry)
    return values


def read_values(values: pb.Values) -> dict[str, Any]:
    """Key and value of each entry, of whatever type; Flower's records check it."""
    found: dict[str, Any] = {}
    for entry in values.entries:
        kind = entry.WhichOneof("value")
        if kind is None or entry.key in found:
            raise ValueError(entry.key)
        value = getattr(entry, kind)
        found[entry.key] = list(value.values) if kind in _LIST_NAMES else value
    return found
