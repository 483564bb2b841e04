"""FHIR R4 from files: bundles and single resources in JSON or XML, and folders of a bulk export (NDJSON)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from twin.connectors.feed import Batch
from twin.connectors.fhir_models import Refused, read_bundle, read_head, read_xml
from twin.connectors.fhir_rows import Reader
from twin.connectors.progress import Progress, files_below, is_worth_another_try, lines_from, mark_of, whole
from twin.connectors.rows import Rows

ENDINGS: Final = (".json", ".ndjson", ".xml", ".json.gz", ".ndjson.gz", ".xml.gz")
_NAMES_FIRST: Final = re.compile(r"(?<![A-Za-z])(Patient|Medication)(?![A-Za-z])")


@dataclass(frozen=True, slots=True, kw_only=True)
class FhirFiles:
    """A file or a folder of FHIR R4, read once; ends when everything is read.

    Files of patients and medications come first, for the others refer to them; the rest in the order of
    their names. A file that cannot be read is counted and passed over.

    Attributes:
        name: of the feed.
        path: a file (.json, .ndjson, .xml, each also .gz), or a folder with such files at any depth.
        identifier: system of the identifiers that name patients, for instance that of the hospital's record
            numbers; "" takes the ids of the Patient resources.
        waveforms: see `twin.connectors.fhir_rows.Reader`.
        rows_per_batch: about as many rows are committed at once; a bundle stays whole.
    """

    name: str
    path: Path
    identifier: str = ""
    waveforms: bool = False
    rows_per_batch: int = 50_000

    def batches(self, position: str) -> Iterator[Batch]:
        """Everything after `position`, see `twin.connectors.feed.Connector`."""
        progress, rows = Progress.of(position), Rows()
        reader = Reader(identifier=self.identifier, waveforms=self.waveforms)
        changed = False
        for path in sorted(files_below(self.path, ENDINGS), key=_order):
            mark = mark_of(path, self.path)
            if mark in progress.done:
                _remember(path, reader)
                continue
            changed = True
            try:
                for offset in self._read(path, progress.start_of(mark), reader, rows):
                    progress.reached(mark, offset)
                    yield rows.batch(str(progress))
                    rows.clear()
            except OSError as fault:
                rows.rejected["file cannot be read"] += 1
                if is_worth_another_try(fault):
                    continue
            progress.finish(mark)
            if len(rows) >= self.rows_per_batch:
                yield rows.batch(str(progress))
                rows.clear()
                changed = False
        if changed:
            yield rows.batch(str(progress))

    def _read(self, path: Path, start: int, reader: Reader, rows: Rows) -> Iterator[int]:
        """Adds a file's rows; yields where it stands whenever they are enough for a batch."""
        if ".ndjson" in path.name.lower():
            yield from self._read_lines(path, start, reader, rows)
        else:
            _read_whole(path, reader, rows)

    def _read_lines(self, path: Path, start: int, reader: Reader, rows: Rows) -> Iterator[int]:
        for number, (offset, line) in enumerate(lines_from(path, start), start=1):
            if line is None:
                rows.rejected["line too long"] += 1
            elif not line.isspace():
                reader.take_text(line, rows)
            if len(rows) >= self.rows_per_batch or number % (4 * self.rows_per_batch) == 0:
                yield offset


def _order(path: Path) -> tuple[bool, str]:
    return _NAMES_FIRST.search(path.name) is None, path.as_posix()


def _remember(path: Path, reader: Reader) -> None:
    """Lets the reader know again who is who, from a file that was read before."""
    if _NAMES_FIRST.search(path.name) and ".ndjson" in path.name.lower():
        try:
            for _, line in lines_from(path, 0):
                reader.take_text(line or b"", Rows())
        except OSError:
            return


def _read_whole(path: Path, reader: Reader, rows: Rows) -> None:
    text = whole(path)
    if text is None:
        rows.rejected["file too large"] += 1
        return
    try:
        if ".xml" in path.name.lower():
            reader.take_bundle(read_xml(text), rows)
        elif read_head(text).resourceType == "Bundle":
            reader.take_bundle(read_bundle(text), rows)
        else:
            reader.take_text(text, rows)
    except Refused as refused:
        rows.rejected[str(refused)] += 1
