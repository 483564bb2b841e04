"""Data folders of virtual hospitals, written as a hospital would write its own."""

from __future__ import annotations

from pathlib import Path

SEED = 0


def write_hospitals(root: Path, *, sites: int, patients: int, days: int) -> dict[str, Path]:
    """Folder of the data of each hospital, by name: `<root>/<name>/data`.

    Args:
        sites, patients, days: hospitals, virtual people of each, and the length of their records.
    """
    from twin.connectors.virtual import virtual_sites
    from twin.signals import SIGNALS

    folders = {}
    for site in virtual_sites(sites=sites, patients_per_site=patients, days=days, seed=SEED):
        folder = root / site.name / "data"
        folder.mkdir(mode=0o700, parents=True)
        units = {name: signal.unit for name, signal in SIGNALS.items()}
        table = site.observations[["patient_id", "time", "signal", "value"]]
        table = table.assign(unit=table["signal"].map(units))
        table.to_csv(folder / "observations.csv", index=False, date_format="%Y-%m-%dT%H:%M:%SZ")
        site.patients.to_csv(folder / "patients.csv")
        folders[site.name] = folder
    return folders
