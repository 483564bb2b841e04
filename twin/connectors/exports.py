"""What feeds of exported files share: which file is read up to where, whose it is, numbers, dates, doses.

A file is read in parts. Its place (a digest, for a name may be a patient's), its size and a digest of its
bytes say whether it is the one that was read before: the same is left alone, one that grew goes on at the
row, one that changed is read anew, and the store recognises what it has.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol

from twin.connectors.feed import Batch
from twin.connectors.progress import blocks_of, files_below, is_worth_another_try, lines_from
from twin.connectors.rows import Rows
from twin.errors import DataError

log = logging.getLogger(f"twinward.{__name__}")

HEAD_BYTES: Final = 64 * 1024
_NUMBER: Final = re.compile(r"[+-]?(?:\d{1,15}(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d{1,2})?")
_LOW: Final = frozenset(
    (
        "low",
        "lo",
        "niedrig",
        "tief",
        "bas",
        "faible",
        "basso",
        "bajo",
        "baixo",
        "laag",
        "låg",
        "lavt",
        "lav",
        "matala",
    )
)
_HIGH: Final = frozenset(
    ("high", "hi", "hoch", "haut", "élevé", "elevé", "alto", "hoog", "hög", "højt", "høj", "høyt", "korkea")
)
_SPREAD_MIN: Final = 5


class Refused(DataError):
    """A file that cannot be used as a whole; the text says what was expected, and names no patient."""


class Reader(Protocol):
    """How one kind of file is read."""

    @property
    def kind(self) -> str: ...

    @property
    def grows(self) -> bool:
        """Whether a file that got longer goes on where it was."""
        ...

    def fits(self, head: str) -> bool:
        """Whether a file that begins so is of this kind."""
        ...

    def parts(self, path: Path, patient: str, start: int, rows_per_batch: int) -> Iterator[tuple[int, Batch]]:
        """(records read, what they gave) from record `start` on, a batch at a time.

        Raises:
            Refused, OSError: the file cannot be read, or not further.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReader:
    """A reader of records: `records` adds a record's rows and yields its number, from 1 on."""

    kind: str
    fits: Callable[[str], bool]
    records: Callable[[Path, str, Rows], Iterator[int]]
    grows: bool = True

    def parts(self, path: Path, patient: str, start: int, rows_per_batch: int) -> Iterator[tuple[int, Batch]]:
        rows, number = Rows(), 0
        if not self.fits(head_of(path)):
            raise Refused(f"this is no {self.kind} export")
        for number in self.records(path, patient, rows):
            if number <= start:
                rows.clear()
            elif len(rows) >= rows_per_batch:
                yield number, rows.batch("")
                rows.clear()
        yield max(number, start), rows.batch("")


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """A file or a folder of files of one kind, read once; ends when everything is read.

    Attributes:
        name: of the feed.
        path: a file, or a folder with files at any depth.
        settle_s: a file that changed less than this ago is waited for.
        rows_per_batch: about as many rows are committed at once.
    """

    name: str
    path: Path
    settle_s: float = 5.0
    rows_per_batch: int = 50_000

    def reader(self) -> Reader:
        """How a file of this kind is read."""
        raise NotImplementedError

    def endings(self) -> tuple[str, ...]:
        """Of the names of its files, lower-case."""
        return (".csv", ".csv.gz", ".txt")

    def files(self) -> list[Path]:
        """Its files, in the order in which they are read."""
        return files_below(self.path, self.endings())

    def owner(self, path: Path) -> str:  # noqa: ARG002 - others need it
        """Whose a file is; "" if it says so itself."""
        return ""

    def batches(self, position: str) -> Generator[Batch, None, None]:
        """Everything after `position`, see `twin.connectors.feed.Connector`."""
        kept, reader = Kept.of(position), self.reader()
        for path in self.files():
            yield from settled(path, self.settle_s)
            yield from self._file(path, kept, reader)

    def _file(self, path: Path, kept: Kept, reader: Reader) -> Iterator[Batch]:
        place = place_of(path, self.path)
        last: Batch | None = None
        try:
            start = kept.start_of(place, path, reader.grows)
            if start is None:
                return
            for number, batch in reader.parts(path, self.owner(path), start, self.rows_per_batch):
                if last is not None:
                    yield last
                kept.reached(place, number)
                last = replace(batch, position=str(kept))
        except (Refused, OSError) as fault:
            if not is_worth_another_try(fault):
                kept.finish(place)
            if last is not None:
                yield last
            yield refused(fault, str(kept))
            return
        kept.finish(place)
        yield replace(last or Batch(), position=str(kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFiles(Files):
    """Files of which each is one patient's.

    Attributes:
        patient: whose a file is: "folder", the name of the folder that it stands in; "file", its name up to
            the first underscore or dot; "id:…", this one's.
    """

    patient: str = "folder"

    def __post_init__(self) -> None:
        check_rule(self.name, self.patient)

    def owner(self, path: Path) -> str:
        return whose(path, self.path, self.patient)


def check_rule(feed: str, rule: str) -> None:
    """Nothing.

    Raises:
        DataError: the option `patient` of a feed is none of its forms.
    """
    if rule not in ("folder", "file") and not (rule.startswith("id:") and rule[3:].strip()):
        raise DataError(f"feed {feed!r}: {_RULES}")


_RULES: Final = (
    'option patient says whose a file is: "folder" (the name of the folder that it stands in), "file" (its '
    'name up to the first underscore or dot) or "id:…" (this patient\'s).'
)


def refused(fault: Exception, position: str) -> Batch:
    """What is committed of a file that cannot be used."""
    reason = str(fault) if isinstance(fault, Refused) else "cannot be read, or not to its end"
    log.warning("a file was refused: %s", reason)
    return Batch(rejected={f"file refused: {reason}": 1}, position=position)


def settled(path: Path, settle_s: float) -> Iterator[Batch]:
    """Empty batches while a file is still being written."""
    deadline = time.monotonic() + 20 * settle_s
    while time.monotonic() < deadline:
        try:
            left_s = path.stat().st_mtime + settle_s - time.time()
        except OSError:
            return
        if not 0 < left_s <= settle_s:
            return
        yield Batch()
        time.sleep(min(left_s, 0.5))


@dataclass(slots=True, kw_only=True)
class Kept:
    """How far each file of a feed is read; `str` of it is a position.

    Attributes:
        files: by digest of the place: [size, digest of so many bytes, records read, whether all are].
    """

    files: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, position: str) -> Kept:
        """What `str` of it says.

        Raises:
            DataError: it says nothing such.
        """
        try:
            files = json.loads(position or "{}").get("files", {})
            return cls(files={str(k): [int(a), str(b), int(c), bool(d)] for k, (a, b, c, d) in files.items()})
        except (ValueError, TypeError, AttributeError):
            raise DataError("The position of a feed of files is damaged; start the feed anew.") from None

    def __str__(self) -> str:
        return json.dumps({"files": self.files})

    def start_of(self, place: str, path: Path, grows: bool) -> int | None:
        """Records of a file that are read already; None: all of it is."""
        size = path.stat().st_size
        known = self.files.get(place)
        start = 0
        if known is not None and known[0] <= size and digest_of(path, known[0]) == known[1]:
            if known[0] == size and known[3]:
                return None
            start = known[2] if grows or known[0] == size else 0
            if known[0] < size and start and not _ends_a_line(path, known[0]):
                start -= 1  # the last line was still being written
        elif known is not None:
            log.warning("a file that was read before has changed; it is read anew")
        self.files[place] = [size, digest_of(path, size), start, False]
        return start

    def reached(self, place: str, number: int) -> None:
        """So many records of a file are read."""
        self.files[place][2] = number

    def finish(self, place: str) -> None:
        """A file is read."""
        self.files.setdefault(place, [0, "", 0, True])[3] = True


def place_of(path: Path, root: Path) -> str:
    """The digest under which a file's progress is kept."""
    place = path.relative_to(root).as_posix() if path != root else path.name
    return hashlib.sha256(place.encode()).hexdigest()[:20]


def digest_of(path: Path, size: int) -> str:
    """Digest of the first `size` bytes of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while size > 0 and (block := handle.read(min(size, 1 << 20))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()[:32]


def _ends_a_line(path: Path, size: int) -> bool:
    """Whether the first `size` bytes of a file end where a line does."""
    with path.open("rb") as handle:
        handle.seek(max(0, size - 1))
        return handle.read(1) == b"\n"


def whose(path: Path, root: Path, rule: str) -> str:
    """The patient of a file by the option `patient`.

    Raises:
        Refused: the rule names nobody.
    """
    if rule.startswith("id:"):
        return rule.removeprefix("id:").strip()
    if rule == "file":
        name = re.split(r"[_.]", path.name, maxsplit=1)[0].strip()
        if not name:
            raise Refused("its name does not begin with a patient's identifier")
        return name
    if path == root or path.parent == root:
        raise Refused('it stands in no folder named after its patient (or set the option patient to "file")')
    return path.parent.name


def head_of(path: Path) -> str:
    """The beginning of a file as text.

    Raises:
        Refused: it is no text in UTF-8 or a single-byte encoding.
    """
    head = next(blocks_of(path, HEAD_BYTES), b"")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or head[:4096].count(0) > len(head[:4096]) // 8:
        raise Refused("it is no text in UTF-8")
    return head.decode("utf-8-sig", errors="replace")


def cells_of(path: Path, separator: str, rows: Rows) -> Iterator[tuple[int, list[str]]]:
    """(number from 1, cells) of each line; a quote that never ends costs its own line, not the rest."""
    number = 0
    for _, line in lines_from(path, 0):
        number += 1
        if line is None:
            rows.rejected["line too long"] += 1
            continue
        text = line.decode("utf-8-sig" if number == 1 else "utf-8", errors="replace").rstrip("\r\n")
        try:
            cells = next(csv.reader([text], delimiter=separator), [])
        except csv.Error:
            rows.rejected["line cannot be split"] += 1
            continue
        yield number, cells


def separator_of(line: str) -> str:
    """Comma, semicolon or tab, whichever a header has most of."""
    return max(",;\t", key=line.count)


def number_of(text: str) -> float | None:
    """A number with a decimal point or comma; None if it is none.

    >>> number_of("7,2"), number_of("1e400"), number_of("1_0"), number_of("7.2 ")
    (7.2, None, None, 7.2)
    """
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        return None
    return float(text.replace(",", "."))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensor:
    """What a sensor's "Low" and "High" stand for: the ends of what it measures, in mg/dL."""

    low_mg_dl: float = 40.0
    high_mg_dl: float = 400.0

    def value(self, text: str, unit: str, rows: Rows) -> tuple[float, str] | None:
        """(value, unit) of a cell; of a word the limit, counted as fixed; else None, counted."""
        found = number_of(text)
        if found is not None:
            return found, unit
        word = text.strip().casefold().lstrip("<>").strip()
        for words, limit, name in ((_LOW, self.low_mg_dl, "Low"), (_HIGH, self.high_mg_dl, "High")):
            if word in words:
                rows.fixed[f'"{name}" of a sensor set to its limit'] += 1
                return limit, "mg/dL"
        rows.rejected["value is no number"] += 1
        return None


def spread(start: datetime, units: float, duration_min: float) -> list[tuple[datetime, float]]:
    """(time, dose) of what a pump gives over a while: equal parts for every five minutes, `units` together.

    A part stands in the middle of its minutes, so it never meets the dose that was given at once.
    """
    parts = max(1, min(288, round(duration_min / _SPREAD_MIN)))
    step = timedelta(minutes=duration_min / parts)
    return [(start + (k + 0.5) * step, units / parts) for k in range(parts)]
