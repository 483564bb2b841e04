"""One number or word of each patient: a signal summarised over the whole record, or a static column.

Each value follows from its own patient's rows alone. So one patient more or less changes nothing of the
others, which is what the privacy of an answer rests on: a column in which one patient has a word where all
others have numbers stays a column of numbers for all others.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import pandas as pd

from twin.errors import DataError
from twin.signals import SIGNALS
from twin.site import Site

SUMMARIES: Final = ("mean", "last", "min", "max")


def of_signal(site: Site, signal: str, summary: str) -> pd.Series:
    """The summary of a signal over each patient's record; float64, NaN for a patient without a value.

    Args:
        signal: of `twin.signals`; values are in its canonical unit.
        summary: one of SUMMARIES; `last` is the newest value.

    Returns:
        Indexed as `site.patients`.

    Raises:
        DataError: there is no such signal or summary.
    """
    if signal not in SIGNALS or summary not in SUMMARIES:
        raise DataError(
            f"Expected one of {', '.join(SUMMARIES)} of a signal of the catalogue; {summary!r} of {signal!r}"
            " came. The signals stand in docs/data.md."
        )
    rows = site.observations[site.observations["signal"] == signal]
    values = rows.groupby("patient_id", sort=True)["value"]  # rows of a patient are sorted by time
    found = values.last() if summary == "last" else values.agg(summary)
    return found.astype("float64").reindex(site.patients.index)


def of_attribute(site: Site, name: str) -> pd.Series:
    """A static column as the site has it, indexed as `site.patients`.

    Raises:
        DataError: the site has no such column.
    """
    if name not in site.patients.columns:
        raise DataError("The site's patients have no such attribute.")
    return site.patients[name]


def as_numbers(values: pd.Series) -> np.ndarray:
    """Each value as a number, NaN where it is none; infinite counts as none."""
    return np.array([_number(value) for value in values], dtype=np.float64)


def as_words(values: pd.Series) -> np.ndarray:
    """Each value as a word without outer blanks, empty where it is missing; numbers in shortest form.

    >>> as_words(pd.Series([1.0, "1", " F ", None, 2.5])).tolist()
    ['1', '1', 'F', '', '2.5']
    """
    return np.array([_word(value) for value in values], dtype=object)


def _number(value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]  # whatever it is, it is a number or it is none
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _word(value: object) -> str:
    number = _number(value)
    if math.isfinite(number):
        return f"{number:.15g}"
    return "" if pd.isna(value) else str(value).strip()  # type: ignore[call-overload]  # a scalar of a column
