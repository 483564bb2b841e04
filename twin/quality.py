"""What became of a site's rows, as numbers: the ground of the page and the table of `twinward site quality`.

A row that was read is kept, dropped or quarantined, once. Fixed, marked and filled are said of rows on top.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

ONCE: Final = ("kept", "dropped", "quarantined")
ON_TOP: Final = ("marked", "fixed", "filled", "withdrawn")
_MOST_PATIENTS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a table: a signal, a feed, or a patient."""

    name: str
    read: int
    fates: dict[str, int]

    def share(self, fate: str) -> float:
        """Of the rows read, in percent."""
        return 100 * self.fates.get(fate, 0) / self.read if self.read else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """All of it, by signal, by feed, by patient (empty unless asked for) and by reason.

    Attributes:
        total: of the site.
        reasons: (fate, reason, signal, rows), the most first; without "kept".
        patients_left_out: patients beyond those that are listed, those with the fewest faults.
    """

    total: Line
    signals: tuple[Line, ...]
    feeds: tuple[Line, ...]
    patients: tuple[Line, ...]
    reasons: tuple[tuple[str, str, str, int], ...]
    patients_left_out: int


def quality(counts: pd.DataFrame, *, patients: bool = False) -> Quality:
    """The numbers of these counts.

    Args:
        counts: columns `twin.ingested.COUNTS`, and feed if there are several.
        patients: whether pseudonyms are listed; only for who may see them.
    """
    told = counts[counts["rows"] != 0]
    people = [line for line in _lines(told, "patient_id") if line.name] if patients else []
    people.sort(
        key=lambda line: -sum(line.fates.get(fate, 0) for fate in ("dropped", "quarantined", "marked"))
    )
    sums = told[told["fate"] != "kept"].groupby(["fate", "reason", "signal"], as_index=False)["rows"].sum()
    columns = [sums[name].tolist() for name in ("fate", "reason", "signal", "rows")]
    reasons = [(str(fate), str(why), str(of), int(n)) for fate, why, of, n in zip(*columns, strict=True)]
    reasons.sort(key=lambda entry: (-entry[3], entry[:3]))
    total = _lines(told.assign(site="all"), "site")
    return Quality(
        total=total[0] if total else Line(name="all", read=0, fates={}),
        signals=tuple(_lines(told, "signal")),
        feeds=tuple(_lines(told, "feed")) if "feed" in told else (),
        patients=tuple(people[:_MOST_PATIENTS]),
        reasons=tuple(reasons),
        patients_left_out=max(0, len(people) - _MOST_PATIENTS),
    )


def quality_json(counts: pd.DataFrame, *, patients: bool = False) -> dict[str, Any]:
    """The numbers as plain data, for `--json`."""
    return asdict(quality(counts, patients=patients))


def quality_table(counts: pd.DataFrame, *, patients: bool = False) -> RenderableType:
    """The numbers for a terminal: signals, then reasons, then patients if asked for."""
    found = quality(counts, patients=patients)
    parts: list[RenderableType] = [_table("signal", found.signals, found.total)]
    if len(found.feeds) > 1:
        parts.append(_table("feed", found.feeds, None))
    if found.reasons:
        reasons = Table("fate", "reason", "signal", box=None, pad_edge=False)
        reasons.add_column("rows", justify="right")
        for fate, reason, signal, rows in found.reasons:
            reasons.add_row(fate, Text(reason), Text(signal or "–"), f"{rows:,}")
        parts.append(reasons)
    if found.patients:
        parts.append(_table("patient", found.patients, None))
    if found.patients_left_out:
        parts.append(Text(f"and {found.patients_left_out:,} patients with fewer faults"))
    return Group(*[part for each in parts for part in (each, Text(""))][:-1])


def _table(title: str, lines: tuple[Line, ...], total: Line | None) -> Table:
    table = Table(title, box=None, pad_edge=False)
    for column in ("read", *ONCE, *ON_TOP):
        table.add_column(column, justify="right")
    for line in (*lines, *((total,) if total else ())):
        cells = [f"{line.fates.get(fate, 0):,}" if line.fates.get(fate) else "–" for fate in (*ONCE, *ON_TOP)]
        name = Text(line.name or "(none)") if line is not total else Text("all", style="bold")
        table.add_row(name, f"{line.read:,}", *cells)
    return table


def _lines(counts: pd.DataFrame, by: str) -> list[Line]:
    lines = []
    for name, rows in counts.groupby(by, sort=True):
        fates = {str(fate): int(sum_) for fate, sum_ in rows.groupby("fate")["rows"].sum().items()}
        lines.append(Line(name=str(name), read=sum(fates.get(f, 0) for f in ONCE), fates=fates))
    return lines
