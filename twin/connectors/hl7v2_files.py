"""HL7 v2 from files: single messages, several after one another, batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from twin.connectors.feed import Batch
from twin.connectors.hl7v2 import OWN, Reading, messages_in
from twin.connectors.progress import Progress, files_below, is_worth_another_try, mark_of, whole
from twin.connectors.rows import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Hl7v2Files:
    """A file or a folder of HL7 v2 messages, read once; ends when everything is read.

    Attributes:
        name: of the feed.
        path: a file, or a folder with files at any depth.
        endings: of the names of files that are read.
        authority, default_system: see `twin.connectors.hl7v2.Reading`.
        rows_per_batch: about as many rows are committed at once; a message stays whole.
    """

    name: str
    path: Path
    endings: tuple[str, ...] = (".hl7", ".hl7.gz")
    authority: str = ""
    default_system: str = OWN
    rows_per_batch: int = 50_000

    def batches(self, position: str) -> Iterator[Batch]:
        """Everything after `position`, see `twin.connectors.feed.Connector`."""
        progress, rows = Progress.of(position), Rows()
        changed = False
        for path in files_below(self.path, self.endings):
            mark = mark_of(path, self.path)
            if mark in progress.done:
                continue
            changed = True
            try:
                for number in self._read(path, progress.start_of(mark), rows):
                    progress.reached(mark, number)
                    yield rows.batch(str(progress))
                    rows.clear()
            except OSError as fault:
                rows.rejected["file cannot be read"] += 1
                if is_worth_another_try(fault):
                    continue
            progress.finish(mark)
        if changed:
            yield rows.batch(str(progress))

    def _read(self, path: Path, start: int, rows: Rows) -> Iterator[int]:
        """Adds a file's rows; yields the number of its messages whenever they are enough for a batch."""
        reading = Reading(authority=self.authority, default_system=self.default_system)
        text = whole(path)
        if text is None:
            rows.rejected["file too large"] += 1
            return
        for number, message in enumerate(messages_in(text), start=1):
            if number <= start:
                continue
            if message is None:
                rows.rejected["segments outside a message"] += 1
            else:
                reading.take(message, rows)
            if len(rows) >= self.rows_per_batch:
                yield number
