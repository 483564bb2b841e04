"""A federation folder as a feed: the observations and patients of one site, as docs/data.md says.

`twinward data convert` writes such folders from published recordings, so these are feeds as well. A file that
grew goes on at its row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from twin.connectors.blocks import Block, columns_of, frames_of
from twin.connectors.exports import Files, Reader, Refused, head_of
from twin.connectors.feed import CATALOGUE, FACTS, OBSERVATIONS, Batch
from twin.connectors.tables import SUFFIXES

_OBSERVATIONS: Final = ("patient_id", "time", "signal", "value", "unit")
_MISSING: Final = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "<na>"})
_MOST_FACTS: Final = 500
_DECIMAL_COMMA: Final = re.compile(r"^\s*([+-]?\d+),(\d+)\s*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFeed(Files):
    """One site's folder of a federation folder; options: see `Files`."""

    def reader(self) -> Reader:
        return READER

    def endings(self) -> tuple[str, ...]:
        return tuple(f"{table}{suffix}" for table in ("observations", "patients") for suffix in SUFFIXES)


@dataclass(frozen=True, slots=True)
class TableReader:
    """Reads tables of observations and of patients."""

    kind: str = "federation folder"
    grows: bool = True

    def fits(self, head: str) -> bool:
        """Whether the first line names the columns of observations."""
        return set(_OBSERVATIONS) <= set(columns_of(head))

    def parts(self, path: Path, patient: str, start: int, rows_per_batch: int) -> Iterator[tuple[int, Batch]]:
        """See `twin.connectors.exports.Reader`; rows name their patients, and a block is a batch."""
        del patient, rows_per_batch
        is_facts = path.name.lower().startswith("patients.")
        if not is_facts and not path.name.lower().endswith(".parquet") and not self.fits(head_of(path)):
            raise Refused(f"its first line must name the columns {','.join(_OBSERVATIONS)}")
        for block in frames_of(path, ("patient_id",) if is_facts else _OBSERVATIONS, start):
            yield block.rows, _facts(block) if is_facts else _observed(block)


def _observed(block: Block) -> Batch:
    named = block.frame[["patient_id", "time", "signal", "value", "unit"]].rename(
        columns={"patient_id": "patient", "signal": "code"}
    )
    if block.separator == ";":  # as spreadsheets write it where a comma begins the decimals
        named["value"] = named["value"].str.replace(_DECIMAL_COMMA, r"\1.\2", regex=True)
    named = named.assign(system=CATALOGUE, device="").reset_index(drop=True)
    return Batch(observations=named[list(OBSERVATIONS)], rejected=_bad(block.bad))


def _facts(block: Block) -> Batch:
    names = [name for name in block.frame.columns if name and name != "patient_id"][:_MOST_FACTS]
    long = block.frame.melt(id_vars="patient_id", value_vars=names, var_name="name", value_name="value")
    long["value"] = long["value"].astype("str").str.strip()
    known = long[~long["value"].str.lower().isin(_MISSING)].rename(columns={"patient_id": "patient"})
    return Batch(facts=known[list(FACTS)].astype("str").reset_index(drop=True), rejected=_bad(block.bad))


def _bad(lines: int) -> dict[str, int]:
    return {"line with too few or too many cells": lines} if lines else {}


READER: Final = TableReader()
