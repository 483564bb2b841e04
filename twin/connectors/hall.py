"""Hall et al. 2018: CGM of 57 people without, towards and with type 2 diabetes, every 5 minutes."""

from __future__ import annotations

from pathlib import Path

from twin.connectors.published import Converted, glucose_only

LICENCE = """\
Source: Hall H, Perelman D, Breschi A, et al. Glucotypes reveal new patterns of glucose dysregulation.
PLoS Biology 16(7): e2005143, 2018. https://doi.org/10.1371/journal.pbio.2005143
Licence: Creative Commons Attribution 4.0 International (CC BY 4.0),
https://creativecommons.org/licenses/by/4.0/
Changed: brought into one table with UTC times and canonical units; rows without a value left out.
"""


def convert(source: Path) -> tuple[Converted, ...]:
    """One site, `hall`, of the folder with glucose.csv[.gz] (columns id, time, gl)."""
    note = "Times carry no zone in the source; the local clock is written as if it were UTC."
    return (glucose_only(source, "hall", (note,), LICENCE),)
