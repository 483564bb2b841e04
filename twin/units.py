"""What a unit is worth for a signal: the catalogue's spellings, IEEE 11073's codes, and all of UCUM.

A unit converts by UCUM where its dimension is that of the canonical unit, or where one counts molecules, the
other weighs them, and the catalogue knows the molar mass. Not by UCUM, but by the catalogue alone:
- what has no dimension but time (/min, %, 1, {steps}): `%` and `mmol/mol` would pass for one another;
- arbitrary units ([iU], [arb'U]), which are comparable with nothing;
- equivalents (eq), which need the ion's charge.
An annotation in braces says nothing of size: `{beat}/min` is `/min`.

Needs ucumvert (the extra `site`) for units that the catalogue does not spell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any, Final

from twin.errors import DataError
from twin.signals import SIGNALS, conversion

Scale = tuple[float, float]
"""(factor, offset): canonical = factor * value + offset."""

_DIM: Final = 4 << 16
_MDC: Final[Mapping[str, tuple[int, str]]] = {
    "MDC_DIM_PERCENT": (544, "%"),
    "MDC_DIM_DIMLESS": (512, "1"),
    "MDC_DIM_PH": (992, "[pH]"),
    "MDC_DIM_CENTI_M": (1297, "cm"),
    "MDC_DIM_X_INCH": (1376, "[in_i]"),
    "MDC_DIM_MILLI_L": (1618, "mL"),
    "MDC_DIM_X_G": (1728, "g"),
    "MDC_DIM_KILO_G": (1731, "kg"),
    "MDC_DIM_X_LB": (1760, "[lb_av]"),
    "MDC_DIM_MILLI_G_PER_DL": (2130, "mg/dL"),
    "MDC_DIM_BEAT_PER_MIN": (2720, "/min"),
    "MDC_DIM_RESP_PER_MIN": (2784, "/min"),
    "MDC_DIM_KILO_PASCAL": (3843, "kPa"),
    "MDC_DIM_MMHG": (3872, "mm[Hg]"),
    "MDC_DIM_CM_H2O": (3904, "cm[H2O]"),
    "MDC_DIM_FAHR": (4416, "[degF]"),
    "MDC_DIM_MILLI_MOLE_PER_L": (4722, "mmol/L"),
    "MDC_DIM_DEGC": (6048, "Cel"),
}
"""Units of IEEE 11073-10101, partition 4, by reference id: term code and UCUM."""

_OF_MDC: Final[Mapping[str, str]] = {name.casefold(): ucum for name, (_, ucum) in _MDC.items()} | {
    str(_DIM + term): ucum for term, ucum in _MDC.values()
}
_WORDS: Final[Mapping[str, str]] = {
    "beats/minute": "/min",
    "beats per minute": "/min",
    "breaths/minute": "/min",
    "breaths per minute": "/min",
    "mmhg": "mm[Hg]",
    "degrees celsius": "Cel",
    "degrees c": "Cel",
    "degrees fahrenheit": "[degF]",
    "degrees f": "[degF]",
    "deg f": "[degF]",
    "deg c": "Cel",
    "pounds": "[lb_av]",
    "inches": "[in_i]",
    "kilograms": "kg",
    "mmol/l": "mmol/L",
    "mg/dl": "mg/dL",
}
"""What people write in the text of a unit, casefolded."""

_ARBITRARY: Final = re.compile(r"\[(?:iu|arb|usp|ppl|cfu|pfu|tcid|ccid|anti|bdsk|knk|mclg|to|aps|gpl|mpl)|eq")


@lru_cache(maxsize=4096)
def scale(signal: str, unit: str) -> Scale | None:
    """(factor, offset) from `unit` to the canonical unit of `signal`; None if nobody knows it.

    Args:
        signal: of the catalogue.
        unit: as its source writes it: UCUM, a spelling of the catalogue, a code of IEEE 11073, words.

    Raises:
        DataError: the unit is not of the catalogue, and the package for UCUM is not installed.
    """
    entry = SIGNALS.get(signal)
    if entry is None:
        return None
    written = " ".join(unit.split())
    folded = written.casefold()
    known = _OF_MDC.get(folded) or _WORDS.get(folded) or written
    plain = re.sub(r"\{[^{}]*\}|[{}]", "", known)
    for spelling in (known, plain):
        if found := conversion(signal, spelling):
            return found
    if not plain and conversion(signal, "1") == (1.0, 0.0):
        return 1.0, 0.0
    return _by_ucum(plain, entry.ucum, entry.g_per_mol) if plain else None


def _by_ucum(unit: str, canonical: str, g_per_mol: float | None) -> Scale | None:
    if _ARBITRARY.search(unit.casefold()) or _ARBITRARY.search(canonical.casefold()):
        return None
    made, wanted = _quantity(unit), _quantity(canonical)
    if made is None or wanted is None or set(made.dimensionality) <= {"[time]"}:
        return None
    by_amount = 1.0
    if made.dimensionality != wanted.dimensionality:
        if g_per_mol is None:
            return None
        made, by_amount = _weighed(made, g_per_mol)
        if made.dimensionality != wanted.dimensionality:
            return None
    nothing, one = _at(made, wanted, 0.0), _at(made, wanted, 1.0)
    return (one - nothing) * by_amount, nothing * by_amount


def _weighed(made: Any, g_per_mol: float) -> tuple[Any, float]:
    """An amount of substance as a mass, a mass as an amount, and what its number must be multiplied by."""
    per_mole = _registry().Quantity(1.0, "gram / mole")
    if "[substance]" in made.dimensionality:
        return made * per_mole, g_per_mol
    return made / per_mole, 1 / g_per_mol


def _at(made: Any, wanted: Any, value: float) -> float:
    return float(_registry().Quantity(value * made.magnitude, made.units).to(wanted.units).magnitude) / float(
        wanted.magnitude
    )


@lru_cache(maxsize=4096)
def _quantity(unit: str) -> Any:
    """One of `unit` as pint has it; None if it is no UCUM."""
    if len(unit) > 64:  # no unit is longer; a parser is no place for a stranger's novel
        return None
    try:
        return _one(unit)
    except DataError:
        raise
    except Exception:  # noqa: BLE001 - the parser and the registry raise many kinds, and all mean: no unit
        return None


def _one(unit: str) -> Any:
    found = _registry().from_ucum(unit)
    return _registry().Quantity(getattr(found, "magnitude", 1.0), getattr(found, "units", found))


@cache
def _registry() -> Any:
    try:
        from ucumvert import PintUcumRegistry
    except ModuleNotFoundError:
        raise DataError(
            "A unit that is not in the catalogue needs the package 'ucumvert': pip install 'twinward[site]'."
        ) from None
    return PintUcumRegistry()
