"""docs/data.md says what the code does: its example is read, its table is the catalogue."""

from __future__ import annotations

import re
from pathlib import Path

from twin.connectors.convert import NAMES
from twin.connectors.folder import read_folder
from twin.signals import SIGNALS

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_example_of_the_document_is_a_site(tmp_path: Path) -> None:
    observations, patients = re.findall(r"```csv\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "north").mkdir()
    (tmp_path / "north" / "observations.csv").write_text(observations)
    (tmp_path / "north" / "patients.csv").write_text(patients)
    site = read_folder(tmp_path)[0]
    assert site.quality.rows_kept == 5
    assert site.patients.index.tolist() == ["007", "012"]


def test_the_table_of_signals_is_the_catalogue() -> None:
    for entry in SIGNALS.values():
        units = ", ".join(f"`{unit}`" for unit in entry.shown)
        loinc = entry.loinc[0] if entry.loinc else "–"
        limits = f"{entry.low:g} to {entry.high:g}"
        assert f"| `{entry.name}` | {entry.kind} | {entry.unit} | {units} | {limits} | {loinc} |" in TEXT


def test_every_recording_is_told() -> None:
    assert all(f"| `{name}` |" in TEXT for name in NAMES)
