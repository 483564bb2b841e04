"""The syntax of HL7 v2: separators, escape sequences, character sets and times."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Final

CHARSETS: Final = {
    "": "utf-8",  # by the standard ASCII, of which UTF-8 makes the same
    "ASCII": "utf-8",
    "UNICODE UTF-8": "utf-8",
    "UNICODE": "utf-8",
    "UTF-8": "utf-8",
    **{f"8859/{part}": f"iso8859-{part}" for part in (1, 2, 3, 4, 5, 6, 7, 8, 9, 15)},
    "ISO IR14": "iso2022_jp",
    "ISO IR87": "iso2022_jp",
    "ISO IR159": "iso2022_jp_1",
    "GB 18030-2000": "gb18030",
    "KS X 1001": "euc_kr",
    "BIG-5": "big5",
    "CNS 11643-1992": "euc_tw",
}
UNKNOWN: Final = "ascii"
"""Of an unknown character set only ASCII is sure; the rest becomes U+FFFD, and identifiers with it are not
read."""

_HEADERS: Final = frozenset(["MSH", "BHS", "FHS"])
_TIME: Final = re.compile(
    r"(?P<date>\d{8})(?:(?P<hour>\d{2})(?P<minute>\d{2})(?P<second>\d{2})?(?P<part>\.\d{1,6})?)?"
    r"(?P<zone>[+-]\d{4})?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Separators:
    """How a message is cut; `fields` counts as HL7 does, so that fields[3] of PID is PID-3."""

    field: str
    component: str
    repeat: str
    escape: str
    sub: str

    @property
    def encoding(self) -> str:
        """MSH-2."""
        return self.component + self.repeat + self.escape + self.sub

    def fields(self, segment: str) -> list[str]:
        """The fields of a segment; [0] is its name, and in a header the separator counts as the first."""
        parts = segment.split(self.field)
        return [parts[0], self.field, *parts[1:]] if parts[0] in _HEADERS else parts

    def components(self, field: str) -> list[str]:
        """The components of a field, at least one."""
        return field.split(self.component)

    def subcomponents(self, component: str) -> list[str]:
        """The parts of a component, at least one."""
        return component.split(self.sub)

    def text(self, part: str) -> str:
        """What the escape sequences of a part stand for; formatting is left out."""
        if self.escape not in part:
            return part
        mark = re.escape(self.escape)
        return re.sub(f"{mark}([^{mark}]*){mark}", lambda match: self._meant(match[1]), part)

    def _meant(self, sequence: str) -> str:
        plain = {
            "F": self.field,
            "S": self.component,
            "T": self.sub,
            "R": self.repeat,
            "E": self.escape,
        }
        if sequence in plain:
            return plain[sequence]
        if re.fullmatch(r"X(?:[0-9A-Fa-f]{2})+", sequence):
            return bytes.fromhex(sequence[1:]).decode("utf-8", errors="replace")
        return ""


def separators_of(message: bytes) -> Separators | None:
    """Those that MSH-1 and MSH-2 declare; None if it is no message or they cannot be told apart."""
    head = message[:9].decode("ascii", errors="replace")
    if len(head) < 8 or not head.startswith("MSH"):
        return None
    marks = head[3:8]
    if len(set(marks)) != 5 or any(mark.isalnum() or mark <= " " or mark > "~" for mark in marks):
        return None
    after = head[8:9]
    if after not in ("", marks[0], "#", "\r", "\n"):
        return None
    return Separators(field=marks[0], component=marks[1], repeat=marks[2], escape=marks[3], sub=marks[4])


def charset_of(field: str, marks: Separators) -> str:
    """Python's name of the character set that MSH-18 declares first; see `UNKNOWN`."""
    name = CHARSETS.get(field.split(marks.repeat, maxsplit=1)[0].strip().upper(), UNKNOWN)
    try:
        codecs.lookup(name)
    except LookupError:
        return UNKNOWN
    return name


def zone_of(time: str) -> str:
    """The offset of a time, for those of the same message that have none; "" if it has none."""
    match = _TIME.fullmatch(time.strip())
    return (match["zone"] or "") if match else ""


def iso_time(time: str, zone: str) -> str:
    """HL7's time in ISO 8601, the same text if it is none (whoever cleans it counts it).

    Args:
        time: YYYYMMDD[HHMM[SS[.S]]][+/-ZZZZ].
        zone: offset if it has none itself; "" leaves it without.
    """
    match = _TIME.fullmatch(time)
    if match is None:
        return time
    date = f"{match['date'][:4]}-{match['date'][4:6]}-{match['date'][6:]}"
    if match["hour"] is None:
        return date
    offset = match["zone"] or zone
    clock = f"{match['hour']}:{match['minute']}:{match['second'] or '00'}{match['part'] or ''}"
    return f"{date}T{clock}" + (f"{offset[:3]}:{offset[3:]}" if offset else "")
