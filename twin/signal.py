"""One row of the catalogue of signals, and how it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

MG_DL_PER_MMOL_L = 18.016
"""Of glucose; its molar mass is 180.16 g/mol."""

Kind = Literal["level", "rate", "dose", "count"]
Units = Mapping[tuple[str, ...], float | tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One row of the catalogue.

    Attributes:
        name: as it stands in the column `signal`.
        kind: level is measured, rate holds until the next row, dose happens at its moment, count
            covers an interval and is stamped at its end, when it is known.
        unit: canonical unit, as it is printed.
        ucum: the same in UCUM.
        units: accepted unit, casefolded, to (factor, offset): canonical = factor * value + offset.
        shown: the accepted units as a person writes them, for messages.
        low, high: inclusive limits in the canonical unit; a value outside is a fault.
        usual: between these lies the median of any site; elsewhere the unit is wrong. None: not checked.
        step_min: typical minutes between two values; None where there is none.
        loinc: codes, the preferred one first; empty where LOINC has no fitting term.
        g_per_mol: molar mass, by which amounts of substance become masses; None where neither is meant.
    """

    name: str
    kind: Kind
    unit: str
    ucum: str
    units: Mapping[str, tuple[float, float]]
    shown: tuple[str, ...]
    low: float
    high: float
    usual: tuple[float, float] | None = None
    step_min: float | None = None
    loinc: tuple[str, ...] = ()
    g_per_mol: float | None = None


def fold(unit: str) -> str:
    """A unit without spaces and capitals, as `Signal.units` has it."""
    return "".join(unit.split()).casefold()


def row(
    name: str,
    kind: Kind,
    unit: str,
    limits: tuple[float, float],
    *,
    ucum: str | None = None,
    units: Units,
    usual: tuple[float, float] | None = None,
    step_min: float | None = None,
    loinc: tuple[str, ...] = (),
    g_per_mol: float | None = None,
) -> Signal:
    """A row; `units` maps spellings to a factor, or to a factor and an offset."""
    table: dict[str, tuple[float, float]] = {}
    for spellings, scale in units.items():
        pair = scale if isinstance(scale, tuple) else (scale, 0.0)
        table |= {fold(spelling): pair for spelling in spellings}
    return Signal(
        name=name,
        kind=kind,
        unit=unit,
        ucum=ucum or unit,
        units=table,
        shown=tuple(spelling for spellings in units for spelling in spellings),
        low=limits[0],
        high=limits[1],
        usual=usual,
        step_min=step_min,
        loinc=loinc,
        g_per_mol=g_per_mol,
    )
