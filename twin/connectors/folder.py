"""Sites from a federation folder: `<root>/<site>/observations.csv[.gz]|.parquet` and `patients.*`.

`observations` has the columns patient_id, time, signal, value, unit; `patients` has patient_id and any
static columns. A site has one of the two or both. Every fault of every site is found before anything
stops, so that one message tells all.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from twin.cleaning import CANONICAL, COLUMNS, Cleaned, Fault, clean, step_minutes
from twin.connectors.tables import SUFFIXES, Table, read_table
from twin.errors import DataError
from twin.signals import SIGNALS
from twin.site import Quality, Site
from twin.times import check_zone

LAYOUT = "expected <root>/<site>/observations.csv (or .csv.gz, .parquet), see docs/data.md"

_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
_SITE_NAME = re.compile(r"\w[\w .\-]{0,62}")
_EVERYWHERE = "all"
_MOST_SHOWN = 50
_FILES = frozenset(table + suffix for table in ("observations", "patients") for suffix in SUFFIXES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A fault and where it is."""

    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. To mend it: {self.fix}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one site's folder gave: the site as far as it could be read, and what is wrong with it."""

    name: str
    site: Site
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()
    has_observations: bool = False
    naive_times: int = 0


@dataclass(slots=True, kw_only=True)
class _Notes:
    """Faults and warnings gathered while one site is read."""

    where: str
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def fault(self, file: str, fault: Fault) -> None:
        where = f"{self.where}/{file}" if file else self.where
        self.problems.append(Problem(where=where, what=fault.what, fix=fault.fix))


def read_folder(path: str | Path, timezone: str | None = None) -> tuple[Site, ...]:
    """The sites of a federation folder, in the order of their names.

    Args:
        path: the root; its sub-folders are the sites. Hidden folders and loose files are not looked at.
        timezone: IANA zone of times that carry none; they are refused without it.

    Raises:
        DataError: naming every fault of every site, and how to mend each.
    """
    check_zone(timezone)
    problems, readings = read_sites(Path(path), timezone)
    problems = problems + [problem for reading in readings for problem in reading.problems]
    if problems:
        raise DataError(describe(problems))
    return tuple(reading.site for reading in readings)


def describe(problems: list[Problem]) -> str:
    """One message of all problems."""
    lines = [f"  {number}. {problem}" for number, problem in enumerate(problems[:_MOST_SHOWN], start=1)]
    if len(problems) > _MOST_SHOWN:
        lines.append(f"  … and {len(problems) - _MOST_SHOWN} more")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"The data cannot be used as it is; {count}:", *lines])


def read_sites(
    root: Path,
    timezone: str | None,
    *,
    done: Callable[[str], None] | None = None,
) -> tuple[list[Problem], list[Reading]]:
    """(problems of the folder as a whole, one reading per site folder). Raises nothing for bad data."""
    problem = _root_problem(root)
    if problem:
        return [problem], []
    problems, folders = _linked_once(root, _site_folders(root))
    if not folders and not problems:
        problems.append(Problem(where=str(root), what="holds no site folder", fix=LAYOUT))
    readings = []
    for folder in folders:
        try:
            readings.append(read_site(folder, timezone))
        except OSError as error:
            what = f"cannot be listed ({error.strerror})"
            problems.append(Problem(where=folder.name, what=what, fix="check its permissions"))
        if done:
            done(folder.name)
    if readings and not any(reading.site.patients.size or len(reading.site.patients) for reading in readings):
        problems.extend(_too_high(root, folders))
    return problems, readings


def read_site(folder: Path, timezone: str | None) -> Reading:
    """One site's folder."""
    notes = _Notes(where=folder.name)
    if not _SITE_NAME.fullmatch(folder.name):
        fix = "name it with letters, digits, spaces, dots, hyphens and underscores, at most 63"
        notes.fault("", Fault(what="its name cannot be a site's name", fix=fix))
    if folder.name == _EVERYWHERE:
        notes.fault("", Fault(what="its name stands for all sites in tables of figures", fix="rename it"))
    found = {table: _find(folder, table, notes) for table in ("observations", "patients")}
    cleaned, bad_lines = _observations(found["observations"], timezone, notes)
    static, repairs = _patients(found["patients"], notes)
    if not any(found.values()) and not notes.problems:
        fix = "put observations.csv (or .csv.gz, .parquet) there, or hide the folder with a leading dot"
        notes.fault("", Fault(what=f"holds neither observations nor patients{_near_misses(folder)}", fix=fix))
    site = _assemble(folder.name, cleaned, bad_lines, static, repairs, found, notes)
    naive = cleaned.quality.quarantined.get("time without zone", 0) + sum(
        count for reason, count in cleaned.quality.fixed.items() if reason.startswith("time without zone")
    )
    return Reading(
        name=folder.name,
        site=site,
        problems=tuple(notes.problems),
        warnings=tuple(notes.warnings),
        has_observations=found["observations"] is not None,
        naive_times=naive,
    )


def _root_problem(root: Path) -> Problem | None:
    where = str(root)
    if not root.exists():
        link = " (a link that leads nowhere)" if root.is_symlink() else ""
        return Problem(where=where, what=f"does not exist{link}", fix="check data.path")
    if not root.is_dir():
        site = root.resolve().parent
        fix = f"give {site.parent}" if root.name.lower() in _FILES else LAYOUT
        return Problem(where=where, what="is a file, expected a folder of site folders", fix=fix)
    try:
        names = {entry.name.lower() for entry in root.iterdir()}
    except OSError as error:
        return Problem(where=where, what=f"cannot be listed ({error.strerror})", fix="check its permissions")
    if names & _FILES:
        return Problem(
            where=where,
            what="is itself a site: it holds observations or patients, expected a folder of site folders",
            fix=f"give its parent, {root.resolve().parent}, whose sub-folders are the sites",
        )
    return None


def _site_folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and entry.name[0] not in "._")


def _linked_once(root: Path, folders: list[Path]) -> tuple[list[Problem], list[Path]]:
    """(links that lead twice to one place, the folders without them)."""
    parents = {root.resolve(), *root.resolve().parents}
    first: dict[Path, str] = {}
    problems = []
    for folder in folders:
        target = folder.resolve()
        if target in parents:
            problems.append(
                Problem(where=folder.name, what="is a link back to its parent", fix="remove the link")
            )
        elif target in first:
            what = f"is the same folder as {first[target]}; its patients would count twice"
            problems.append(Problem(where=folder.name, what=what, fix="remove one of the two links"))
        else:
            first[target] = folder.name
    return problems, [folder for folder in folders if folder.name in first.values()]


def _too_high(root: Path, folders: list[Path]) -> list[Problem]:
    for folder in folders:
        below = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink()]
        if any((entry / f"observations{suffix}").exists() for entry in below for suffix in SUFFIXES):
            what = f"the site folders lie one level deeper, in {folder.name}"
            return [Problem(where=str(root), what=what, fix=f"give {folder}")]
    return []


def _find(folder: Path, table: str, notes: _Notes) -> Path | None:
    names = {table + suffix for suffix in SUFFIXES}
    files = sorted(entry for entry in folder.iterdir() if entry.name.lower() in names)
    if len(files) > 1:
        listed = " and ".join(file.name for file in files)
        notes.fault("", Fault(what=f"holds {listed}, and only one can count", fix="keep one of them"))
    return files[0] if files else None


def _near_misses(folder: Path) -> str:
    near = [
        entry.suffix
        for entry in folder.iterdir()
        if entry.is_file()
        and entry.suffix.lower() in {".csv", ".xlsx", ".xls", ".tsv", ".txt", ".json", ".zip", ".gz"}
    ]
    return f" (but files with other names: {', '.join(sorted(set(near)))})" if near else ""


def _observations(file: Path | None, timezone: str | None, notes: _Notes) -> tuple[Cleaned, int]:
    empty = pd.DataFrame({name: pd.Series(dtype="str") for name in COLUMNS})
    if file is None:
        return clean(empty), 0
    table = _table(file, COLUMNS, notes)
    raw = empty if table.frame is None else table.frame
    cleaned = clean(raw, timezone=timezone, source=file.name)
    for fault in cleaned.faults:
        notes.fault(file.name, fault)
    if cleaned.observations.empty and not table.faults and not cleaned.faults:
        notes.fault(file.name, _nothing_left(cleaned.quality))
    return cleaned, table.bad_lines


def _nothing_left(quality: Quality) -> Fault:
    if not quality.rows_read:
        return Fault(what="has a header and no row", fix="add rows, or remove the site's folder")
    reasons = ", ".join(
        f"{reason} ({count:,})" for reason, count in (quality.dropped | quality.quarantined).items()
    )
    fix = "see docs/data.md for each reason"
    if any(reason.startswith("unknown signal") for reason in quality.quarantined):
        fix = f"name the signals as they are known: {', '.join(SIGNALS)}"
    return Fault(what=f"has no usable row of {quality.rows_read:,}: {reasons}", fix=fix)


def _table(file: Path, required: tuple[str, ...], notes: _Notes, *, whole: bool = False) -> Table:
    table = read_table(file, required, whole=whole)
    for fault in table.faults:
        notes.fault(file.name, fault)
    return table


def _patients(file: Path | None, notes: _Notes) -> tuple[pd.DataFrame | None, dict[str, int]]:
    """(static columns by patient_id, rows that were left out by reason)."""
    if file is None:
        return None, {}
    frame = _table(file, ("patient_id",), notes, whole=True).frame
    if frame is None:
        return None, {}
    frame = frame.assign(patient_id=frame["patient_id"].astype("str").str.strip())
    named = frame[frame["patient_id"].notna() & frame["patient_id"].ne("")]
    distinct = named.drop_duplicates()
    twice = int(distinct["patient_id"].duplicated().sum())
    if twice:
        what = f"repeats a patient_id with other values ({twice:,} times)"
        notes.fault(file.name, Fault(what=what, fix="keep one row for each patient"))
    repairs = {
        f"row of {file.name} without patient_id": len(frame) - len(named),
        f"repeated row of {file.name}": len(named) - len(distinct),
    }
    static = distinct.drop_duplicates("patient_id").set_index("patient_id").sort_index()
    if static.empty:
        notes.fault(
            file.name, Fault(what="has no usable row", fix="add one row for each patient, or remove it")
        )
    typed = pd.DataFrame({name: _typed(static[name]) for name in static.columns}, index=static.index)
    return typed, {reason: count for reason, count in repairs.items() if count}


def _typed(column: pd.Series) -> pd.Series:
    """float64 where every value that is there is a number, else text."""
    if column.dtype.kind in "iufb":
        return column.astype("float64")
    text = column.astype("str").str.strip()
    text = text.mask(text.str.lower().isin(_MISSING))
    number = pd.to_numeric(text, errors="coerce").astype("float64")
    return number if bool((number.notna() | text.isna()).all()) else text


def _assemble(
    name: str,
    cleaned: Cleaned,
    bad_lines: int,
    static: pd.DataFrame | None,
    repairs: dict[str, int],
    found: dict[str, Path | None],
    notes: _Notes,
) -> Site:
    observed = pd.Index(cleaned.observations["patient_id"].unique(), dtype="str", name="patient_id")
    if static is None:
        patients = pd.DataFrame(index=observed.sort_values())
    else:
        if found["observations"] is not None and not notes.problems:
            _compare_ids(observed, static.index, notes)
        patients = static.reindex(static.index.union(observed).sort_values())
    patients.index = pd.Index(patients.index, dtype="str", name="patient_id")
    return Site(
        name=name,
        observations=cleaned.observations[list(CANONICAL)],
        patients=patients,
        step_min=step_minutes(cleaned.observations),
        quality=_quality(cleaned.quality, bad_lines, static, repairs, found["observations"] is not None),
    )


def _compare_ids(observed: pd.Index, listed: pd.Index, notes: _Notes) -> None:
    common = len(observed.intersection(listed))
    if not common and len(observed) and len(listed):
        notes.fault(
            "",
            Fault(
                what="no patient_id of patients occurs in observations",
                fix="write the identifiers alike in both files (a spreadsheet may have cut leading zeros)",
            ),
        )
        return
    if len(listed) > common:
        notes.warnings.append(f"{len(listed) - common:,} patients of patients have no observation")
    if len(observed) > common:
        notes.warnings.append(f"{len(observed) - common:,} patients of observations have no row in patients")


def _quality(
    quality: Quality, bad_lines: int, static: pd.DataFrame | None, repairs: dict[str, int], observed: bool
) -> Quality:
    """Counts of observations; where a site has none of these, of rows of patients."""
    if not observed and static is not None:
        kept = len(static)
        return Quality(rows_read=kept + sum(repairs.values()), rows_kept=kept, dropped=repairs)
    dropped = dict(quality.dropped) | (
        {"line with more or fewer fields than the header": bad_lines} if bad_lines else {}
    )
    return replace(
        quality, rows_read=quality.rows_read + bad_lines, dropped=dropped, fixed=dict(quality.fixed) | repairs
    )
