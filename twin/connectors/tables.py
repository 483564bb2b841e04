"""A table file (CSV, gzip-compressed CSV, Parquet) as text columns, or what is wrong with it."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from twin.cleaning import Fault

SUFFIXES = (".csv", ".csv.gz", ".parquet")

_CONVERT = "convert it, for instance: iconv -f WINDOWS-1252 -t UTF-8 OLD.csv > NEW.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table as it stands in its file.

    Attributes:
        frame: the columns asked for (or all), names stripped and lower-case, text as text; None if the
            file cannot be used.
        faults: what is wrong with the file as a whole.
        bad_lines: lines with more fields than the header, which are not in `frame`.
        extra: how many other columns the file has.
    """

    frame: pd.DataFrame | None
    faults: tuple[Fault, ...] = ()
    bad_lines: int = 0
    extra: int = 0


def read_table(path: Path, required: Sequence[str], *, whole: bool = False) -> Table:
    """The table at `path`.

    Args:
        path: ends in one of `SUFFIXES`.
        required: columns that must be there.
        whole: give every column, not only these.
    """
    try:
        if path.name.lower().endswith(".parquet"):
            return _parquet(path, required, whole)
        return _csv(path, required, whole)
    except OSError as error:
        return _broken(
            f"cannot be read ({error.strerror or type(error).__name__})",
            "check that it is whole and readable",
        )


def _broken(what: str, fix: str) -> Table:
    return Table(frame=None, faults=(Fault(what=what, fix=fix),))


def _csv(path: Path, required: Sequence[str], whole: bool) -> Table:
    data = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            return _broken(
                "is no whole gzip file", "compress or copy it again; `gzip -t FILE` tells whether it is whole"
            )
    elif data[:2] == b"\x1f\x8b":
        return _broken("is compressed, but its name does not say so", "rename it to end in .csv.gz")
    fault = _encoding_fault(data)
    if fault:
        return Table(frame=None, faults=(fault,))
    header = next(csv.reader(io.StringIO(data[:65536].decode("utf-8-sig", errors="ignore"))), [])
    fault = _header_fault(header, required)
    return Table(frame=None, faults=(fault,)) if fault else _parse(data, header, required, whole)


def _encoding_fault(data: bytes) -> Fault | None:
    if not data.strip():
        return Fault(what="is empty", fix="write at least the header line, or remove the file")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return Fault(
            what="is in UTF-16, expected UTF-8",
            fix="convert it, for instance: iconv -f UTF-16 -t UTF-8 OLD.csv > NEW.csv",
        )
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return Fault(what=f"is not UTF-8: byte {error.start:,} (line {line:,}) does not fit", fix=_CONVERT)
    if b"\x00" in data:
        return Fault(
            what=f"holds a NUL byte at {data.index(0):,}: it is no text",
            fix="export it again as CSV in UTF-8",
        )
    return None


def _header_fault(header: list[str], required: Sequence[str]) -> Fault | None:
    names = [name.strip().lower() for name in header]
    missing = [name for name in required if name not in names]
    twice = [name for name in required if names.count(name) > 1]
    if twice:
        return Fault(what=f"has the column {', '.join(twice)} more than once", fix="keep one of them")
    if not missing:
        return None
    for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")):
        if any(separator in cell for cell in header):
            return Fault(
                what=f"its columns are separated by {name}",
                fix="separate them by commas (and write 5.4, not 5,4)",
            )
    present = [name for name in required if name in names]
    others = len(names) - len(present)
    return Fault(
        what=f"lacks the column {', '.join(missing)} (found: {', '.join(present) or 'none of the expected'}, "
        f"and {others} other columns)",
        fix=f"the first line must name the columns: {','.join(required)}",
    )


def _parse(data: bytes, header: list[str], required: Sequence[str], whole: bool) -> Table:
    names = [name.strip().lower() for name in header]
    bad: list[int] = []
    use = None if whole else [names.index(name) for name in required]
    try:
        frame = _read(data, use)
    except pd.errors.ParserError:
        try:
            frame = pd.read_csv(
                io.BytesIO(data),
                dtype="str",
                keep_default_na=False,
                na_values=[""],
                encoding="utf-8-sig",
                engine="python",
                usecols=use,
                index_col=False,
                on_bad_lines=lambda fields: bad.append(len(fields)),
            )
        except (pd.errors.ParserError, csv.Error):
            return _broken(
                "cannot be split into columns (a quote that never ends?)", 'check the quotes (") in it'
            )
    frame.columns = pd.Index([str(name).strip().lower() for name in frame.columns])
    extra = len(names) - len(required)
    return Table(frame=frame if whole else frame[list(required)], bad_lines=len(bad), extra=extra)


def _read(data: bytes, use: list[int] | None) -> pd.DataFrame:
    return pd.read_csv(
        io.BytesIO(data),
        dtype="str",
        keep_default_na=False,
        na_values=[""],
        encoding="utf-8-sig",
        usecols=use,
        index_col=False,
    )


def _parquet(path: Path, required: Sequence[str], whole: bool) -> Table:
    try:
        schema = pq.read_schema(path)
        fault = _header_fault(list(schema.names), required)
        if fault:
            return Table(frame=None, faults=(fault,))
        wanted = [name for name in schema.names if whole or name.strip().lower() in required]
        table = pq.read_table(path, columns=wanted)
    except (pa.ArrowException, OSError):
        return _broken("is no whole Parquet file", "write or copy it again")
    frame = pd.DataFrame({name.strip().lower(): _column(name, table[name]) for name in wanted})
    extra = len(schema.names) - len(required)
    return Table(frame=frame if whole else frame[list(required)], extra=extra)


def _column(name: str, column: pa.ChunkedArray) -> pd.Series:
    """A pandas column; dictionaries unpacked, identifiers as text."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if name.strip().lower() == "patient_id" and not _is_text(column.type):
        if pa.types.is_floating(column.type) and pc.all(pc.equal(pc.floor(column), column)).as_py():
            column = column.cast(pa.int64())
        column = column.cast(pa.string())
    series: pd.Series = column.to_pandas()
    return series


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
