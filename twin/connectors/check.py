"""What a federation folder holds and what is wrong with it, for a person and as plain data.

It reads the folder exactly as a run would, collects instead of raising, and shows no patient's value or
identifier.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from twin.connectors.folder import Problem, Reading, read_sites
from twin.errors import DataError
from twin.signals import SIGNALS
from twin.site import Quality, Site
from twin.times import check_zone

FEW_PATIENTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalSummary:
    """One signal at one site. step_min and days are None where one row only was seen."""

    name: str
    unit: str
    rows: int
    patients: int
    step_min: float | None
    days: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSummary:
    """One site as a run would see it.

    Attributes:
        days: between the first and the last observation, median over patients; None without any.
        static: names of the columns of `patients`.
        warnings: what does not stop a run but should be known.
    """

    name: str
    patients: int
    days: float | None
    signals: tuple[SignalSummary, ...]
    static: tuple[str, ...]
    quality: Quality
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """The result of `check_folder`; `str` of it is for a person, `to_dict` for a machine."""

    path: str
    sites: tuple[SiteSummary, ...]
    problems: tuple[Problem, ...]
    timezone: str | None = None

    @property
    def ok(self) -> bool:
        """Whether a run can use the folder as it is."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain data that json can write."""
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        lines = [f"{self.path}: {_count(len(self.sites), 'site')}"]
        for site in self.sites:
            lines += ["", *_describe(site)]
        lines.append("")
        if self.ok:
            zone = f" data.timezone={self.timezone}" if self.timezone else ""
            path = shlex.quote(f"data.path={self.path}")
            return "\n".join([*lines, f"The folder can be used: twinward simulate data=folder {path}{zone}"])
        lines.append(f"The folder cannot be used as it is; {_count(len(self.problems), 'problem')}:")
        return "\n".join(
            [*lines, *(f"  {number}. {one}" for number, one in enumerate(self.problems, start=1))]
        )


def check_folder(
    path: str | Path,
    timezone: str | None = None,
    *,
    now: datetime | None = None,
    done: Callable[[str], None] | None = None,
) -> CheckReport:
    """What the folder holds, and every problem in it; never raises for bad data.

    Args:
        path: root of a federation folder.
        timezone: IANA zone of times that carry none.
        now: what counts as the future; default the clock's.
        done: called with a site's name when it has been read.
    """
    try:
        check_zone(timezone)
    except DataError:
        fix = "name a zone of the IANA list, for instance Europe/London (data check: --timezone ZONE)"
        return CheckReport(
            path=str(path),
            sites=(),
            problems=(Problem(where=f"data.timezone={timezone}", what="is no time zone", fix=fix),),
        )
    problems, readings = read_sites(Path(path), timezone, done=done)
    problems += [problem for reading in readings for problem in reading.problems]
    moment = now or datetime.now(UTC)
    sites = tuple(_summarise(reading, timezone, moment) for reading in readings)
    return CheckReport(path=str(path), sites=sites, problems=tuple(problems), timezone=timezone)


def _summarise(reading: Reading, timezone: str | None, now: datetime) -> SiteSummary:
    site = reading.site
    warnings = [*reading.warnings, *_warnings(reading, timezone, now)]
    return SiteSummary(
        name=site.name,
        patients=len(site.patients),
        days=_days(site.observations),
        signals=tuple(_signal(site, name) for name in sorted(site.observations["signal"].unique())),
        static=tuple(str(name) for name in site.patients.columns),
        quality=site.quality,
        warnings=tuple(warnings),
    )


def _signal(site: Site, name: str) -> SignalSummary:
    rows = site.observations[site.observations["signal"] == name]
    return SignalSummary(
        name=name,
        unit=SIGNALS[name].unit,
        rows=len(rows),
        patients=rows["patient_id"].nunique(),
        step_min=site.step_min.get(name),
        days=_days(rows),
    )


def _days(rows: pd.DataFrame) -> float | None:
    if rows.empty:
        return None
    times = rows.groupby("patient_id")["time"]
    span = (times.max() - times.min()).dt.total_seconds() / 86_400
    return round(float(span.median()), 2)


def _warnings(reading: Reading, timezone: str | None, now: datetime) -> list[str]:
    site, warnings = reading.site, []
    count = len(site.patients)
    if 0 < count < FEW_PATIENTS:
        warnings.append(
            f"{_count(count, 'patient')}: private training refuses fewer than privacy.minimum_patients "
            f"(default {FEW_PATIENTS})"
        )
    future = int((site.observations["time"] > pd.Timestamp(now)).sum())
    if future:
        warnings.append(f"{future:,} rows lie in the future (shifted dates do no harm, wrong ones do)")
    if reading.naive_times and timezone:
        warnings.append(f"{reading.naive_times:,} times carry no zone and are read as {timezone}")
    for name in _unknown(site.quality):
        near = difflib.get_close_matches(name.lower(), SIGNALS, n=1)
        warnings.append(
            f"the signal {name!r} is unknown and not used" + (f"; is {near[0]} meant?" if near else "")
        )
    lost = site.quality.rows_read - site.quality.rows_kept
    if lost > 0.2 * site.quality.rows_read:
        warnings.append(f"{lost:,} of {site.quality.rows_read:,} rows are not used; the reasons stand above")
    if reading.has_observations and count and "glucose" not in site.observations["signal"].unique():
        warnings.append("no glucose: the task glucose has nothing to learn here")
    return warnings


def _unknown(quality: Quality) -> list[str]:
    head = "unknown signal: "
    return [reason.removeprefix(head) for reason in quality.quarantined if reason.startswith(head)]


def _describe(site: SiteSummary) -> list[str]:
    quality = site.quality
    span = f", {site.days:g} days each (median)" if site.days is not None else ""
    lines = [
        (
            f"{site.name}: {_count(site.patients, 'patient')}{span}, "
            f"{quality.rows_kept:,} of {quality.rows_read:,} rows kept"
        )
    ]
    for one in site.signals:
        spaced = one.step_min is not None and SIGNALS[one.name].kind in ("level", "count")
        step = f", every {one.step_min:g} min" if spaced else ""
        lines.append(f"  {one.name} ({one.unit}): {one.rows:,} rows, {_count(one.patients, 'patient')}{step}")
    if site.static:
        lines.append(f"  static columns: {', '.join(site.static)}")
    counts = (("dropped", quality.dropped), ("put aside", quality.quarantined), ("resolved", quality.fixed))
    for title, table in counts:
        lines += [f"  {title}: {count:,} {reason}" for reason, count in table.items()]
    return [*lines, *(f"  warning: {warning}" for warning in site.warnings)]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
