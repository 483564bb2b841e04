"""The objects of a JSON array or of NDJSON, one after the other, in bounded memory; broken ones skipped."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from twin.connectors.exports import Refused
from twin.connectors.progress import blocks_of

LONGEST_ITEM: Final = 1 << 20
_MOST_BROKEN: Final = 1000
_START: Final = re.compile(r"\{")
_AFTER_BROKEN: Final = re.compile(r"(?:\}\s{0,9},?|\n)\s{0,40}\{")


def items_of(path: Path, inside: bool = False) -> Iterator[dict[str, Any] | None]:
    """Objects; None for each stretch that cannot be read.

    After what cannot be read, reading goes on at the next object that follows the end of another one or
    begins a line.

    Args:
        inside: the file is one object of arrays, whose objects are meant.

    Raises:
        Refused: a thousand faults without an object between them.
        OSError: the file cannot be read further.
    """
    text, place, broken = "", 0, 0
    decode = json.JSONDecoder(parse_constant=lambda _: None).raw_decode
    source = _texts(path)
    if inside:
        text = next(source, "").lstrip()[1:]
    ended = False
    start: re.Pattern[str] = _START
    while True:
        match = start.search(text, place)
        if match is None:
            place = max(place, len(text) - 64) if start is _AFTER_BROKEN else len(text)
        at = match.end() - 1 if match else place
        item: Any = None
        end = -1
        if match:
            try:
                item, end = decode(text, at)
            except (ValueError, RecursionError):
                end = -1
        if match and end >= 0:
            yield item
            start, place, broken = _START, end, 0
            continue
        if not ended and (match is None or len(text) - at < LONGEST_ITEM):
            more = next(source, "")
            ended = not more
            text, place = text[at:] + more, 0
            continue
        if match is None:
            return
        yield None
        broken += 1
        if broken >= _MOST_BROKEN:
            raise Refused("it is no JSON: a thousand faults in a row")
        start, place = _AFTER_BROKEN, at + 1


def _texts(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
    for block in blocks_of(path):
        if text := decoder.decode(block):
            yield text
