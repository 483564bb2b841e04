"""`twinward data check` and `twinward data convert`."""

from __future__ import annotations

import json
from pathlib import Path

from cli.words import parser, read

CHECK_DOC = "Say what a federation folder holds, and everything that is wrong with it and how to mend it."
CHECK_EXAMPLES = """\
example:
  twinward data check studies --timezone Europe/London

A federation folder holds one folder per site: SITE/observations.csv (or .csv.gz, .parquet) with the columns
patient_id,time,signal,value,unit and, if there is more to say of the patients, SITE/patients.csv.
Exit code 0: it can be trained on; 1: it cannot.
"""
CONVERT_DOC = (
    "Turn published recordings into a federation folder; each NAME becomes a site (uci_heart: four, "
    "physionet2019: three)."
)
CONVERT_EXAMPLES = """\
examples:
  twinward data convert hall downloads/hall studies
  twinward data convert hall downloads/hall colas downloads/colas studies
  twinward data convert uci_heart downloads/uci_heart heart rows=complete
  twinward data convert physionet2019 downloads/physionet2019b icu
"""


def run(name: str, words: list[str]) -> int:
    """The command; returns its exit code."""
    return _check(name, words) if name == "data check" else _convert(name, words)


def _check(name: str, words: list[str]) -> int:
    arguments = parser(name, CHECK_DOC, epilog=CHECK_EXAMPLES)
    arguments.add_argument("path", type=Path, metavar="PATH", help="the folder above the sites")
    arguments.add_argument(
        "--timezone", metavar="ZONE", help="IANA zone of times that carry none, such as Europe/London"
    )
    arguments.add_argument("--json", action="store_true", help="print the findings as JSON")
    args = read(arguments, words)
    from twin.connectors.check import check_folder

    report = check_folder(args.path, timezone=args.timezone)
    print(json.dumps(report.to_dict(), indent=2, allow_nan=False) if args.json else report)
    return 0 if report.ok else 1


def _convert(name: str, words: list[str]) -> int:
    arguments = parser(name, CONVERT_DOC, epilog=CONVERT_EXAMPLES)
    arguments.usage = f"twinward {name} NAME SRC [NAME SRC ...] OUT [rows=complete|all]"
    arguments.add_argument(
        "words", nargs="+", metavar="NAME SRC ... OUT", help="what to read, and where to write"
    )
    args = read(arguments, words)
    from twin.connectors.convert import convert, parse_jobs

    jobs, out = parse_jobs(args.words)
    print(convert(jobs, out))
    return 0
