"""Colas et al. 2019: two days of CGM of 208 people at risk of type 2 diabetes, every 5 minutes."""

from __future__ import annotations

from pathlib import Path

from twin.connectors.published import Converted, glucose_only

LICENCE = """\
Source: Colas A, Vigil L, Vargas B, Cuesta-Frau D, Varela M. Detrended Fluctuation Analysis in the
prediction of type 2 diabetes mellitus in patients at risk: Model optimization and comparison with other
metrics. PLoS ONE 14(12): e0225817, 2019. https://doi.org/10.1371/journal.pone.0225817
Licence: Creative Commons Attribution (CC BY), https://creativecommons.org/licenses/by/4.0/
Changed: brought into one table with UTC times and canonical units.
"""


def convert(source: Path) -> tuple[Converted, ...]:
    """One site, `colas`, of the folder with glucose.csv[.gz] (columns id, time, gl)."""
    notes = (
        "The dates are nominal: the publisher starts every record on 2012-01-01.",
        "Times carry no zone in the source; the clock is written as if it were UTC.",
    )
    return (glucose_only(source, "colas", notes, LICENCE),)
