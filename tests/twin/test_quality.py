"""The page and the table of what became of a site's rows."""

from __future__ import annotations

import io
import json

import pandas as pd
import pytest
from rich.console import Console

from twin.quality import quality, quality_json, quality_table
from twin.quality_page import quality_page

HOSTILE = "<script>alert(1)</script>"
COUNTS = pd.DataFrame(
    [
        ("P-secret", "glucose", "kept", "", 90, "cgm"),
        ("P-secret", "glucose", "dropped", "duplicate", 8, "cgm"),
        ("P-secret", "glucose", "marked", "spike", 3, "cgm"),
        ("P-other", "spo2", "kept", "", 50, "ward"),
        ("P-other", "", "quarantined", "unknown code", 2, "ward"),
        ("", "", "dropped", HOSTILE, 1, "ward"),
        ("P-other", "spo2", "fixed", "cancelled out", 0, "ward"),
    ],
    columns=["patient_id", "signal", "fate", "reason", "rows", "feed"],
)


def _printed(patients: bool = False) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(quality_table(COUNTS, patients=patients))
    return console.export_text()


def test_every_row_read_is_kept_dropped_or_quarantined_once() -> None:
    found = quality(COUNTS)
    assert found.total.read == 151
    assert sum(line.read for line in found.signals) == sum(line.read for line in found.feeds) == 151
    assert found.reasons[0] == ("dropped", "duplicate", "glucose", 8)
    assert all(rows for *_, rows in found.reasons)


@pytest.mark.parametrize("patients", [False, True])
def test_pseudonyms_are_shown_only_if_asked_for(patients: bool) -> None:
    page = quality_page(COUNTS, "St. Elsewhere", patients=patients)
    told = (page, _printed(patients), json.dumps(quality_json(COUNTS, patients=patients)))
    assert [("P-secret" in text) for text in told] == [patients] * 3


def test_the_page_needs_nothing_but_itself_and_escapes_strangers_words() -> None:
    page = quality_page(COUNTS, HOSTILE)
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    assert not any(word in page for word in ("http://", "https://", "src=", "<script"))


def test_a_site_without_rows_has_a_page_and_a_table() -> None:
    nothing = COUNTS.iloc[:0]
    assert "No row has been read yet" in quality_page(nothing, "empty")
    Console(file=io.StringIO()).print(quality_table(nothing))
