"""Proteins and expression as facts of patients: a table of samples, long or wide, in CSV, TSV or Parquet.

A feature is a gene symbol or a UniProt accession; its fact is called `<assay>:<feature> [<unit>]`, so that
what was measured in another unit, or normalised in another way, is another fact. The unit must be declared.

transform = "log2" takes log2(value + offset) of values that are declared linear; "zscore" takes
(value - mean) / sd by a table of those two that the option `reference` names. Neither is ever computed from
the patients of the file: what one patient's fact is does not depend on who else is in it.

Missing is what is empty, NA or not a finite number; it gives no fact, and no 0.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from twin.connectors.blocks import Block, frames_of
from twin.connectors.exports import Files, Reader, Refused, head_of, separator_of
from twin.connectors.feed import FACTS, Batch
from twin.errors import DataError

_UNIPROT: Final = re.compile(
    r"(?:[OPQ][0-9][A-Z0-9]{3}[0-9]|[A-NR-Z][0-9](?:[A-Z][A-Z0-9]{2}[0-9]){1,2})(?:-\d{1,2})?"
)
_SYMBOL: Final = re.compile(r"[A-Z][A-Z0-9]{1,14}(?:[-.][A-Z0-9]{1,8})*|C\d{1,2}orf\d{1,4}|ENSG\d{11}")
_LAYOUTS: Final = ("long", "samples_in_rows", "samples_in_columns")
_TRANSFORMS: Final = ("none", "log2", "zscore")
_WRITTEN: Final = ".8g"


@dataclass(frozen=True, slots=True, kw_only=True)
class Omics(Files):
    """A table of protein or expression values.

    Attributes:
        assay: first part of the facts' names, for instance "protein" or "expression".
        unit: of the values as they are written, for instance "NPX", "TPM", "ng/mL", "log2 intensity".
        layout: "long" (columns sample, feature, value), "samples_in_rows" or "samples_in_columns".
        sample, feature, value: names of those columns; in a wide table the first column's.
        scale: "linear" or "log": what the values are.
        transform: "none", "log2" or "zscore".
        offset: added before log2.
        reference: a CSV with the columns feature, mean, sd, for "zscore".
        features: only these; empty takes all, up to `most_features`.
    """

    assay: str
    unit: str
    layout: str = "long"
    sample: str = "sample"
    feature: str = "feature"
    value: str = "value"
    scale: str = "linear"
    transform: str = "none"
    offset: float = 0.0
    reference: Path | None = None
    features: tuple[str, ...] = ()
    most_features: int = 1000

    def __post_init__(self) -> None:
        wrong = []
        if not re.fullmatch(r"[a-z][a-z_]{0,30}", self.assay):
            wrong.append("assay must be a word in small letters")
        if not self.unit.strip() or len(self.unit) > 40 or set(self.unit) & set("[]\n"):
            wrong.append("unit must say what the values are in (up to 40 characters)")
        if self.layout not in _LAYOUTS:
            wrong.append(f"layout must be one of {', '.join(_LAYOUTS)}")
        if self.scale not in ("linear", "log"):
            wrong.append('scale must be "linear" or "log"')
        if self.transform not in _TRANSFORMS:
            wrong.append(f"transform must be one of {', '.join(_TRANSFORMS)}")
        if self.transform == "log2" and (self.scale != "linear" or self.offset < 0):
            wrong.append('transform = "log2" needs scale = "linear" and an offset of at least 0')
        if (self.transform == "zscore") != (self.reference is not None):
            wrong.append('transform = "zscore" and the option reference (feature, mean, sd) go together')
        if wrong:
            raise DataError(f"feed {self.name!r}: {'; '.join(wrong)}.")

    def reader(self) -> Reader:
        return OmicsReader(options=self, reference=_reference(self))

    def endings(self) -> tuple[str, ...]:
        return (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class OmicsReader:
    """Reads one table as the options say."""

    options: Omics
    reference: Mapping[str, tuple[float, float]]
    kind: str = "omics"
    grows: bool = True
    _seen: dict[str, None] = field(default_factory=dict, init=False)

    def fits(self, head: str) -> bool:
        """Whether the first line names the column of samples or features."""
        first = head.partition("\n")[0].lower()
        return self.options.sample.lower() in first or self.options.feature.lower() in first

    def parts(self, path: Path, patient: str, start: int, rows_per_batch: int) -> Iterator[tuple[int, Batch]]:
        """See `twin.connectors.exports.Reader`; samples are patients, and a block is a batch."""
        del patient, rows_per_batch
        options = self.options
        key = options.feature if options.layout == "samples_in_columns" else options.sample
        needed = (key, options.feature, options.value) if options.layout == "long" else (key,)
        names = _written_names(path) if options.layout == "samples_in_columns" else {}
        for block in frames_of(path, tuple(name.lower() for name in needed), start):
            yield block.rows, self._batch(block, names)

    def _batch(self, block: Block, names: Mapping[str, str]) -> Batch:
        options = self.options
        sample, feature, value = options.sample.lower(), options.feature.lower(), options.value.lower()
        frame = block.frame
        if options.layout == "samples_in_rows":
            frame = frame.melt(id_vars=[sample], var_name=feature, value_name=value)
        elif options.layout == "samples_in_columns":
            frame = frame.melt(id_vars=[feature], var_name=sample, value_name=value)
            frame[sample] = frame[sample].map(lambda name: names.get(name, name))
        rejected = {"line with too few or too many cells": block.bad}
        facts = self._facts(frame[sample], frame[feature], frame[value], rejected)
        return Batch(facts=facts, rejected={reason: rows for reason, rows in rejected.items() if rows})

    def _facts(
        self, sample: pd.Series, feature: pd.Series, value: pd.Series, rejected: dict[str, int]
    ) -> pd.DataFrame:
        feature = _canonical(feature)
        known = self._known(feature)
        rejected["feature that is no gene symbol or UniProt accession, or not wanted"] = int((~known).sum())
        number = pd.to_numeric(value.astype("str").str.strip(), errors="coerce").astype("float64")
        number = self._transformed(number, feature)
        finite = np.isfinite(number)
        rejected["no finite number"] = int((known & ~finite).sum())
        kept = known & finite & (sample.astype("str").str.strip() != "")
        options = self.options
        unit = {"none": options.unit, "log2": f"log2 {options.unit}", "zscore": f"z {options.unit}"}
        shown = f" [{unit[options.transform]}]"
        return (
            pd.DataFrame(
                {
                    "patient": sample[kept].astype("str").str.strip(),
                    "name": options.assay + ":" + feature[kept] + shown,
                    "value": number[kept].map(lambda x: format(x, _WRITTEN)),
                }
            )
            .astype("str")[list(FACTS)]
            .reset_index(drop=True)
        )

    def _known(self, feature: pd.Series) -> pd.Series:
        wanted = {name.upper() for name in self.options.features}
        good: set[str] = set()
        for name in feature.unique():
            is_name = bool(_UNIPROT.fullmatch(name) or _SYMBOL.fullmatch(name))
            if not is_name or (wanted and name.upper() not in wanted):
                continue
            if name not in self._seen and len(self._seen) >= self.options.most_features:
                raise Refused(
                    f"it has more than {self.options.most_features} features: name those that are wanted in "
                    "the option features, or raise most_features"
                )
            self._seen[name] = None
            good.add(name)
        return feature.isin(good)

    def _transformed(self, number: pd.Series, feature: pd.Series) -> pd.Series:
        if self.options.transform == "log2":
            moved = number + self.options.offset
            return pd.Series(np.log2(moved.where(moved > 0)), index=number.index)
        if self.options.transform == "zscore":
            mean = feature.map({name: mean for name, (mean, _) in self.reference.items()})
            sd = feature.map({name: sd for name, (_, sd) in self.reference.items()})
            return (number - mean.astype("float64")) / sd.astype("float64")
        return number


def _canonical(feature: pd.Series) -> pd.Series:
    """Without blanks; columns of wide tables were folded to small letters."""
    text = feature.astype("str").str.strip()
    upper = text.str.upper()
    return upper.str.replace(r"^(C\d{1,2})ORF(\d{1,4})$", r"\1orf\2", regex=True)


def _written_names(path: Path) -> dict[str, str]:
    """Sample names as the header writes them, by their small letters."""
    if path.name.lower().endswith(".parquet"):
        try:
            return {name.strip().lower(): name.strip() for name in pq.read_schema(path).names}
        except (pa.ArrowException, OSError):
            raise Refused("it is no whole Parquet file") from None
    line = head_of(path).partition("\n")[0].rstrip("\r")
    cells = next(csv.reader([line], delimiter=separator_of(line)), [])
    return {cell.strip().lower(): cell.strip() for cell in cells}


def _reference(options: Omics) -> dict[str, tuple[float, float]]:
    if options.reference is None:
        return {}
    found: dict[str, tuple[float, float]] = {}
    try:
        for block in frames_of(options.reference, ("feature", "mean", "sd")):
            for name, mean, sd in block.frame[["feature", "mean", "sd"]].itertuples(index=False):
                found[str(name).strip().upper()] = float(mean), float(sd)
    except (Refused, OSError, ValueError):
        raise DataError(f"feed {options.name!r}: reference must be a CSV of feature, mean, sd.") from None
    if not found or any(not (np.isfinite(mean) and sd > 0) for mean, sd in found.values()):
        raise DataError(f"feed {options.name!r}: reference needs a finite mean and an sd above 0 for each.")
    return found
