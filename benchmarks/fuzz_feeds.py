"""Fuzz the parsers of feeds with coverage as a guide; nothing is printed unless one of them breaks.

Needs atheris, which no extra installs: pip install atheris. Run it from the root:

    PYTHONPATH=. .venv/bin/python benchmarks/fuzz_feeds.py {fhir,xml,hl7v2,mllp} [-max_total_time=60] [CORPUS]

Each input stands between good ones, whose rows must all come out; no input may raise, whatever it is. An
input that breaks this is written to a file crash-… in the current folder; options with one dash are
libFuzzer's. The tests do the same with hypothesis, for seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Final

import atheris

with atheris.instrument_imports(include=["twin.connectors"]):
    from twin.connectors.fhir_models import Refused, read_xml
    from twin.connectors.fhir_rows import Reader
    from twin.connectors.hl7v2 import Reading, answer_to, messages_in
    from twin.connectors.mllp_frames import Frames, TooLarge, framed
    from twin.connectors.rows import Rows

GOOD_FHIR: Final = (
    b'{"resourceType":"Observation","status":"final","code":{"coding":[{"system":"http://loinc.org",'
    b'"code":"8867-4"}]},"subject":{"reference":"Patient/p"},"effectiveDateTime":"2024-01-01T00:00:00Z",'
    b'"valueQuantity":{"value":61,"code":"/min"}}'
)
GOOD_HL7: Final = (
    b"MSH|^~\\&|A|B|C|D|20240301||ORU^R01|1|P|2.5\rPID|1||7\rOBX|1|NM|8867-4^^LN||61|/min|||||F|||20240301\r"
)


def fhir(data: bytes) -> None:
    """A line of a bulk export."""
    reader, rows = Reader(), Rows()
    for line in (GOOD_FHIR, data, GOOD_FHIR):
        reader.take_text(line, rows)
    _holds_both(rows)


def xml(data: bytes) -> None:
    """A file of XML."""
    try:
        bundle = read_xml(data)
    except Refused:
        return
    rows = Rows()
    Reader().take_bundle(bundle, rows)
    rows.batch("")


def hl7v2(data: bytes) -> None:
    """A message, alone and in a file."""
    rows = Rows()
    answer = Reading().take(data, rows)
    answer_to(data, answer, now="", control_id="")
    found = Rows()
    for message in messages_in(GOOD_HL7 + data + b"\r" + GOOD_HL7):
        if message is not None:
            Reading().take(message, found)
    _holds_both(found)


def mllp(data: bytes) -> None:
    """Bytes between two frames."""
    frames = Frames(most_bytes=1 << 16)
    try:
        found = frames.feed(framed(b"one") + data + framed(b"two"))
    except TooLarge:
        return
    if found[0] != b"one" or found[-1] != b"two":
        raise RuntimeError("a whole frame was lost")


def _holds_both(rows: Rows) -> None:
    values = [row[4] for row in rows.observed]
    if len(values) < 2 or values[0] != 61 or values[-1] != 61:
        raise RuntimeError("a good row was lost")
    rows.batch("")


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "fhir": fhir,
    "xml": xml,
    "hl7v2": hl7v2,
    "mllp": mllp,
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        raise SystemExit(__doc__)
    atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
