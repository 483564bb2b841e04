"""Dexcom Clarity: the CSV that a clinic or a person exports.

One header, then rows about the person and the devices (which hold names: they are not read), then events.
The columns stand in one order in every language; only what is in brackets is the same in all, so the
glucose column is the first that ends in (mg/dL) or (mmol/L), and insulin, carbohydrates follow it. Kinds of
events are known in the languages below; another one is counted.

"Low" and "High" are what the sensor shows below 40 and above 400 mg/dL: the limit is taken, and counted.
Times are the receiver's, without a zone.

Source: exports as the public parsers of cgmquantify, iglu and xDrip describe them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from twin.connectors.exports import (
    ExportFiles,
    Reader,
    Refused,
    RowReader,
    Sensor,
    cells_of,
    head_of,
    number_of,
    separator_of,
)
from twin.connectors.rows import Rows

SYSTEM: Final = "dexcom"
_UNIT: Final = re.compile(r"\((mg/dL|mmol/L)\)\s*$", re.IGNORECASE)
_TIMESTAMP: Final = re.compile(r"\(\w{4}-\w{2}-\w{2}T?\s?\w{2}:\w{2}:\w{2}\)")
_TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}")
_EVENTS: Final = {
    "egv": "EGV",
    **dict.fromkeys(
        ("calibration", "kalibrierung", "calibrage", "calibración", "calibrazione"), "Calibration"
    ),
    **dict.fromkeys(("insulin", "insuline", "insulina"), "Insulin"),
    **dict.fromkeys(
        ("carbs", "carb", "kohlenhydrate", "glucides", "carbohidratos", "carboidrati", "koolhydraten"),
        "Carbs",
    ),
}
_LONG: Final = re.compile(r"long|lang|lente|lent|prolong|lunga", re.IGNORECASE)
_SENSOR: Final = Sensor(low_mg_dl=40.0, high_mg_dl=400.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clarity(ExportFiles):
    """Exports of Dexcom Clarity; options: see `ExportFiles`."""

    def reader(self) -> Reader:
        return READER


def _fits(head: str) -> bool:
    line = head.lstrip("\r\n").partition("\n")[0]
    return bool(_TIMESTAMP.search(line)) and _glucose_column(line.split(separator_of(line))) is not None


def _glucose_column(cells: list[str]) -> tuple[int, str] | None:
    for place, cell in enumerate(cells):
        if found := _UNIT.search(cell.strip().strip('"')):
            return place, found[1]
    return None


def _records(path: Path, patient: str, rows: Rows) -> Iterator[int]:
    separator = separator_of(head_of(path).partition("\n")[0])
    at: tuple[int, str] | None = None
    for number, cells in cells_of(path, separator, rows):
        if at is None:
            at = _glucose_column(cells)
            if at is None and number > 3:
                raise Refused("the header names no column of glucose with its unit")
        elif len(cells) <= at[0] + 2:
            rows.rejected["line with too few cells"] += bool(cells)
        else:
            _event(cells, at, patient, rows)
        yield number


def _event(cells: list[str], at: tuple[int, str], patient: str, rows: Rows) -> None:
    when, kind, subtype = (cell.strip() for cell in cells[1:4])
    if not when:
        return  # who the person is, which devices and alerts there are
    place, unit = at
    code = _EVENTS.get(kind.casefold())
    if code is None:
        rows.rejected["kind of event not used"] += 1
    elif not _TIME.fullmatch(when):
        rows.rejected["time cannot be read"] += 1
    elif code in ("EGV", "Calibration"):
        if found := _SENSOR.value(cells[place], unit, rows):
            device = cells[5].strip() if place > 5 else ""
            rows.observed.append((patient, when, SYSTEM, code, *found, device))
    else:
        value = number_of(cells[place + 1] if code == "Insulin" else cells[place + 2])
        if value is None:
            rows.rejected["value is no number"] += 1
        elif code == "Insulin":
            name = "Insulin:Long-Acting" if _LONG.search(subtype) else "Insulin:Fast-Acting"
            rows.observed.append((patient, when, SYSTEM, name, value, "U", ""))
        else:
            rows.observed.append((patient, when, SYSTEM, "Carbs", value, "g", ""))


READER: Final = RowReader(kind="Dexcom Clarity", fits=_fits, records=_records)
