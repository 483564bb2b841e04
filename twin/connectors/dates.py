"""Dates of exports that are written with the day or the month first, and a whole file that must decide."""

from __future__ import annotations

import re
from collections.abc import Iterable

from twin.connectors.exports import Refused


def order_of(dates: Iterable[re.Match[str] | None]) -> str:
    """Whether days ("dmy") or months ("mdy") come first; "dmy" where every date begins with its year.

    Args:
        dates: of the whole file, with the first two numbers as groups 1 and 2; None is passed over.

    Raises:
        Refused: they say neither, or both.
    """
    seen: set[str] = set()
    short = False
    for date in dates:
        if date and len(date[1]) < 4:
            short = True
            seen |= {"dmy"} if int(date[1]) > 12 else set()
            seen |= {"mdy"} if int(date[2]) > 12 else set()
    if len(seen) == 1 or not short:
        return seen.pop() if seen else "dmy"
    which = "some of its dates begin with the day, others with the month" if seen else "its dates fit both"
    raise Refused(f'{which}: set the option date_order of the feed to "dmy" or "mdy"')
