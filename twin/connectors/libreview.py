"""Abbott LibreView: the CSV of a FreeStyle Libre's glucose data.

A line about the export (with a name: not read), a header, then records of types 0 historic glucose, 1 scan,
2 strip, 3 ketone, 4 insulin, 5 food, 6 notes. The columns stand in one order in every language, with their
units behind them. Decimal commas and semicolons are understood.

Dates are written 31-01-2024 or 01-31-2024 as the account's country does. The whole file decides: a first
number above 12, or a second one. (AM and PM decide nothing: some countries write them after the day.) If it
says both or neither, the file is refused and the option date_order asked for.

"LO" and "HI" are what the sensor shows below 40 and above 500 mg/dL: the limit is taken, and counted. Doses
are those of the rapid-acting column; where it is empty, meal, correction and the user's change are added.
Servings have no grams: counted. Times are the reader's or phone's, without a zone.

Source: exports as the public parsers of iglu, glyco and Nightscout describe them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from twin.connectors.dates import order_of
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
from twin.connectors.progress import lines_from
from twin.connectors.rows import Rows
from twin.errors import DataError

SYSTEM: Final = "libreview"
_HISTORIC, _SCAN, _RAPID, _CARBS, _SERVINGS, _LONG, _STRIP, _KETONE, _MEAL = 4, 5, 7, 9, 10, 12, 14, 15, 16
_UNIT: Final = re.compile(r"(mg/dL|mmol/L)\)?\s*$", re.IGNORECASE)
_DATE: Final = re.compile(r"(\d{1,4})[-./](\d{1,2})[-./]\d")
_STAMP: Final = re.compile(
    r"(\d{1,4})[-./](\d{1,2})[-./](\d{1,4})[ T](\d{1,2}):(\d{2})(?::\d{2})?(?:\s*([AaPp])\.?[Mm]\.?)?"
)
_SENSOR: Final = Sensor(low_mg_dl=40.0, high_mg_dl=500.0)
_NOT_USED: Final = {"6": "note not used"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LibreView(ExportFiles):
    """Exports of LibreView; options: those of `ExportFiles`, and

    Attributes:
        date_order: "" (the file decides), "dmy" or "mdy".
    """

    date_order: str = ""

    def __post_init__(self) -> None:
        ExportFiles.__post_init__(self)
        if self.date_order not in ("", "dmy", "mdy"):
            raise DataError(f'feed {self.name!r}: option date_order must be "dmy", "mdy" or "".')

    def reader(self) -> Reader:
        return reader(self.date_order)


def reader(date_order: str = "") -> RowReader:
    """How such a file is read with this order of dates."""
    return RowReader(kind="LibreView", fits=_fits, records=partial(_records, date_order=date_order))


def _fits(head: str) -> bool:
    return _header(head.splitlines()[:4]) is not None


def _header(lines: list[str]) -> tuple[int, str, list[str]] | None:
    """(line number from 0, separator, units of the glucose columns and of ketones)."""
    for number, line in enumerate(lines):
        separator = separator_of(line)
        cells = [cell.strip().strip('"') for cell in line.split(separator)]
        if len(cells) < 16:
            continue
        units = [_UNIT.search(cells[place]) for place in (_HISTORIC, _SCAN, _STRIP, _KETONE)]
        if all(units):
            return number, separator, [unit[1] for unit in units if unit]
    return None


def _records(path: Path, patient: str, rows: Rows, date_order: str) -> Iterator[int]:
    found = _header(head_of(path).splitlines()[:4])
    if found is None:
        raise Refused("it is no LibreView export")
    first, separator, units = found
    order = date_order or _order_of(path, first, separator)
    for number, cells in cells_of(path, separator, rows):
        if number > first + 1 and any(cells):
            _record(cells, units, order, patient, rows)
        yield number


def _record(cells: list[str], units: list[str], order: str, patient: str, rows: Rows) -> None:
    if len(cells) < 14:
        rows.rejected["line with too few cells"] += 1
        return
    cells = [cell.strip() for cell in cells] + [""] * (19 - len(cells))
    when = _iso(cells[2], order)
    if when is None:
        rows.rejected["time cannot be read"] += 1
        return
    device, kind = cells[0], cells[3]
    glucose = {
        "0": (_HISTORIC, "Historic Glucose"),
        "1": (_SCAN, "Scan Glucose"),
        "2": (_STRIP, "Strip Glucose"),
    }
    if kind in glucose:
        place, code = glucose[kind]
        unit = units[(_HISTORIC, _SCAN, _STRIP).index(place)]
        if value := _SENSOR.value(cells[place], unit, rows):
            rows.observed.append((patient, when, SYSTEM, code, *value, device))
    elif kind in ("3", "4", "5"):
        _others(kind, cells, units, (patient, when, device), rows)
    else:
        rows.rejected[_NOT_USED.get(kind, "type of record not known")] += 1


def _others(kind: str, cells: list[str], units: list[str], of: tuple[str, str, str], rows: Rows) -> None:
    patient, when, device = of
    rapid = cells[_RAPID] or _sum(cells[_MEAL:])
    wanted = {
        "3": [("Ketone", cells[_KETONE], units[3])],
        "4": [("Rapid-Acting Insulin", rapid, "U"), ("Long-Acting Insulin", cells[_LONG], "U")],
        "5": [("Carbohydrates", cells[_CARBS], "g")],
    }[kind]
    written = [entry for entry in wanted if entry[1]]
    if not written:
        servings = kind == "5" and cells[_SERVINGS]
        rows.rejected["servings without grams" if servings else "record without a number"] += 1
    for code, text, unit in written:
        value = number_of(text)
        if value is None:
            rows.rejected["value is no number"] += 1
        else:
            rows.observed.append((patient, when, SYSTEM, code, value, unit, device))


def _sum(cells: list[str]) -> str:
    """Meal, correction and the user's change together; "" where none is written."""
    values = [number_of(cell) for cell in cells[:3] if cell]
    return "?" if None in values else str(sum(value or 0.0 for value in values)) if values else ""


def _order_of(path: Path, first: int, separator: str) -> str:
    """Whether days or months come first, by the whole file and the line about the export.

    Raises:
        Refused: it says neither, or both.
    """
    dates: set[bytes] = set()
    for number, (_, line) in enumerate(lines_from(path, 0)):
        if number < first:
            match = _STAMP.search((line or b"").decode("utf-8", errors="replace"))
            dates.add(match[0].encode() if match else b"")
        else:
            cells = (line or b"").split(separator.encode(), 3)
            dates.add(cells[2].strip(b' "')[:10] if len(cells) == 4 else b"")
    return order_of(_DATE.match(date.decode("utf-8", errors="replace")) for date in dates)


def _iso(text: str, order: str) -> str | None:
    match = _STAMP.fullmatch(text)
    if not match:
        return None
    a, b, c, hour, minute = (int(match[k]) for k in range(1, 6))
    year, month, day = (a, b, c) if len(match[1]) == 4 else (c, b, a) if order == "dmy" else (c, a, b)
    if half := match[6]:
        hour = hour % 12 + 12 * (half in "Pp") if 1 <= hour <= 12 else 99
    if not (1900 <= year <= 2299 and 1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60):
        return None
    return f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:00"
