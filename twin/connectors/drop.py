"""A watched folder into which people put files: each is recognised by its content, read, and moved away.

`<folder>/<patient>/<file>`: exports of one patient stand in a folder named after the patient (see the option
patient); tables, FHIR and HL7 v2 name their patients themselves and may stand anywhere.

A file is whole when its size and time have not changed for settle_s seconds; names that begin with a point or
end as unfinished copies do (.part, .tmp, .crdownload, .filepart, ~) wait. When all of it is committed it is
moved to `taken/`, one that cannot be used to `refused/` beside a text that says why; both keep the place.

What was read is known by its content, so the same file under another name counts once, and after a crash
reading goes on at the row. The position remembers the last ten thousand files; the store recognises the rows
of older ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from twin.connectors import carelink, clarity, folder_feed, libreview, nightscout, tidepool
from twin.connectors.exports import Reader, Refused, check_rule, head_of, refused, whose
from twin.connectors.feed import Batch
from twin.connectors.sources import PanelFile, SourceFile
from twin.errors import DataError

log = logging.getLogger(f"twinward.{__name__}")

TAKEN: Final = "taken"
REFUSED: Final = "refused"
_UNFINISHED: Final = (".part", ".partial", ".tmp", ".crdownload", ".download", ".filepart", "~", ".swp")
_MOST_DONE: Final = 10_000
_LOOK_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """The folder; never ends.

    Attributes:
        name: of the feed.
        folder: watched, at any depth.
        patient: whose an export is; see `twin.connectors.exports.ExportFiles`.
        settle_s: a file that has not changed for so long is whole.
        date_order: of LibreView and CareLink where a file leaves it open.
        identifier: of patients in FHIR; see `twin.connectors.fhir_files.FhirFiles`.
        build: of variants, "GRCh37" or "GRCh38", where a file does not say.
        rows_per_batch: about as many rows are committed at once.
    """

    name: str
    folder: Path
    patient: str = "folder"
    settle_s: float = 5.0
    date_order: str = ""
    identifier: str = ""
    build: str = ""
    rows_per_batch: int = 50_000

    def __post_init__(self) -> None:
        check_rule(self.name, self.patient)
        if self.date_order not in ("", "dmy", "mdy"):
            raise DataError(f'feed {self.name!r}: option date_order must be "dmy", "mdy" or "".')

    def batches(self, position: str) -> Generator[Batch, None, None]:
        """Everything after `position`, see `twin.connectors.feed.Connector`; live."""
        done = _Done.of(position)
        seen: dict[Path, tuple[int, int, float]] = {}
        while True:
            there = self._files()
            present = set(there)
            seen = {path: state for path, state in seen.items() if path in present}
            found = [path for path in there if self._whole(path, seen)]
            for path in found:
                yield from self._take(path, done)
                seen.pop(path, None)
            yield Batch()
            if not found:
                time.sleep(min(_LOOK_S, max(0.01, self.settle_s / 2)))

    def readers(self) -> tuple[Reader, ...]:
        """The kinds of files that are recognised, the most telling first."""
        return (
            PanelFile(build=self.build),
            clarity.READER,
            libreview.reader(self.date_order),
            carelink.reader(self.date_order),
            folder_feed.READER,
            SourceFile(kind="FHIR", identifier=self.identifier),
            SourceFile(kind="HL7 v2"),
            nightscout.READER,
            tidepool.READER,
        )

    def _files(self) -> list[Path]:
        if not self.folder.is_dir():
            raise DataError(f"feed {self.name!r}: its folder is not there; create it.")
        return sorted(
            path
            for path in self.folder.rglob("*")
            if not any(part.startswith(".") for part in path.relative_to(self.folder).parts)
            and path.relative_to(self.folder).parts[0] not in (TAKEN, REFUSED)
            and not path.name.lower().endswith(_UNFINISHED)
            and not path.is_symlink()
            and path.is_file()
        )

    def _whole(self, path: Path, seen: dict[Path, tuple[int, int, float]]) -> bool:
        """Whether a file has kept its size and time since it was first seen so, or long before."""
        try:
            state = path.stat()
        except OSError:
            return False
        before = seen.get(path)
        now = time.monotonic()
        if before is None or before[:2] != (state.st_size, state.st_mtime_ns):
            seen[path] = state.st_size, state.st_mtime_ns, now
            return self.settle_s <= 0
        return now - before[2] >= self.settle_s

    def _take(self, path: Path, done: _Done) -> Iterator[Batch]:
        """Reads, commits (by being asked for more) and moves one file."""
        last: Batch | None = None
        try:
            state = _state(path)
            mark = content_of(path)
            if mark in done.files:
                self._move(path, TAKEN)
                return
            start = done.rows if mark == done.current else 0
            reader = self._reader(path)
            owner = whose(path, self.folder, self.patient) if _is_export(reader) else ""
            for number, batch in reader.parts(path, owner, start, self.rows_per_batch):
                if last is not None:
                    yield last
                done.reached(mark, number)
                last = replace(batch, position=str(done))
        except FileNotFoundError:
            return  # somebody took it away again
        except (Refused, OSError) as fault:
            if last is not None:
                yield last
            done.current = ""
            yield refused(fault, str(done))
            self._move(
                path, REFUSED, str(fault) if isinstance(fault, Refused) else "it cannot be read to its end"
            )
            return
        done.finish(mark)
        yield replace(last or Batch(), position=str(done))
        if _state(path) == state:  # else somebody has put another file in its place
            self._move(path, TAKEN)

    def _reader(self, path: Path) -> Reader:
        """Raises Refused: nobody knows it."""
        if path.name.lower().endswith(".parquet"):
            return folder_feed.READER
        if PanelFile.is_binary(path):
            return PanelFile(build=self.build)
        head = head_of(path)
        for reader in self.readers():
            if reader.fits(head):
                return reader
        kinds = ", ".join(reader.kind for reader in self.readers())
        raise Refused(f"it is none of: {kinds}")

    def _move(self, path: Path, where: str, reason: str = "") -> None:
        place = path.relative_to(self.folder)
        target = self.folder / where / place
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for number in range(1, 10_000):
                if not target.exists():
                    break
                target = (
                    self.folder
                    / where
                    / place.with_name(f"{_short(place.stem)}-{number}{_short(place.suffix)}")
                )
            path.rename(target)
            if reason:
                text = f"This file was refused: {reason}.\nMend it and put it into the folder again.\n"
                target.with_name(f"{_short(target.name, 240)}.reason.txt").write_text(text, encoding="utf-8")
        except OSError as fault:
            raise DataError(
                f"feed {self.name!r}: a file cannot be moved to {where}/ ({fault.strerror}). "
                "Let this user write in the folder."
            ) from None


def _is_export(reader: Reader) -> bool:
    return not isinstance(reader, SourceFile | PanelFile | folder_feed.TableReader)


@dataclass(slots=True, kw_only=True)
class _Done:
    """Which files are read, and how far the one at hand is."""

    files: dict[str, None] = field(default_factory=dict)
    current: str = ""
    rows: int = 0

    @classmethod
    def of(cls, position: str) -> _Done:
        try:
            found = json.loads(position or "{}")
            return cls(
                files=dict.fromkeys(map(str, found.get("files", []))),
                current=str(found.get("current", "")),
                rows=int(found.get("rows", 0)),
            )
        except (ValueError, TypeError, AttributeError):
            raise DataError("The position of a drop folder is damaged; start the feed anew.") from None

    def __str__(self) -> str:
        return json.dumps({"files": list(self.files), "current": self.current, "rows": self.rows})

    def reached(self, mark: str, rows: int) -> None:
        self.current, self.rows = mark, rows

    def finish(self, mark: str) -> None:
        self.files[mark] = None
        self.current, self.rows = "", 0
        while len(self.files) > _MOST_DONE:
            del self.files[next(iter(self.files))]


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _short(name: str, most_bytes: int = 120) -> str:
    """A file system takes 255 bytes."""
    return name.encode(errors="surrogateescape")[:most_bytes].decode(errors="ignore")


def content_of(path: Path) -> str:
    """Digest of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:24]
