"""HL7 v2 messages ORU^R01 into rows, and the acknowledgement that each one gets.

Segments and fields are cut here and not by the library `hl7`, which the tests hold this against: it takes
seconds for a few hundred kilobytes of separators, gives up a whole message for one bad character, and logs
the fields that it cannot decode, which are patients'.

Of a message these are read: MSH (separators, sender, 7 time, 9 type, 10 control id, 11 processing id, 18
character set), PID (3 identifiers, 7 birth date, 8 sex), OBR (7 time), OBX (2 type, 3 code, 5 value, 6 unit,
11 status, 14 time, 18 device). Names, addresses, notes (NTE) and texts never are.

Source: HL7 v2.5.1, chapters 2 (2.10 encoding, 2.A data types, table 0357) and 7 (7.4 OBR and OBX, table
0085); IHE PCD TF-2 for OBX-18 and the status R of values from devices.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from twin.connectors.hl7v2_fields import (
    Separators,
    charset_of,
    iso_time,
    separators_of,
    zone_of,
)
from twin.connectors.rows import Rows

OWN: Final = "hl7v2"
SYSTEMS: Final = {
    "LN": "loinc",
    "MDC": "mdc",
    "SCT": "snomed",
    "RXNORM": "rxnorm",
    "RXN": "rxnorm",
}
NOW: Final = frozenset(["", "F", "P", "R", "S", "A", "B", "U", "V"])
ANEW: Final = frozenset("C")
TAKEN_BACK: Final = frozenset(["D", "W"])
_SEX: Final = {"F": "female", "M": "male", "O": "other", "A": "other", "U": "unknown"}
_TYPES: Final = frozenset(
    (
        *("AD", "CE", "CF", "CK", "CN", "CNE", "CP", "CWE", "CX", "DT", "DR", "DTM", "ED", "FN", "FT", "ID"),
        *("IS", "MA", "MO", "NA", "PN", "RP", "ST", "TM", "TN", "TS", "TX", "XAD", "XCN", "XON", "XPN"),
        "XTN",
    )
)
_NUMBER: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)", re.ASCII)
_MESSAGE: Final = re.compile(rb"(?:\A|(?<=[\r\n]))(?:\x0b|\xef\xbb\xbf)?(?=MSH)")
_LOST: Final = "�"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a message's sender is told.

    Attributes:
        code: AA it is taken; AE it has an error; AR it is of no kind that is taken here.
        error: code and text of HL7 table 0357; "" with AA.
    """

    code: str
    error: str = ""


TAKEN: Final = Answer(code="AA")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How messages are read.

    Attributes:
        authority: assigning authority (PID-3.4.1) of the identifier that names patients; "" is the one of
            type MR, else the first.
        default_system: what a code in OBX-3 belongs to if it does not say so: its own, or loinc where a
            laboratory is known to leave it out.
    """

    authority: str = ""
    default_system: str = OWN

    def take(self, message: bytes, rows: Rows) -> Answer:
        """Adds a message's rows and counts what could not be read; never raises, whatever it is."""
        marks = separators_of(message)
        if marks is None:
            rows.rejected["no HL7 message"] += 1
            return Answer(code="AR", error="100^Segment sequence error")
        header = marks.fields(_first_segment(message))
        kind = [marks.text(part) for part in marks.components(_nth(header, 9))]
        if kind[0] != "ORU" or (len(kind) > 1 and kind[1] not in ("", "R01")):
            rows.rejected["message is no ORU^R01"] += 1
            return Answer(code="AR", error="200^Unsupported message type")
        if marks.components(_nth(header, 11))[0] in ("T", "D"):
            rows.rejected["message of a test system"] += 1
            return Answer(code="AR", error="202^Unsupported processing id")
        text = message.decode(charset_of(_nth(header, 18), marks), errors="replace")
        return _Message(self, marks, zone_of(_nth(header, 7)), rows).take(text)


def messages_in(text: bytes) -> Iterator[bytes | None]:
    """Every message of a file, without the headers and trailers of files and batches around them.

    None stands for lines of a message that has lost its header; it may stand once, at the beginning.
    """
    starts = [match.end() for match in _MESSAGE.finditer(text)]
    lead = text[: starts[0]] if starts else text
    if any(line[:3] not in (b"", b"FHS", b"BHS", b"BTS", b"FTS") for line in _lines(lead)):
        yield None
    for start, end in pairwise([*starts, len(text)]):
        yield text[start:end]


def answer_to(message: bytes, answer: Answer, *, now: str, control_id: str) -> bytes:
    """The acknowledgement (MSH, MSA, and ERR if there is an error) in the separators of the message.

    Args:
        now: time as HL7 writes it.
        control_id: of the acknowledgement.
    """
    marks = separators_of(message) or Separators(field="|", component="^", repeat="~", escape="\\", sub="&")
    header = marks.fields(_first_segment(message)) if separators_of(message) else []
    sender, receiver = (_nth(header, 3), _nth(header, 4)), (_nth(header, 5), _nth(header, 6))
    bar, up = marks.field, marks.component
    code = answer.error.replace("^", up)
    lines = [
        f"MSH{bar}{marks.encoding}{bar}"
        + bar.join([*receiver, *sender, now, "", f"ACK{up}R01", control_id, _nth(header, 11) or "P"])
        + f"{bar}{_nth(header, 12) or '2.5'}",
        f"MSA{bar}{answer.code}{bar}{_nth(header, 10)}",
    ]
    if answer.error:
        lines.append(bar.join(["ERR", "", "", f"{code}{up}HL70357", "E"]))
    return "".join(f"{line}\r" for line in lines).encode("latin-1", errors="replace")


class _Message:
    """One message while its segments go by."""

    def __init__(self, reading: Reading, marks: Separators, zone: str, rows: Rows) -> None:
        self.reading, self.marks, self.zone, self.rows = reading, marks, zone, rows
        self.patient = self.time = ""
        self.had_patient = False

    def take(self, text: str) -> Answer:
        for line in re.split(r"[\r\n]+", text):
            name = line[:3]
            if name in ("PID", "OBR", "OBX") and line[3:4] == self.marks.field:
                fields = self.marks.fields(line)
                {"PID": self._pid, "OBR": self._obr, "OBX": self._obx}[name](fields)
            elif name in ("OBX", "PID", "OBR"):
                self.rows.rejected[f"unreadable segment {name}"] += 1
        if not self.had_patient:
            self.rows.rejected["message without a patient"] += 1
            return Answer(code="AE", error="101^Required field missing")
        return TAKEN

    def _pid(self, fields: list[str]) -> None:
        self.patient, self.time = self._identifier(_nth(fields, 3)), ""
        if not self.patient:
            return
        self.had_patient = True
        born, sex = _nth(fields, 7), _SEX.get(_nth(fields, 8).strip().upper())
        if re.fullmatch(r"\d{8}(?:\d{2,6}(?:\.\d+)?)?(?:[+-]\d{4})?", born):
            self.rows.facts.append((self.patient, "birth_date", f"{born[:4]}-{born[4:6]}-{born[6:8]}"))
        elif born not in ("", '""'):
            self.rows.rejected["unreadable birth date"] += 1
        if sex:
            self.rows.facts.append((self.patient, "sex", sex))

    def _identifier(self, field: str) -> str:
        """The identifier that names the patient; "" if there is none that is sure."""
        marks = self.marks
        found = [marks.components(one) for one in field.split(marks.repeat)]
        named = [(parts, marks.subcomponents(_nth(parts, 3))[0]) for parts in found]
        if self.reading.authority:
            fitting = [parts for parts, authority in named if marks.text(authority) == self.reading.authority]
        else:
            fitting = sorted(found, key=lambda parts: _nth(parts, 4) != "MR")
        ids = [marks.text(parts[0]).strip() for parts in fitting]
        first = next((one for one in ids if one not in ("", '""')), "")
        return "" if _LOST in first else first

    def _obr(self, fields: list[str]) -> None:
        self.time = _nth(fields, 7)

    def _obx(self, fields: list[str]) -> None:
        status, rows = _nth(fields, 11).strip().upper(), self.rows
        if not self.patient:
            rows.rejected["no patient"] += 1
            return
        if status not in NOW | ANEW | TAKEN_BACK:
            rows.rejected["observation without a result"] += 1
            return
        system, code = self._code(_nth(fields, 3))
        if not code or _LOST in code:
            rows.rejected["observation without a code"] += 1
            return
        time = iso_time(_nth(fields, 14).strip() or self.time.strip(), self.zone)
        device = self._first(_nth(fields, 18))
        head, unit = (self.patient, time, system, code), self._unit(_nth(fields, 6))
        if status in TAKEN_BACK:
            rows.withdraw((*head, 0.0, unit, device))
            return
        values = self._values(_nth(fields, 2).strip().upper(), _nth(fields, 5))
        if status in ANEW and values:
            rows.withdraw((*head, 0.0, unit, device))
        rows.observed.extend((*head, value, unit, device) for value in values)

    def _code(self, field: str) -> tuple[str, str]:
        """(system, code) of OBX-3: the coding or its translation, whichever is of a system that is known."""
        parts = [self.marks.text(part).strip() for part in self.marks.components(field)]
        for code, name in ((_nth(parts, 0), _nth(parts, 2)), (_nth(parts, 3), _nth(parts, 5))):
            if code and name.upper() in SYSTEMS:
                return SYSTEMS[name.upper()], code
        return self.reading.default_system, _nth(parts, 0)

    def _unit(self, field: str) -> str:
        """OBX-6 in UCUM if it says so, else as it is."""
        parts = [self.marks.text(part).strip() for part in self.marks.components(field)]
        return _nth(parts, 3) if _nth(parts, 5).upper() == "UCUM" and _nth(parts, 3) else _nth(parts, 0)

    def _first(self, field: str) -> str:
        return self.marks.text(
            self.marks.components(field.split(self.marks.repeat, maxsplit=1)[0])[0]
        ).strip()

    def _values(self, kind: str, field: str) -> list[float]:
        """The numbers of OBX-5; what is none is counted."""
        rejected, found = self.rows.rejected, []
        if kind not in ("NM", "SN"):
            rejected[f"OBX-2 is {kind if kind in _TYPES else 'unknown'}, no number"] += 1
            return []
        for one in field.split(self.marks.repeat):
            text = one.strip()
            if kind == "SN":
                comparator, number, *range_or_ratio = [
                    *(part.strip() for part in self.marks.components(one)),
                    "",
                ]
                if comparator not in ("", "=") or any(range_or_ratio):
                    rejected["a bound, range or ratio, no value"] += 1
                    continue
                text = number
            if text in ("", '""'):
                rejected["no value"] += 1
            elif _NUMBER.fullmatch(text):
                found.append(float(text))
            else:
                rejected["unreadable value"] += 1
        return found


def _nth(parts: list[str], number: int) -> str:
    return parts[number] if number < len(parts) else ""


def _lines(text: bytes) -> list[bytes]:
    return [line.strip(b" \x0b\x1c") for line in re.split(rb"[\r\n]+", text)]


def _first_segment(message: bytes) -> str:
    return re.split(rb"[\r\n]", message, maxsplit=1)[0].decode("latin-1")
