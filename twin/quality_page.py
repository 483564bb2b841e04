"""The page of `twinward site quality`: one HTML file that needs nothing but itself.

The template escapes everything: names of feeds, signals and reasons may come from strangers' files.
"""

from __future__ import annotations

from typing import Final

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from twin.quality import ON_TOP, ONCE, quality

_MEANING: Final = {
    "kept": "stored",
    "dropped": "not stored: no value, outside limits, a duplicate",
    "quarantined": "put aside until its code, unit or time zone is known",
    "marked": "stored, and read by nobody who does not ask for suspects",
    "fixed": "changed on the way, for instance a clock that was off",
    "filled": "made for who asked for gaps to be filled; never stored",
    "withdrawn": "taken back by its source",
}


def quality_page(counts: pd.DataFrame, site: str, *, patients: bool = False) -> str:
    """The page as HTML text.

    Args:
        counts: columns `twin.ingested.COUNTS`, and feed if there are several.
        site: its name.
        patients: whether pseudonyms are listed; only for who may see them.
    """
    environment = Environment(
        loader=PackageLoader("twin", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("quality.html.j2").render(
        found=quality(counts, patients=patients), site=site, once=ONCE, on_top=ON_TOP, meaning=_MEANING
    )
