"""What a converter of a published recording returns, and how it opens the publisher's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from twin.cleaning import CANONICAL, Cleaned, clean
from twin.errors import DataError
from twin.signals import SIGNALS
from twin.site import Quality


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """One site made of a published recording.

    Attributes:
        site: name of its folder.
        observations: columns patient_id, time (UTC), signal, value, unit (canonical); None without any.
        patients: index patient_id, static columns; None without any.
        quality: what became of the publisher's entries; one entry is one value of one signal.
        notes: what a user must know of this recording, one sentence each.
        licence: source, licence and what was changed; goes into the site's LICENSE.txt.
    """

    site: str
    observations: pd.DataFrame | None = None
    patients: pd.DataFrame | None = None
    quality: Quality
    notes: tuple[str, ...] = ()
    licence: str


@dataclass(slots=True, kw_only=True)
class Entries:
    """Entries gathered from the publisher's files, with what was left out before cleaning."""

    parts: list[pd.DataFrame] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)

    def add(self, frame: pd.DataFrame, signal: str, value: str, unit: str) -> None:
        """Take the columns id, time and `value` of a table as entries of one signal."""
        part = frame[["id", "time", value]].set_axis(["patient_id", "time", "value"], axis=1)
        self.parts.append(part.assign(signal=signal, unit=unit))

    def leave_out(self, reason: str, count: int) -> None:
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + int(count)

    def cleaned(self, timezone: str) -> tuple[pd.DataFrame, Quality]:
        """(observations as a federation folder has them, quality over all entries).

        Raises:
            DataError: the publisher's files are not what this converter was written for.
        """
        raw = pd.concat([part.astype({"time": "str"}) for part in self.parts], ignore_index=True)
        result = clean(raw, timezone=timezone)
        if result.faults:
            told = "; ".join(f"{fault.what} ({fault.fix})" for fault in result.faults)
            raise DataError(f"The source is not the recording that this converter knows: {told}.")
        return _with_unit(result), self._whole(result.quality)

    def _whole(self, quality: Quality) -> Quality:
        return Quality(
            rows_read=quality.rows_read + sum(self.dropped.values()),
            rows_kept=quality.rows_kept,
            dropped=self.dropped | quality.dropped,
            fixed=quality.fixed,
            quarantined=quality.quarantined,
        )


def _with_unit(result: Cleaned) -> pd.DataFrame:
    units = {name: entry.unit for name, entry in SIGNALS.items()}
    frame = result.observations[list(CANONICAL[:4])]
    return frame.assign(unit=frame["signal"].map(units))


def open_table(source: Path, name: str, columns: Sequence[str]) -> pd.DataFrame:
    """The publisher's table `name`, every column as text.

    Args:
        source: the folder that holds `name`.csv or .csv.gz, or that file itself.
        columns: that must be there.

    Raises:
        DataError: no such file, or not with these columns.
    """
    choices = (source,) if source.is_file() else (source / f"{name}.csv.gz", source / f"{name}.csv")
    path = next((choice for choice in choices if choice.is_file()), None)
    if path is None:
        raise DataError(f"{source}: expected a folder with {name}.csv or {name}.csv.gz, or that file itself.")
    try:
        frame = pd.read_csv(path, dtype="str", keep_default_na=False, na_values=[""])
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as CSV ({type(error).__name__}); is it whole?") from None
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise DataError(
            f"{path}: lacks the columns {', '.join(missing)}; this converter expects {', '.join(columns)}."
        )
    return frame


def has_table(source: Path, name: str) -> bool:
    """Whether the folder `source` holds the table."""
    return (source / f"{name}.csv.gz").is_file() or (source / f"{name}.csv").is_file()


def glucose_only(source: Path, site: str, notes: tuple[str, ...], licence: str) -> Converted:
    """A site of a recording with the columns id, time (without zone), gl (mg/dL)."""
    entries = Entries()
    entries.add(open_table(source, "glucose", ("id", "time", "gl")), "glucose", "gl", "mg/dL")
    observations, quality = entries.cleaned("UTC")
    return Converted(site=site, observations=observations, quality=quality, notes=notes, licence=licence)
