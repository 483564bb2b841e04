"""What of a site may leave for research: the Safe Harbor rule of HIPAA, 45 CFR 164.514(b)(2), and a refusal.

The rule names eighteen kinds of identifiers. Here an allow list decides, not a list of what to remove:

- (A) names, (D)-(M), (O)-(R) numbers, addresses, pictures: no fact leaves unless its name is on the list.
- (B) places: only `state` and `country`; a postal code leaves as its first three digits, and as 000 where
  fewer than 20,000 people live in that area (the seventeen areas of the census of 2000 in the guidance of the
  Department of Health of 2012, which asks for current census data: extend `FEW_PEOPLE`).
- (C) dates: every patient's record is moved so that it begins on the same nominal day. Distances between
  observations and the time of day stay; the date, the day of the week and the season go. Of birth only the
  age at the record's begin stays, in whole years; above 89 it is 90.
- free text never leaves; a value that looks like an identifier stops the export (`identifiers_in`).

It is not the expert determination of 164.514(b)(1), nor anonymity as the GDPR means it: a record of glucose
every five minutes is as singular as a fingerprint to whoever has it a second time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import pandas as pd

from twin.errors import DataError
from twin.site import Site

FIRST_DAY: Final = pd.Timestamp("2000-01-01", tz="UTC")
OLDEST: Final = 90
NUMBERS: Final = frozenset(
    {"height_cm", "weight_kg", "bmi_kg_m2", "hba1c_pct", "diabetes_duration_years", "label", "diagnosis"}
)
"""Numeric facts that may leave as they are."""
WORDS: Final = frozenset(
    {"sex", "gender", "ethnicity", "race", "diabetes_type", "therapy", "cohort", "unit", "country", "state"}
)
"""Facts of few values that may leave, if each value is a word or two."""
BIRTH: Final = ("birth_date", "birth_year")
POSTAL: Final = ("postal_code", "zip", "zip_code")
FEW_PEOPLE: Final = frozenset(
    [
        "036",
        "059",
        "063",
        "102",
        "203",
        "556",
        "692",
        "790",
        "821",
        "823",
        "830",
        "831",
        "878",
        "879",
        "884",
        "890",
        "893",
    ]
)

_PATTERNS: Final[Mapping[str, re.Pattern[str]]] = {
    "e-mail address": re.compile(r"[\w.+-]+@[\w-]+\.\w{2,}"),
    "web address": re.compile(r"(?i)\b(?:https?://|www\.)\S+"),
    "network address": re.compile(
        r"\b\d{1,3}(?:\.\d{1,3}){3}\b|\b(?:[0-9a-fA-F]{1,4}:){3,}[0-9a-fA-F]{1,4}\b"
    ),
    "social security number": re.compile(r"\b\d{3}-\d{2}-\d{4}\b"),
    "bank account": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b"),
    "telephone number": re.compile(r"(?<![\w.])\+?\(?\d{1,4}\)?(?:[ ./-]\d{2,5}){2,5}(?![\w.])"),
    "date": re.compile(
        r"\b\d{4}-\d{1,2}-\d{1,2}\b|\b\d{1,2}[./]\d{1,2}[./](?:\d{4}|\d{2})\b"
        r"|(?i:\b\d{1,2}\.? ?(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)\w*\.? ?\d{2,4}\b)"
    ),
    "number of a record": re.compile(r"(?<![\d.])\d{6,}(?![\d.])|\b(?:MRN|NHS|SSN|PID)\b"),
    "title of a person": re.compile(r"(?i)\b(?:mr|mrs|ms|dr|prof|herr|frau|mme|sr|sra)\.? +[^\W\d_]{2,}"),
}
_LONGEST_WORD: Final = 40
_MOST_WORDS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Deidentified:
    """What may leave, and what was held back.

    Attributes:
        site: pseudonyms of the export's own use, times from `FIRST_DAY` on.
        held_back: facts that are not on the list, by name, with the patients that have one.
        aggregated: patients whose age stands as 90.
    """

    site: Site
    held_back: Mapping[str, int] = field(default_factory=dict)
    aggregated: int = 0


def deidentify(site: Site, pseudonym: Callable[[str], str], *, known: Collection[str] = ()) -> Deidentified:
    """A site's data as it may leave for research.

    Args:
        pseudonym: of this export; its names must not be those of another.
        known: names and identifiers of the site's patients that must not occur in any text.

    Raises:
        DataError: a text holds what looks like an identifier; says which column and kind, never the text.
    """
    begin = site.observations.groupby("patient_id")["time"].min()
    facts, held_back = _facts(site.patients, begin)
    _refuse_identifiers(facts, known)
    names = {patient: pseudonym(str(patient)) for patient in site.patients.index}
    observations = site.observations.assign(
        patient_id=site.observations["patient_id"].map(names).astype("str"),
        time=site.observations["time"]
        - site.observations["patient_id"].map(begin.dt.normalize())
        + FIRST_DAY,
        source="",
    )
    patients = facts.set_axis(pd.Index([names[p] for p in facts.index], dtype="str", name="patient_id"))
    moved = replace(
        site,
        observations=observations.sort_values(["patient_id", "signal", "time"], ignore_index=True),
        patients=patients.sort_index(),
    )
    old = int((facts["age"] == OLDEST).sum()) if "age" in facts else 0
    return Deidentified(site=moved, held_back=held_back, aggregated=old)


def identifiers_in(text: str, known: Collection[str] = ()) -> tuple[str, ...]:
    """Kinds of identifiers that a text seems to hold; free text is one of them.

    It errs on the side of finding: what it does not find is no proof that there is nothing.

    >>> identifiers_in("female"), identifiers_in("call 0151 234 5678")
    ((), ('telephone number',))
    """
    found = [kind for kind, pattern in _PATTERNS.items() if pattern.search(text)]
    if len(text) > _LONGEST_WORD or len(text.split()) > _MOST_WORDS:
        found.append("free text")
    folded = text.casefold()
    if any(len(name) > 2 and re.search(rf"\b{re.escape(name.casefold())}\b", folded) for name in known):
        found.append("name or identifier of a patient")
    return tuple(found)


def _facts(patients: pd.DataFrame, begin: pd.Series) -> tuple[pd.DataFrame, dict[str, int]]:
    kept: dict[str, pd.Series] = {}
    held_back: dict[str, int] = {}
    for column in patients.columns:
        name = str(column)
        values = patients[column]
        if name in BIRTH or name == "age":
            kept["age"] = _age(values, begin.reindex(patients.index)) if name in BIRTH else _years(values)
        elif name in POSTAL:
            kept["postal_area"] = values.map(_area)
        elif name in NUMBERS:
            kept[name] = pd.to_numeric(values, errors="coerce").astype("float64")
        elif name in WORDS:
            kept[name] = values
        elif values.notna().any():
            held_back[name] = int(values.notna().sum())
    return pd.DataFrame(kept, index=patients.index), held_back


def _age(birth: pd.Series, begin: pd.Series) -> pd.Series:
    """Whole years at the begin of the record; a year of birth counts as its first of January."""
    if birth.dtype.kind in "iuf":
        birth = birth.map(lambda year: "" if np.isnan(year) else f"{int(year):04d}")
    text = birth.astype("str").str.strip()
    born = pd.to_datetime(text.where(text.str.len() != 4, text + "-01-01"), errors="coerce", utc=True)
    had = (begin.dt.month * 100 + begin.dt.day) >= (born.dt.month * 100 + born.dt.day)
    return _years(begin.dt.year - born.dt.year - (~had).astype("float64"))


def _years(age: pd.Series) -> pd.Series:
    years_P = np.floor(pd.to_numeric(age, errors="coerce").to_numpy(dtype="float64"))
    return pd.Series(np.where(years_P < 0, np.nan, np.minimum(years_P, OLDEST)), index=age.index)


def _area(code: object) -> str | float:
    digits = re.sub(r"\D", "", str(code))[:3]
    if len(digits) < 3:
        return np.nan
    return "000" if digits in FEW_PEOPLE else digits


def _refuse_identifiers(facts: pd.DataFrame, known: Collection[str]) -> None:
    faults = []
    for name in facts.columns:
        if facts[name].dtype.kind in "iufb" or name == "postal_area":
            continue
        kinds = {
            kind
            for text in facts[name].dropna().astype("str").unique()
            for kind in identifiers_in(text, known)
        }
        if kinds:
            faults.append(f"{name} ({', '.join(sorted(kinds))})")
    if faults:
        raise DataError(
            f"Nothing was exported: there seem to be identifiers in {'; '.join(faults)}. Correct these facts"
            " at their source, or leave them out of the feed; nobody guesses here what may be removed."
        )
