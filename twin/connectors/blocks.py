"""A table of any length as frames of text, block by block, in bounded memory.

CSV (also .gz) is cut at line ends and parsed by Arrow; a block with quotes is parsed line by line, so that a
quote that never ends costs its own line and no other. Parquet comes in row groups' batches.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from twin.connectors.exports import Refused, separator_of
from twin.connectors.progress import blocks_of

_BLOCK: Final = 4 << 20
_LONGEST: Final = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some rows of a table.

    Attributes:
        rows: of the table up to here, in lines of a CSV.
        frame: text columns, names lower-case; "" or NA is missing.
        bad: lines with more or fewer cells than the header.
        separator: of the cells.
    """

    rows: int
    frame: pd.DataFrame
    bad: int
    separator: str = ","


def columns_of(head: str) -> list[str]:
    """The names in the first line of a CSV, lower-case."""
    line = head.lstrip("\ufeff\r\n").partition("\n")[0].rstrip("\r")
    cells = next(csv.reader([line], delimiter=separator_of(line)), [])
    return [cell.strip().lower() for cell in cells]


def frames_of(path: Path, required: Sequence[str], start: int = 0) -> Iterator[Block]:
    """The rows after the first `start` ones.

    Raises:
        Refused: it is no such table, or lacks a required column.
        OSError: it cannot be read further.
    """
    if path.name.lower().endswith(".parquet"):
        yield from _parquet(path, required, start)
    else:
        yield from _csv(path, required, start)


def _check(names: Sequence[str], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in names]
    if missing:
        raise Refused(f"it lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}")


def _csv(path: Path, required: Sequence[str], start: int) -> Iterator[Block]:
    names: list[str] = []
    separator, rows = ",", 0
    for number, block in enumerate(_lines(path)):
        if number == 0:
            header, _, block = block.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n").partition(b"\n")  # noqa: PLW2901 - the header is no row
            line = header.decode("utf-8", errors="replace").strip()
            names, separator = columns_of(line), separator_of(line)
            _check(names, required)
            if len(set(names)) < len(names):
                raise Refused("it has two columns of one name")
        count = block.count(b"\n") + (not block.endswith(b"\n") and bool(block))
        if rows + count > start and count:
            skip = max(0, start - rows)
            if skip:
                block = block.split(b"\n", skip)[skip]  # noqa: PLW2901 - what was read before
            yield _parse(block, names, separator, rows + count)
        rows += count


def _lines(path: Path) -> Iterator[bytes]:
    """Blocks that end where a line ends."""
    rest = b""
    for block in blocks_of(path, _BLOCK):
        cut = block.rfind(b"\n") + 1
        if cut:
            yield rest + block[:cut]
            rest = block[cut:]
        else:
            rest += block
            if len(rest) > _LONGEST:
                raise Refused("a line is longer than 32 MiB")
    if rest:
        yield rest


def _parse(block: bytes, names: list[str], separator: str, rows: int) -> Block:
    try:
        block.decode()
    except UnicodeDecodeError:
        block = block.decode("utf-8", errors="replace").encode()
    bad = 0

    def count(_: pacsv.InvalidRow) -> str:
        nonlocal bad
        bad += 1
        return "skip"

    if b'"' in block:
        good: list[list[str]] = []
        for line in block.decode().split("\n"):
            cells = _split(line.rstrip("\r"), separator)
            if len(cells) == len(names):
                good.append(cells)
            else:
                bad += bool(line.strip())
        frame = pd.DataFrame(good, columns=names, dtype="str")
        return Block(rows=rows, frame=frame, bad=bad, separator=separator)
    try:
        table = pacsv.read_csv(
            io.BytesIO(block),
            read_options=pacsv.ReadOptions(column_names=names, use_threads=False, block_size=_LONGEST),
            parse_options=pacsv.ParseOptions(
                delimiter=separator, quote_char=False, invalid_row_handler=count, ignore_empty_lines=True
            ),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid:  # nothing but empty lines, or what Arrow cannot split at all
        bad = sum(bool(line.strip()) for line in block.splitlines())
        return Block(rows=rows, frame=pd.DataFrame(columns=names, dtype="str"), bad=bad, separator=separator)
    return Block(rows=rows, frame=table.to_pandas().astype("str"), bad=bad, separator=separator)


def _split(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return []


def _parquet(path: Path, required: Sequence[str], start: int) -> Iterator[Block]:
    try:
        file = pq.ParquetFile(path)
        names = [name.strip().lower() for name in file.schema_arrow.names]
        _check(names, required)
        rows = 0
        for batch in file.iter_batches(batch_size=50_000):
            rows += batch.num_rows
            if rows > start:
                skip = max(0, start - rows + batch.num_rows)
                frame = batch.slice(skip).to_pandas()
                frame.columns = pd.Index(names)
                yield Block(rows=rows, frame=_as_text(frame), bad=0)
    except (pa.ArrowException, OSError):
        raise Refused("it is no whole Parquet file") from None


def _as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Whole numbers without a point, so that an identifier stays one; times stay times."""
    found: dict[str, pd.Series] = {}
    for name in frame.columns:
        column = frame[name]
        if pd.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all():
            column = column.astype("Int64")
        is_time = isinstance(column.dtype, pd.DatetimeTZDtype) or pd.api.types.is_datetime64_dtype(column)
        if is_time:
            found[name] = column.map(lambda time: "" if pd.isna(time) else time.isoformat()).astype("str")
        else:
            found[name] = column.astype("str").where(column.notna(), "")
    return pd.DataFrame(found)
