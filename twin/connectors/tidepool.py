"""Tidepool: the JSON of a person's data, as its export and its data model have it.

Taken: cbg (sensor), smbg (meter), bloodKetone, bolus (normal, square, dual/square), basal (scheduled, temp,
automated, suspend as 0), wizard (its carbohydrates), food, insulin (pens, by how it acts). The extended part
of a bolus is given in equal parts every five minutes over its duration. A basal rate holds until the next
one; where a record's duration ends without another nothing is made up. A suspension is the rate 0.

`time` is UTC; where it is missing, `deviceTime` and `timezoneOffset` (minutes) stand for it, or `deviceTime`
alone, without a zone. Everything else (settings, uploads, device events, activity) is counted.

A sensor's value outside its range comes as the limit or beyond, marked by an annotation bg/out-of-range: the
value is kept and counted.

Source: the data model of tidepool-org (developer.tidepool.org/data-model).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

from twin.connectors.exports import ExportFiles, Reader, RowReader, spread
from twin.connectors.json_items import items_of
from twin.connectors.rows import Rows

SYSTEM: Final = "tidepool"
_TYPES: Final = ('"cbg"', '"smbg"', '"basal"', '"bolus"', '"wizard"', '"food"', '"insulin"', '"bloodKetone"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Tidepool(ExportFiles):
    """Exports of Tidepool; options: see `ExportFiles`."""

    def reader(self) -> Reader:
        return READER

    def endings(self) -> tuple[str, ...]:
        return (".json", ".json.gz", ".ndjson", ".ndjson.gz")


def _fits(head: str) -> bool:
    if not head.lstrip().startswith(("[", "{")) or '"type"' not in head:
        return False
    marks = ('"deviceTime"', '"uploadId"', '"timezoneOffset"', '"deviceId"')
    return any(mark in head for mark in marks) and any(
        kind in head for kind in (*_TYPES, '"upload"', '"pumpSettings"')
    )


def _records(path: Path, patient: str, rows: Rows) -> Iterator[int]:
    for number, item in enumerate(items_of(path), start=1):
        if item is None:
            rows.rejected["record cannot be read"] += 1
        else:
            take(item, patient, rows)
        yield number


def take(item: Mapping[str, Any], patient: str, rows: Rows) -> None:
    """Adds the rows of one record."""
    kind = item.get("type")
    if kind not in _READ:
        rows.rejected["type of record not used"] += 1
        return
    when = _time(item)
    if when is None:
        rows.rejected["time cannot be read"] += 1
        return
    found = list(_READ[kind](item, when, rows))
    if not found:
        rows.rejected["record without a number"] += 1
    device = item.get("deviceId")
    for at, code, value, unit in found:
        name = device if isinstance(device, str) else ""
        rows.observed.append((patient, at.isoformat(), SYSTEM, code, value, unit, name[:64]))


_Found = Iterator[tuple[datetime, str, float, str]]


def number(value: object) -> float | None:
    """A finite JSON number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e15 else None


def part(item: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """The object at the end of a path of names; empty if there is none."""
    for name in names:
        inner = item.get(name)
        item = inner if isinstance(inner, Mapping) else {}
    return item


def _level(item: Mapping[str, Any], when: datetime, rows: Rows) -> _Found:
    value, unit = number(item.get("value")), item.get("units", "mmol/L")
    if value is not None and isinstance(unit, str):
        notes = item.get("annotations")
        if isinstance(notes, list) and any(
            isinstance(note, Mapping) and note.get("code") == "bg/out-of-range" for note in notes
        ):
            rows.fixed["value beyond a sensor's range kept as its limit"] += 1
        yield when, str(item["type"]), value, unit


def _bolus(item: Mapping[str, Any], when: datetime, _: Rows) -> _Found:
    normal, extended = number(item.get("normal")), number(item.get("extended"))
    if normal:
        yield when, "bolus", normal, "U"
    if extended:
        minutes = (number(item.get("duration")) or 0.0) / 60_000
        for at, units in spread(when, extended, max(0.0, min(minutes, 1440.0))):
            yield at, "bolus", units, "U"
    if not normal and not extended and (normal, extended) != (None, None):
        yield when, "bolus", 0.0, "U"


def _basal(item: Mapping[str, Any], when: datetime, _: Rows) -> _Found:
    rate = 0.0 if item.get("deliveryType") == "suspend" else number(item.get("rate"))
    if rate is not None:
        yield when, "basal", rate, "U/h"


def _wizard(item: Mapping[str, Any], when: datetime, _: Rows) -> _Found:
    grams = number(item.get("carbInput"))
    if grams and item.get("carbUnits", "grams") == "grams":
        yield when, "wizard", grams, "g"


def _food(item: Mapping[str, Any], when: datetime, _: Rows) -> _Found:
    eaten = part(item, "nutrition", "carbohydrate")
    grams = number(eaten.get("net"))
    if grams is not None and eaten.get("units", "grams") == "grams":
        yield when, "food", grams, "g"


def _insulin(item: Mapping[str, Any], when: datetime, _: Rows) -> _Found:
    units = number(part(item, "dose").get("total"))
    acting = part(item, "formulation", "simple").get("actingType")
    if units is None:
        return
    if acting in ("long", "intermediate"):
        yield when, "insulin:long", units, "U"
    elif acting in ("rapid", "short", None):
        yield when, "insulin", units, "U"


_READ: Final = {
    "cbg": _level,
    "smbg": _level,
    "bloodKetone": _level,
    "bolus": _bolus,
    "basal": _basal,
    "wizard": _wizard,
    "food": _food,
    "insulin": _insulin,
}


def _time(item: Mapping[str, Any]) -> datetime | None:
    written = item.get("time")
    if isinstance(written, Mapping):
        written = written.get("$date")
    if (when := moment(written)) is not None:
        return when
    when = moment(item.get("deviceTime"))
    offset = number(item.get("timezoneOffset"))
    if when is None or when.tzinfo is not None or offset is None or abs(offset) >= 1440:
        return when
    return when.replace(tzinfo=timezone(timedelta(minutes=offset)))


def moment(value: object) -> datetime | None:
    """A time of ISO 8601, or of milliseconds since 1970; None for anything else."""
    try:
        if isinstance(value, str) and value.strip().isdigit():
            value = int(value)
        if isinstance(value, str):
            return datetime.fromisoformat(value.strip())
        if (ms := number(value)) is not None and ms > 1e11:
            return datetime.fromtimestamp(ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return None


READER: Final = RowReader(kind="Tidepool", fits=_fits, records=_records, grows=False)
