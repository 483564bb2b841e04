"""`twinward site feeds|quality|quarantine|consent|erase|export|access`: what keeps a site's data in order."""

from __future__ import annotations

import argparse
import csv
import getpass
import json
import pwd
import sys
from pathlib import Path
from typing import Any

from cli.site import home_parser
from cli.twins import ask_site, patient_of
from cli.words import output, read
from conf.errors import ConfigError

_FEEDS = """\
examples:
  twinward site feeds           (what runs)
  twinward site feeds check     (whether feeds.toml holds; needs no running process)
"""
_QUALITY = """\
examples:
  twinward site quality
  twinward site quality --page quality.html --patients
"""
_QUARANTINE = """\
examples:
  twinward site quarantine
  twinward site quarantine --bring-back     (after codes.toml has learnt a code)
"""
_CONSENT = """\
examples:
  twinward site consent PATIENT yes
  twinward site consent PATIENT no          (holds for the very next round)
  twinward site consent --list
  twinward site consent --file consents.csv (columns patient, research; yes or no)
"""
_ERASE = """\
example:
  twinward site erase PATIENT --backups

Removes the patient from the store, its free pages, the memory of the process, models and what waits to be
sent; with --backups the store's key is changed too, so that no earlier backup can be read, and a new one is
made. Feeds that deliver the patient again are not believed.
"""
_EXPORT = """\
example:
  twinward site export --research out/north --study sugar-2026

Writes a federation folder of the patients who consent, de-identified by the Safe Harbor rule
(docs/deidentification.md). Each study has pseudonyms of its own.
"""
_ACCESS = """\
examples:
  twinward site access
  twinward site access grant anna clinician
  twinward site access revoke anna clinician

grant and revoke write access.toml, so they need no running process but the right to write that file.
"""


def run(name: str, words: list[str]) -> int:
    """The command; returns its exit code."""
    return {
        "site feeds": _feeds,
        "site quality": _quality,
        "site quarantine": _quarantine,
        "site consent": _consent,
        "site erase": _erase,
        "site export": _export,
        "site access": _access,
    }[name](name, words)


def _feeds(name: str, words: list[str]) -> int:
    args = home_parser(name, "List a site's feeds, or check feeds.toml.", _FEEDS)
    args.add_argument("what", nargs="?", choices=("list", "check"), default="list")
    said = read(args, words)
    if said.what == "check":
        from client.feeds import read_feeds
        from client.home import SiteHome

        names = [feed.name for feed in read_feeds(SiteHome(said.home).feeds)]
        print(json.dumps(names) if said.json else f"feeds.toml holds. Feeds: {', '.join(names) or 'none'}.")
        return 0
    found = ask_site(said, "feeds").facts["feeds"]
    columns = ("name", "state", "rows", "batches", "crashes", "last", "why")
    return _shown(said, found, columns, "feeds.toml lists no feed.")


def _quality(name: str, words: list[str]) -> int:
    args = home_parser(name, "Say what became of every row.", _QUALITY)
    args.add_argument("--page", type=Path, help="write a page (HTML) there")
    args.add_argument("--patients", action="store_true", help="by patient too; needs the right quality:read")
    said = read(args, words)
    from twin.quality import quality_json, quality_table

    counts = ask_site(said, "quality_of_patients" if said.patients else "quality").table
    if said.page:
        from client.home import SiteHome
        from twin.quality_page import quality_page

        site = SiteHome(said.home).settings().site
        said.page.write_text(quality_page(counts, site, patients=said.patients), encoding="utf-8")
        if not said.json:
            print(f"The page is {said.page}.")
            return 0
    if said.json:
        print(json.dumps(quality_json(counts, patients=said.patients), indent=2))
    else:
        output().print(quality_table(counts, patients=said.patients))
    return 0


def _quarantine(name: str, words: list[str]) -> int:
    args = home_parser(name, "List what was put aside; bring it back.", _QUARANTINE)
    args.add_argument("--bring-back", action="store_true", help="take the rows whose codes are known now")
    said = read(args, words)
    if said.bring_back:
        facts = dict(ask_site(said, "requeue").facts)
        if said.json:
            print(json.dumps(facts))
            return 0
        taken, stored, known = (facts[name] for name in ("taken", "stored", "known already"))
        print(f"{taken} rows were taken, {stored} stored, {known} known already.")
        if left := taken - stored - known:
            print(f"{left} were not: `twinward site quarantine` and `twinward site quality` say why.")
        return 0
    table = ask_site(said, "quarantine").table
    columns = ("system", "code", "unit", "reason", "rows")
    return _shown(said, table.to_dict("records"), columns, "Nothing is in quarantine.")


def _consent(name: str, words: list[str]) -> int:
    args = home_parser(name, "Record whether patients are in research.", _CONSENT)
    args.add_argument("patient", nargs="?", help="pseudonym, or - for an identifier on standard input")
    args.add_argument("research", nargs="?", choices=("yes", "no"))
    args.add_argument("--list", action="store_true", help="print what is on record")
    args.add_argument("--file", type=Path, help="CSV with the columns patient and research")
    said = read(args, words)
    if said.list:
        table = ask_site(said, "consents").table
        return _shown(
            said, table.to_dict("records"), ("patient_id", "research", "since"), "No patient is known."
        )
    given = _given(said)
    for patient, research in given:
        ask_site(said, "consent", patient=patient, research=research)
    print(json.dumps({"recorded": len(given)}) if said.json else f"{len(given)} recorded; they hold at once.")
    return 0


def _given(said: argparse.Namespace) -> list[tuple[str, bool]]:
    if said.file is None:
        if not said.patient or not said.research:
            raise ConfigError("say a patient and yes or no, --file or --list")
        return [(patient_of(said), said.research == "yes")]
    with said.file.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if any(row.get("research") not in ("yes", "no") or not row.get("patient") for row in rows):
        raise ConfigError(
            f"{said.file}: expected the columns patient and research, with yes or no in each row"
        )
    return [(row["patient"], row["research"] == "yes") for row in rows]


def _erase(name: str, words: list[str]) -> int:
    args = home_parser(name, "Erase a patient everywhere.", _ERASE)
    args.add_argument("patient", help="pseudonym")
    args.add_argument("--backups", action="store_true", help="make all earlier backups unreadable too")
    args.add_argument("--confirm", metavar="PATIENT", help="the pseudonym again, where nobody can type it")
    said = read(args, words)
    if said.confirm is None:
        print(
            f"Type {said.patient} again to erase this patient for good: ", end="", file=sys.stderr, flush=True
        )
        said.confirm = sys.stdin.readline().strip()
    if said.confirm != said.patient:
        raise ConfigError("the pseudonym was not confirmed; nothing was erased")
    facts = dict(ask_site(said, "erase", patient=said.patient, backups=said.backups).facts)
    if said.json:
        print(json.dumps(facts, indent=2))
        return 0
    print(f"Erased: {', '.join(f'{count} {name}' for name, count in facts['rows'].items() if count)}.")
    if facts["backups"]:
        print(f"{len(facts['backups'])} backups still hold the patient; a restore leaves the patient out.")
        print("To make them unreadable: twinward site store rotate, then delete them.")
    return 0


def _export(name: str, words: list[str]) -> int:
    args = home_parser(name, "Write a de-identified folder for research.", _EXPORT)
    args.add_argument(
        "--research", type=Path, required=True, metavar="OUT", help="folder, made by this command"
    )
    args.add_argument("--study", required=True, help="what for; its pseudonyms are its own")
    said = read(args, words)
    if said.research.exists():
        raise ConfigError(f"{said.research} is there already; nothing is overwritten")
    from client.research import site_of
    from twin.signals import SIGNALS

    answer = ask_site(said, "export", use=said.study)
    site = site_of("export", answer)
    said.research.mkdir(parents=True)
    rows = site.observations[["patient_id", "time", "signal", "value"]]
    rows = rows.assign(unit=rows["signal"].map({name: entry.unit for name, entry in SIGNALS.items()}))
    rows.to_parquet(said.research / "observations.parquet", index=False)
    if len(site.patients.columns):
        site.patients.to_csv(said.research / "patients.csv")
    facts = {
        "folder": str(said.research),
        "patients": len(site.patients),
        "observations": len(rows),
        "held_back": dict(answer.facts["held_back"]),
        "aged_90_or_more": answer.facts["aggregated"],
    }
    if said.json:
        print(json.dumps(facts, indent=2))
        return 0
    print(f"{facts['patients']} patients, {facts['observations']} observations in {said.research}.")
    if facts["held_back"]:
        print(f"Held back, since the rule does not name them: {', '.join(facts['held_back'])}.")
    return 0


def _access(name: str, words: list[str]) -> int:
    args = home_parser(name, "List who may do what; give or take a role.", _ACCESS)
    args.add_argument("what", nargs="?", choices=("list", "grant", "revoke"), default="list")
    args.add_argument("user", nargs="?", help="of grant and revoke: a user of this machine")
    args.add_argument("role", nargs="?", help="clinician, researcher, data_steward, operator, auditor")
    said = read(args, words)
    from client.access import change, note_access
    from client.home import SiteHome
    from trust.audit import AuditLog
    from trust.digest import sha256
    from trust.roles import read_roles

    home = SiteHome(said.home)
    if said.what == "list":
        users = {name: list(held) for name, held in read_roles(home.access).users.items()}
    else:
        if not said.user or not said.role:
            raise ConfigError("say a user and a role")
        users = change(home, said.user, said.role, granted=said.what == "grant")
        with AuditLog(home.audit) as log:
            note_access(log, sha256(home.access.read_bytes()), who=getpass.getuser())
        if said.what == "grant" and not _is_user(said.user):
            print(
                f"This machine knows no user {said.user!r} yet; the role holds once it does.", file=sys.stderr
            )
    rows = [{"user": user, "roles": ", ".join(roles)} for user, roles in users.items()]
    return _shown(
        said, rows, ("user", "roles"), "Nobody may do anything: twinward site access grant USER ROLE"
    )


def _is_user(name: str) -> bool:
    try:
        return bool(pwd.getpwnam(name))
    except KeyError:
        return False


def _shown(said: argparse.Namespace, rows: list[dict[str, Any]], columns: tuple[str, ...], none: str) -> int:
    if said.json:
        print(json.dumps(rows, indent=2, default=str))
        return 0
    if not rows:
        print(none)
        return 0
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(*("" if row.get(name) is None else str(row[name]) for name in columns))
    output().print(table)
    return 0
