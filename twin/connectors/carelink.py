"""Medtronic CareLink: the CSV of a MiniMed pump with its meter and sensor.

Some lines about the person (not read), then sections, each between lines of dashes and with a header of its
own that begins with Index, Date, Time. Columns are found by their English names, their units in brackets;
European exports have semicolons, decimal commas and days before months. Which of 31/01/24 and 01/31/24 is
meant is decided by the whole file, as in `twin.connectors.libreview`; four digits first are a year.

Square and dual boluses with a duration are given in equal parts every five minutes. A temporary basal rate
holds for its duration and is followed by the rate that was programmed before it; a percentage is of that
rate, and counted where no rate is known. Rates hold until the next row; nothing is made up for gaps.

Times are the pump's, without a zone. Exports with column names in other languages are refused.

Source: exports as the public parsers of Tidepool's uploader, glucometrics and cgm_format describe them.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
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
    spread,
)
from twin.connectors.progress import lines_from
from twin.connectors.rows import Rows
from twin.errors import DataError

SYSTEM: Final = "carelink"
_DATE: Final = re.compile(r"(\d{1,4})[-./](\d{1,2})[-./](\d{1,4})")
_CLOCK: Final = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?(?:\s*([AaPp])[Mm])?")
_GLUCOSE: Final = ("Sensor Glucose", "BG Reading", "Sensor Calibration BG")
_SENSOR: Final = Sensor(low_mg_dl=40.0, high_mg_dl=400.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CareLink(ExportFiles):
    """Exports of CareLink; options: those of `ExportFiles`, and

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
    return RowReader(
        kind="CareLink", fits=_fits, records=partial(_records, date_order=date_order), grows=False
    )


def _header_line(head: str) -> str | None:
    for line in head.splitlines():
        if re.match(r'"?Index"?\s*[,;\t]\s*"?Date"?\s*[,;\t]\s*"?Time"?', line.lstrip("\ufeff")):
            return line
    return None


def _fits(head: str) -> bool:
    line = _header_line(head)
    return line is not None and ("Sensor Glucose" in line or "Bolus Volume Delivered" in line)


@dataclass(slots=True)
class _Basal:
    """Rates of a file until it ends: programmed ones, temporary ones with their ends."""

    programmed: list[tuple[datetime, float]]
    temporary: list[tuple[datetime, datetime, float, bool]]


def _records(path: Path, patient: str, rows: Rows, date_order: str) -> Iterator[int]:
    line = _header_line(head_of(path))
    if line is None:
        raise Refused("it has no section with a header Index, Date, Time")
    separator = separator_of(line)
    order = date_order or _order_of(path, separator)
    columns: dict[str, tuple[int, str]] = {}
    basal, number = _Basal([], []), 0
    for number, cells in cells_of(path, separator, rows):
        name = cells[0].strip() if cells else ""
        if name == "Index":
            columns = _columns(cells)
        elif name.startswith("-----"):
            columns = {}
        elif columns and any(cell.strip() for cell in cells):
            _record(cells, columns, order, patient, basal, rows)
        yield number
    for when, rate in _rates(basal, rows):
        rows.observed.append((patient, when.isoformat(), SYSTEM, "Basal Rate", rate, "U/h", ""))
    yield number + 1


def _columns(cells: list[str]) -> dict[str, tuple[int, str]]:
    """Column name → (place, unit)."""
    found: dict[str, tuple[int, str]] = {}
    for place, cell in enumerate(cells):
        name, _, unit = cell.strip().partition(" (")
        found.setdefault(name.strip(), (place, unit.rstrip(") ")))
    return found


def _record(
    cells: list[str],
    columns: dict[str, tuple[int, str]],
    order: str,
    patient: str,
    basal: _Basal,
    rows: Rows,
) -> None:
    def cell(name: str) -> str:
        place = columns.get(name, (len(cells), ""))[0]
        return cells[place].strip() if place < len(cells) else ""

    if len(cells) < 3 or not {"Date", "Time"} <= columns.keys():
        rows.rejected["line with too few cells"] += 1
        return
    when = _time(cell("Date"), cell("Time"), order)
    if when is None:
        rows.rejected["time cannot be read"] += 1
        return
    before = len(rows.observed), sum(rows.rejected.values()), len(basal.programmed) + len(basal.temporary)
    for name in _GLUCOSE:
        if (text := cell(name)) and (found := _SENSOR.value(text, columns[name][1], rows)):
            rows.observed.append((patient, when.isoformat(), SYSTEM, name, *found, ""))
    if (grams := _number(cell("BWZ Carb Input"), rows)) and columns["BWZ Carb Input"][1].startswith("g"):
        rows.observed.append((patient, when.isoformat(), SYSTEM, "BWZ Carb Input", grams, "g", ""))
    _bolus(cell("Bolus Volume Delivered"), cell("Bolus Type"), cell("Bolus Duration"), when, patient, rows)
    if (rate := _number(cell("Basal Rate"), rows)) is not None:
        basal.programmed.append((when, rate))
    _temporary(
        cell("Temp Basal Amount"), cell("Temp Basal Type"), cell("Temp Basal Duration"), when, basal, rows
    )
    after = len(rows.observed), sum(rows.rejected.values()), len(basal.programmed) + len(basal.temporary)
    if before == after:
        rows.rejected["row with nothing that is used"] += 1


def _number(text: str, rows: Rows) -> float | None:
    value = number_of(text) if text else None
    if text and value is None:
        rows.rejected["value is no number"] += 1
    return value


def _bolus(volume: str, kind: str, duration: str, when: datetime, patient: str, rows: Rows) -> None:
    units = _number(volume, rows)
    if units is None:
        return
    extended = "square" in kind.casefold()
    minutes = _minutes(duration) if extended else 0.0
    for moment, part in spread(when, units, minutes or 0.0):
        rows.observed.append((patient, moment.isoformat(), SYSTEM, "Bolus Volume Delivered", part, "U", ""))


def _temporary(amount: str, kind: str, duration: str, when: datetime, basal: _Basal, rows: Rows) -> None:
    value, minutes = _number(amount, rows), _minutes(duration)
    if value is None:
        return
    if not minutes:
        rows.rejected["temporary basal rate without a duration"] += 1
        return
    basal.temporary.append((when, when + timedelta(minutes=minutes), value, "percent" in kind.casefold()))


def _minutes(text: str) -> float | None:
    match = _CLOCK.fullmatch(text)
    return int(match[1]) * 60 + int(match[2]) + int(match[3] or 0) / 60 if match else None


def _rates(basal: _Basal, rows: Rows) -> Iterator[tuple[datetime, float]]:
    """(time, rate): a temporary rate hides the programmed one until it ends."""
    programmed, temporary = sorted(basal.programmed), sorted(basal.temporary)
    times = [at for at, _ in programmed]
    starts = [start for start, *_ in temporary]
    ends = [
        min(end, *starts[k + 1 : k + 2]) if starts[k + 1 :] else end
        for k, (_, end, *_) in enumerate(temporary)
    ]

    def usual(at: datetime) -> float | None:
        place = bisect_right(times, at)
        return programmed[place - 1][1] if place else None

    for (start, _, value, percent), end in zip(temporary, ends, strict=True):
        before = usual(start)
        if percent and before is None:
            rows.rejected["temporary basal rate in percent of an unknown rate"] += 1
            continue
        yield start, value * (before or 0.0) / 100 if percent else value
        if percent:
            during = programmed[bisect_right(times, start) : bisect_left(times, end)]
            yield from ((at, rate * value / 100) for at, rate in during)
        place = bisect_left(starts, end)
        if (after := usual(end)) is not None and starts[place : place + 1] != [end]:
            yield end, after
    for at, rate in programmed:
        place = bisect_right(starts, at)
        if not place or at > ends[place - 1]:
            yield at, rate


def _order_of(path: Path, separator: str) -> str:
    """Whether days or months come first, by the dates of the whole file.

    Raises:
        Refused: it says neither, or both.
    """

    def date_of(line: bytes | None) -> re.Match[str] | None:
        cells = (line or b"").decode("utf-8", errors="replace").split(separator, 2)
        return _DATE.fullmatch(cells[1].strip().strip('"')) if len(cells) > 2 else None

    return order_of(date_of(line) for _, line in lines_from(path, 0))


def _time(date: str, clock: str, order: str) -> datetime | None:
    day, time = _DATE.fullmatch(date), _CLOCK.fullmatch(clock)
    if not day or not time:
        return None
    a, b, c = (int(day[k]) for k in (1, 2, 3))
    year, month, dom = (a, b, c) if len(day[1]) == 4 else (c, b, a) if order == "dmy" else (c, a, b)
    hour = int(time[1])
    if half := time[4]:
        hour = hour % 12 + 12 * (half in "Pp")
    try:
        return datetime(  # noqa: DTZ001 - the pump's clock has no zone
            year + 2000 * (year < 100), month, dom, hour, int(time[2]), int(time[3] or 0)
        )
    except ValueError:
        return None
