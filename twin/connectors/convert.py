"""Published recordings into a federation folder: all of them, or nothing.

Everything is made in a hidden folder beside its place and moved there when it is whole; a conversion that
fails leaves what it found.
"""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from conf.errors import ConfigError
from twin.connectors import bidmc, colas, d1namo, hall, physionet2019, t1d_uom, uci_heart, varfio2
from twin.connectors.published import Converted
from twin.errors import DataError

CONVERTERS: Mapping[str, Callable[[Path], tuple[Converted, ...]]] = {
    "hall": hall.convert,
    "colas": colas.convert,
    "d1namo": d1namo.convert,
    "t1d_uom": t1d_uom.convert,
    "physionet2019": physionet2019.convert,
    "varfio2": varfio2.convert,
    "bidmc": bidmc.convert,
}
NAMES = (*CONVERTERS, "uci_heart")
USAGE = "twinward data convert NAME SRC [NAME SRC …] OUT [rows=complete|all]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One recording to convert.

    Attributes:
        name: one of `NAMES`.
        source: the publisher's folder.
        rows: complete or all, uci_heart only; None is complete.
    """

    name: str
    source: Path
    rows: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionReport:
    """What was written, dropped and why; `str` of it is for a person."""

    out: Path
    sites: tuple[Converted, ...]

    def __str__(self) -> str:
        parts = [_describe(site) for site in self.sites]
        return "\n".join(
            [*parts, f"Written to {self.out}: {len(self.sites)} site folders, each with its LICENSE.txt."]
        )


def parse_jobs(arguments: Sequence[str]) -> tuple[list[Job], Path]:
    """(jobs, output folder) of the words after `twinward data convert`.

    Raises:
        ConfigError: names every fault.
    """
    options = [word for word in arguments if word.startswith("rows=")]
    words = [word for word in arguments if not word.startswith("rows=")]
    if len(words) < 3 or len(words) % 2 == 0:
        raise ConfigError(f"Expected {USAGE}; NAME is one of {', '.join(NAMES)}. Came: {len(words)} words.")
    names, sources = words[:-1:2], words[1:-1:2]
    faults = [f"{name!r} is no recording that can be converted" for name in names if name not in NAMES]
    faults += [f"{name} is given twice" for name in sorted({name for name in names if names.count(name) > 1})]
    rows = options[-1].removeprefix("rows=") if options else None
    if len(options) > 1:
        faults.append("rows= is given twice")
    if rows is not None and rows not in uci_heart.ROWS:
        faults.append(f"rows={rows}: allowed are {', '.join(uci_heart.ROWS)}")
    if rows is not None and "uci_heart" not in names:
        faults.append("rows= has a meaning for uci_heart only")
    if faults:
        raise ConfigError(f"{'; '.join(faults)}. Expected {USAGE}; NAME is one of {', '.join(NAMES)}.")
    jobs = [
        Job(name=name, source=Path(source), rows=rows if name == "uci_heart" else None)
        for name, source in zip(names, sources, strict=True)
    ]
    return jobs, Path(words[-1])


def convert(jobs: Sequence[Job], out: Path) -> ConversionReport:
    """Write the jobs' sites below `out`, all or none.

    Raises:
        DataError: a source is missing or is not the recording it should be, or a site is there already.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; expected a folder for the sites, or a name that is free.")
    sites = tuple(site for job in jobs for site in _run(job))
    names = [site.site for site in sites]
    twice = sorted({name for name in names if names.count(name) > 1})
    there = sorted(name for name in set(names) if (out / name).exists())
    if twice:
        raise DataError(
            f"Two recordings would become the site {', '.join(twice)}; convert them into two folders."
        )
    if there:
        raise DataError(
            f"{out} holds {', '.join(there)} already; nothing was written. Remove it or choose another OUT."
        )
    try:
        _write_all(sites, out)
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror}); nothing was left there.") from error
    return ConversionReport(out=out, sites=sites)


def _run(job: Job) -> tuple[Converted, ...]:
    if not job.source.exists():
        raise DataError(f"{job.source} does not exist; expected the publisher's folder of {job.name}.")
    if job.name == "uci_heart":
        return uci_heart.convert(job.source, job.rows or "complete")
    if job.name not in CONVERTERS:
        raise DataError(f"{job.name!r} is no recording that can be converted; allowed: {', '.join(NAMES)}.")
    return CONVERTERS[job.name](job.source)


def _write_all(sites: Sequence[Converted], out: Path) -> None:
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".convert-", dir=out))
    moved: list[Path] = []
    try:
        for site in sites:
            _write(site, stage / site.site)
        for site in sites:
            (stage / site.site).rename(out / site.site)
            moved.append(out / site.site)
    except BaseException:
        for folder in (*moved, stage):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in new:
            folder.rmdir()
        raise
    stage.rmdir()


def _write(site: Converted, folder: Path) -> None:
    folder.mkdir()
    (folder / "LICENSE.txt").write_text(site.licence, encoding="utf-8")
    if site.patients is not None:
        site.patients.to_csv(folder / "patients.csv", float_format="%.10g")
    if site.observations is not None:
        _write_observations(site.observations, folder / "observations.csv.gz")


def _write_observations(observations: pd.DataFrame, path: Path) -> None:
    frame = pd.DataFrame(
        {
            "patient_id": observations["patient_id"],
            "time": observations["time"].dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "signal": observations["signal"],
            "value": observations["value"].round(6),
            "unit": observations["unit"],
        }
    )
    with path.open("wb") as file, gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:
        packed.write(frame.to_csv(index=False).encode("utf-8"))


def _describe(site: Converted) -> str:
    quality = site.quality
    patients = site.patients.index if site.patients is not None else _patients(site)
    lines = [f"{site.site}: {len(patients):,} patients, {quality.rows_kept:,} of {quality.rows_read:,} kept"]
    if site.observations is not None:
        counts = site.observations["signal"].value_counts().sort_index()
        lines.append("  signals: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    for title, table in (
        ("dropped", quality.dropped),
        ("put aside", quality.quarantined),
        ("resolved", quality.fixed),
    ):
        lines.extend(f"  {title}: {count:,} {reason}" for reason, count in table.items())
    return "\n".join([*lines, *(f"  note: {note}" for note in site.notes)])


def _patients(site: Converted) -> pd.Index:
    return pd.Index([]) if site.observations is None else pd.Index(site.observations["patient_id"].unique())
