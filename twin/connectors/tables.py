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
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from twin.cleaning import Fault

SUFFIXES = (".csv", ".csv.gz", ".parquet")


_QUOTES = 'check the quotes (") in it'
_CONVERT = "convert it, for instance: iconv -f WINDOWS-1252 -t UTF-8 OLD.csv > NEW.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table as it stands in its file.

    Attributes:
        frame: the columns asked for (or all), names stripped and lower-case, text as text; None if the
            file cannot be used.
        faults: what is wrong with the file as a whole.
        bad_lines: lines with more or fewer fields than the header, which are not in `frame`.
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
    data = data.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
    try:
        first = io.StringIO(data[:65536].decode("utf-8", errors="ignore"), newline=None)
        header = next(csv.reader(first), [])
    except csv.Error:
        return _broken("has a first line that cannot be split into columns", _QUOTES)
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
            found = [cell.strip().strip('"').lower() for cell in separator.join(header).split(separator)]
            lacking = [name for name in required if name not in found]
            return Fault(
                what=f"its columns are separated by {name}"
                + (f", and none is called {', '.join(lacking)}" if lacking else ""),
                fix="separate them by commas (and write 5.4, not 5,4)"
                + (f"; the first line must name the columns: {','.join(required)}" if lacking else ""),
            )
    present = ", ".join(name for name in required if name in names) or "none of the expected"
    others = len(names) - len(required) + len(missing)
    return Fault(
        what=f"lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)} "
        f"(found: {present}, and {others} other column{'s' if others != 1 else ''})",
        fix=f"the first line must name the columns: {','.join(required)}",
    )


def _parse(data: bytes, header: list[str], required: Sequence[str], whole: bool) -> Table:
    if data.count(b'"') % 2:
        return _broken("has a quote that never ends", _QUOTES)
    names = [name.strip().lower() for name in header]
    unique = [name if names.index(name) == place else f"{name}.{place}" for place, name in enumerate(names)]
    wanted = unique if whole else list(required)
    bad: list[int] = []

    def count(row: pacsv.InvalidRow) -> str:
        bad.append(row.actual_columns)
        return "skip"

    try:
        table = pacsv.read_csv(
            io.BytesIO(data),
            read_options=pacsv.ReadOptions(column_names=unique, skip_rows=1, use_threads=False),
            parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=count),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(unique, pa.string()),
                include_columns=wanted,
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid as error:
        if "Empty" not in str(error):
            return _broken("cannot be split into columns (a quote that never ends?)", _QUOTES)
        table = pa.table({name: pa.array([], pa.string()) for name in wanted})
    frame = table.to_pandas().astype("str")
    if b'"' in data and any(frame[name].str.contains("\n", regex=False).any() for name in required):
        return _broken("has a cell that runs over several lines", _QUOTES)
    return Table(frame=frame, bad_lines=len(bad), extra=len(names) - len(required))


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
