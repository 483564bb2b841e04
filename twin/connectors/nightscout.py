"""Nightscout: entries, treatments, devicestatus and profiles in JSON or NDJSON, also mongoexport's, also one
object of such arrays.

Entries are in mg/dL whatever a profile shows: sgv (sensor), mbg (meter). Below 39 a sensor writes codes of
faults: counted. 39 and 401 stand for "Low" and "High": the limit, 40 or 400, is taken and counted. A
treatment's glucose is in its own units or in those of the profile that is in the same file; with neither it
is counted.

Treatments give insulin, carbohydrates, finger glucose, temporary basal rates in U/h. The extended part of a
combo bolus (`relative`, U/h over `duration`) is given in equal parts every five minutes. Percentages and the
end of a temporary rate need the profile's schedule: they are counted, and the next rate ends it.

Times are `mills`, `date`, `created_at`, `timestamp` or `dateString`, in this order.

Source: the API of nightscout/cgm-remote-monitor (swagger, and its treatment notes).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from twin.connectors.exports import ExportFiles, Reader, RowReader, head_of, number_of, spread
from twin.connectors.json_items import items_of
from twin.connectors.progress import blocks_of
from twin.connectors.rows import Rows
from twin.connectors.tidepool import moment, number, part

SYSTEM: Final = "nightscout"
_LOWEST_MG_DL: Final = 39
_LOW_MG_DL, _HIGH_MG_DL = 40.0, 400.0
_OBJECT_OF_ARRAYS: Final = re.compile(r'\s*\{\s*"(?:entries|treatments|devicestatus|profiles?)"\s*:\s*\[')
_UNITS: Final = {"mmol": "mmol/L", "mmol/l": "mmol/L", "mg/dl": "mg/dL", "mgdl": "mg/dL", "mg": "mg/dL"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Nightscout(ExportFiles):
    """Exports of Nightscout; options: see `ExportFiles`."""

    def reader(self) -> Reader:
        return READER

    def endings(self) -> tuple[str, ...]:
        return (".json", ".json.gz", ".ndjson", ".ndjson.gz")


def _fits(head: str) -> bool:
    if not head.lstrip().startswith(("[", "{")):
        return False
    own = ('"sgv"', '"mbg"', '"eventType"', '"openaps"', '"loop"', '"pump"', '"defaultProfile"')
    times = ('"dateString"', '"created_at"', '"mills"', '"date"', '"startDate"')
    return any(name in head for name in own) and any(name in head for name in times)


def _records(path: Path, patient: str, rows: Rows) -> Iterator[int]:
    inside = bool(_OBJECT_OF_ARRAYS.match(head_of(path)))
    units = _profile_units(path, inside)
    for count, item in enumerate(items_of(path, inside), start=1):
        if item is None:
            rows.rejected["record cannot be read"] += 1
        else:
            _take(item, units, patient, rows)
        yield count


def _profile_units(path: Path, inside: bool) -> str | None:
    before = b""
    for block in blocks_of(path):
        if b'"store"' in before + block:
            break
        before = block[-8:]
    else:
        return None
    for item in items_of(path, inside):
        if item is not None and "store" in item:
            name = item.get("defaultProfile")
            profile = part(item, "store", name) if isinstance(name, str) else {}
            unit = profile.get("units", item.get("units"))
            return _UNITS.get(str(unit).casefold())
    return None


def _take(item: Mapping[str, Any], units: str | None, patient: str, rows: Rows) -> None:
    if "eventType" in item or "insulin" in item or "carbs" in item:
        found = list(_treatment(item, units, rows))
    elif item.get("type") in ("sgv", "mbg") or "sgv" in item:
        found = list(_entry(item, rows))
    else:
        what = next((name for name in ("store", "pump", "openaps", "loop") if name in item), "")
        rows.rejected[f"record not used: {what or 'other'}"] += 1
        return
    when = _time(item)
    if when is None:
        rows.rejected["time cannot be read"] += 1
        return
    device = item.get("device")
    name = device[:64] if isinstance(device, str) else ""
    for minutes, code, value, unit in found:
        for at, dose in spread(when, value, minutes) if minutes else [(when, value)]:
            rows.observed.append((patient, at.isoformat(), SYSTEM, code, dose, unit, name))


_Found = Iterator[tuple[float, str, float, str]]


def _entry(item: Mapping[str, Any], rows: Rows) -> _Found:
    code = "mbg" if item.get("type") == "mbg" else "sgv"
    value = _number(item.get(code, item.get("sgv")))
    unit = _UNITS.get(str(item.get("units", "mg/dl")).casefold(), "mg/dL")
    if value is None:
        rows.rejected["value is no number"] += 1
    elif unit == "mg/dL" and code == "sgv" and value < _LOWEST_MG_DL:
        rows.rejected["sensor's code of a fault"] += 1
    elif unit == "mg/dL" and code == "sgv" and value in (39.0, 401.0):
        low = value == 39.0
        rows.fixed[f'"{"Low" if low else "High"}" of a sensor set to its limit'] += 1
        yield 0.0, code, _LOW_MG_DL if low else _HIGH_MG_DL, unit
    else:
        yield 0.0, code, value, unit


def _treatment(item: Mapping[str, Any], units: str | None, rows: Rows) -> _Found:
    before = sum(rows.rejected.values())
    nothing = True
    for name, unit in (("insulin", "U"), ("carbs", "g")):
        value = _number(item.get(name))
        if value:
            nothing = False
            yield 0.0, name, value, unit
    minutes = _number(item.get("duration")) or 0.0
    if item.get("eventType") == "Combo Bolus" and (relative := _number(item.get("relative"))) and minutes > 0:
        nothing = False
        minutes = min(minutes, 1440.0)
        yield minutes, "insulin", relative * minutes / 60, "U"
    if item.get("eventType") == "Temp Basal":
        rate = _number(item.get("absolute", item.get("rate")))
        if rate is not None and minutes > 0 and item.get("temp") != "percent":
            nothing = False
            yield 0.0, "absolute", rate, "U/h"
        else:
            rows.rejected["temporary basal rate in percent, or cancelled"] += 1
    glucose = _number(item.get("glucose"))
    if glucose is not None and str(item.get("glucoseType", "")).casefold() == "finger":
        unit = _UNITS.get(str(item.get("units")).casefold()) or units or ""
        if unit:
            nothing = False
            yield 0.0, "mbg", glucose, unit
        else:
            rows.rejected["glucose without a unit"] += 1
    if nothing and sum(rows.rejected.values()) == before:
        rows.rejected["treatment without a number that is used"] += 1


def _number(value: object) -> float | None:
    if isinstance(value, Mapping):
        inner = [value[name] for name in ("$numberLong", "$numberDouble", "$numberInt") if name in value]
        value = inner[0] if inner else None
    return number_of(value) if isinstance(value, str) else number(value)


def _time(item: Mapping[str, Any]) -> datetime | None:
    for name in ("mills", "date", "created_at", "timestamp", "dateString", "sysTime"):
        written = item.get(name)
        if isinstance(written, Mapping):
            written = written.get("$date", written.get("$numberLong"))
            written = written.get("$numberLong") if isinstance(written, Mapping) else written
        if (when := moment(written)) is not None:
            return when
    return None


READER: Final = RowReader(kind="Nightscout", fits=_fits, records=_records, grows=False)
