"""OMOP CDM v5.4 tables in CSV or Parquet: person, measurement, drug_exposure, visit_occurrence, concept.

| table | becomes |
|---|---|
| person | facts birth_date (as much of it as there is), sex |
| measurement | a row of value_as_number; one with an operator other than = is a bound, and counted |
| drug_exposure | a row of quantity in dose_unit_source_value; without that unit it is counted |
| visit_occurrence | facts encounter_class, encounter_start, encounter_end of the visit that started last |
| concept | codes and units of what the other tables name by number |

A concept number becomes its code by the concept table, if there is one, for codes that the catalogue knows;
by the few standard concepts below; else by the source value, if that is a LOINC code; else it is the code
itself, in the system omop: a site maps it in codes.toml. Units likewise, else unit_source_value.

Times are measurement_datetime, else the date alone, which says no hour and is refused later; without a zone.
Other tables are not read.

Source: OHDSI's CDM v5.4 specification; concept numbers from its vocabularies (Athena).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pandas as pd

from twin.codes import signal_of
from twin.connectors.blocks import Block, frames_of
from twin.connectors.exports import Files, Reader, Refused
from twin.connectors.feed import FACTS, OBSERVATIONS, Batch
from twin.connectors.progress import files_below
from twin.errors import DataError

SYSTEM: Final = "omop"
_CONCEPTS: Final[Mapping[str, tuple[str, str]]] = {
    "3027018": ("loinc", "8867-4"),
    "3004249": ("loinc", "8480-6"),
    "3012888": ("loinc", "8462-4"),
    "3020891": ("loinc", "8310-5"),
    "3024171": ("loinc", "9279-1"),
    "40762499": ("loinc", "59408-5"),
    "3016502": ("loinc", "2708-6"),
    "3004501": ("loinc", "2345-7"),
    "3025315": ("loinc", "29463-7"),
    "3036277": ("loinc", "8302-2"),
    "3004410": ("loinc", "4548-4"),
}
_UNITS: Final[Mapping[str, str]] = {
    "8840": "mg/dL",
    "8753": "mmol/L",
    "8554": "%",
    "8876": "mm[Hg]",
    "8541": "/min",
    "8483": "/min",
    "586323": "Cel",
    "9289": "[degF]",
    "9529": "kg",
    "8582": "cm",
    "8504": "g",
    "8510": "U",
    "8718": "[iU]",
}
_VOCABULARIES: Final = {"LOINC": "loinc", "RxNorm": "rxnorm", "SNOMED": "snomed"}
_EQUAL: Final = frozenset({"", "0", "4172703"})
_SEX: Final = {"8507": "male", "8532": "female"}
_VISITS: Final = {"9201": "IMP", "9202": "AMB", "9203": "EMER", "262": "EMER"}
_TABLES: Final = {
    "concept": ("concept_id", "vocabulary_id", "concept_code"),
    "person": ("person_id",),
    "visit_occurrence": ("person_id", "visit_start_date"),
    "measurement": ("person_id", "measurement_concept_id", "measurement_date", "value_as_number"),
    "drug_exposure": ("person_id", "drug_concept_id", "drug_exposure_start_date", "quantity"),
}
_LOINC: Final = r"\d{1,6}-\d"


@dataclass(frozen=True, slots=True, kw_only=True)
class Omop(Files):
    """A folder of OMOP tables, named as in the CDM; options: see `Files`."""

    def reader(self) -> Reader:
        codes, units = dict(_CONCEPTS), dict(_UNITS)
        for path in self.files():
            if _table(path) == "concept":
                try:
                    _learn(path, codes, units)
                except (Refused, OSError):
                    raise DataError(f"feed {self.name!r}: the table concept cannot be read.") from None
        return OmopReader(codes=codes, units=units)

    def endings(self) -> tuple[str, ...]:
        return (".csv", ".csv.gz", ".tsv", ".parquet")

    def files(self) -> list[Path]:
        order = list(_TABLES)
        found = [path for path in files_below(self.path, self.endings()) if _table(path) in _TABLES]
        return sorted(found, key=lambda path: (order.index(_table(path)), path.as_posix()))


@dataclass(frozen=True, slots=True, kw_only=True)
class OmopReader:
    """Reads one table, as its name says.

    Attributes:
        codes: concept number → (system, code).
        units: concept number → unit.
    """

    codes: Mapping[str, tuple[str, str]]
    units: Mapping[str, str]
    kind: str = "OMOP"
    grows: bool = True
    _last: dict[str, tuple[str, str, str]] = field(default_factory=dict, init=False)

    def fits(self, head: str) -> bool:
        """Whether the first line names a person or a concept."""
        return "person_id" in head.lower() or "concept_id" in head.lower()

    def parts(self, path: Path, patient: str, start: int, rows_per_batch: int) -> Iterator[tuple[int, Batch]]:
        """See `twin.connectors.exports.Reader`; rows name their patients, and a block is a batch."""
        del patient, rows_per_batch
        table = _table(path)
        if table == "concept":
            return
        # the visit that started last may stand anywhere: that table is read from its beginning
        begin = 0 if table == "visit_occurrence" else start
        end = start
        for block in frames_of(path, _TABLES[table], begin):
            end = block.rows
            if table == "visit_occurrence":
                self._visits(block)
            else:
                yield block.rows, self._batch(table, block)
        if table == "visit_occurrence":
            yield end, Batch(facts=self._last_visits())

    def _batch(self, table: str, block: Block) -> Batch:
        bad = {"line with too few or too many cells": block.bad} if block.bad else {}
        if table == "person":
            return Batch(facts=_people(block.frame), rejected=bad)
        if table == "measurement":
            return self._measurements(block.frame, bad)
        return self._drugs(block.frame, bad)

    def _measurements(self, frame: pd.DataFrame, bad: dict[str, int]) -> Batch:
        bound = ~_column(frame, "operator_concept_id").isin(_EQUAL)
        empty = ~bound & (_column(frame, "value_as_number") == "")
        bad |= {"a bound and no value": int(bound.sum()), "no number": int(empty.sum())}
        frame = frame[~bound & ~empty].reset_index(drop=True)
        code = self._codes(frame, "measurement_concept_id", "measurement_source_value")
        unit = _column(frame, "unit_concept_id").map(self.units)
        return Batch(
            observations=_observed(
                frame,
                time=_either(frame, "measurement_datetime", "measurement_date"),
                code=code,
                value=_column(frame, "value_as_number"),
                unit=unit.where(unit.notna(), _column(frame, "unit_source_value")),
            ),
            rejected={reason: rows for reason, rows in bad.items() if rows},
        )

    def _drugs(self, frame: pd.DataFrame, bad: dict[str, int]) -> Batch:
        unit = _column(frame, "dose_unit_source_value")
        empty = (_column(frame, "quantity") == "") | (unit == "")
        bad |= {"drug without a quantity or its unit": int(empty.sum())}
        frame, unit = frame[~empty].reset_index(drop=True), unit[~empty].reset_index(drop=True)
        return Batch(
            observations=_observed(
                frame,
                time=_either(frame, "drug_exposure_start_datetime", "drug_exposure_start_date"),
                code=self._codes(frame, "drug_concept_id", ""),
                value=_column(frame, "quantity"),
                unit=unit,
            ),
            rejected={reason: rows for reason, rows in bad.items() if rows},
        )

    def _codes(self, frame: pd.DataFrame, concept: str, source: str) -> pd.DataFrame:
        """Columns system and code of each row."""
        number = _column(frame, concept)
        found = number.map(self.codes)
        system = found.str[0].where(found.notna(), SYSTEM)
        code = found.str[1].where(found.notna(), number)
        written = _column(frame, source)
        by_source = found.isna() & written.str.fullmatch(_LOINC)
        return pd.DataFrame(
            {"system": system.mask(by_source, "loinc"), "code": code.mask(by_source, written)}
        )

    def _visits(self, block: Block) -> None:
        frame = block.frame
        start = _either(frame, "visit_start_datetime", "visit_start_date")
        end = _either(frame, "visit_end_datetime", "visit_end_date")
        kind = _column(frame, "visit_concept_id").map(_VISITS).fillna("")
        for person, begin, until, what in zip(_column(frame, "person_id"), start, end, kind, strict=True):
            if begin and begin >= self._last.get(person, ("", "", ""))[0]:
                self._last[person] = begin, until, what

    def _last_visits(self) -> pd.DataFrame:
        names = ("encounter_start", "encounter_end", "encounter_class")
        facts = [
            (person, name, value)
            for person, visit in self._last.items()
            for name, value in zip(names, visit, strict=True)
            if value
        ]
        return pd.DataFrame(facts, columns=list(FACTS), dtype="str")


def _table(path: Path) -> str:
    return path.name.lower().split(".")[0]


def _learn(path: Path, codes: dict[str, tuple[str, str]], units: dict[str, str]) -> None:
    """Adds the concepts whose codes the catalogue knows, and all units of UCUM."""
    for block in frames_of(path, _TABLES["concept"]):
        frame = block.frame
        kept = frame[frame["vocabulary_id"].isin([*_VOCABULARIES, "UCUM"])]
        columns = (kept["concept_id"], kept["vocabulary_id"], kept["concept_code"])
        for number, vocabulary, code in zip(*columns, strict=True):
            if vocabulary == "UCUM":
                units[number] = code
            elif signal_of(_VOCABULARIES[vocabulary], code):
                codes[number] = _VOCABULARIES[vocabulary], code


def _column(frame: pd.DataFrame, name: str) -> pd.Series:
    if name in frame:
        return frame[name].astype("str").fillna("").str.strip()
    return pd.Series("", index=frame.index, dtype="str")


def _either(frame: pd.DataFrame, first: str, second: str) -> pd.Series:
    found = _column(frame, first)
    return found.where(found != "", _column(frame, second))


def _observed(
    frame: pd.DataFrame, *, time: pd.Series, code: pd.DataFrame, value: pd.Series, unit: pd.Series
) -> pd.DataFrame:
    made = pd.DataFrame(
        {
            "patient": _column(frame, "person_id"),
            "time": time,
            "system": code["system"],
            "code": code["code"],
            "value": value,
            "unit": unit,
            "device": "",
        }
    )
    return made.astype("str")[list(OBSERVATIONS)]


def _people(frame: pd.DataFrame) -> pd.DataFrame:
    person = _column(frame, "person_id")
    year, month, day = (_column(frame, f"{part}_of_birth") for part in ("year", "month", "day"))
    born = year.where(year.str.fullmatch(r"\d{4}"), "")
    born = born.where((born == "") | (month == ""), born + "-" + month.str.zfill(2))
    whole = born.str.fullmatch(r"\d{4}-\d{2}") & (day != "")
    born = born.where(~whole, born + "-" + day.str.zfill(2))
    sex = _column(frame, "gender_concept_id").map(_SEX).fillna("")
    facts = [
        pd.DataFrame({"patient": person, "name": n, "value": v})
        for n, v in (("birth_date", born), ("sex", sex))
    ]
    together = pd.concat(facts)
    return together[together["value"] != ""].astype("str").reset_index(drop=True)[list(FACTS)]
