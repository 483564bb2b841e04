"""What can be asked at a site's door, by name: each with the right that it needs and what is recorded of it.

The record names a patient by the beginning of a digest of the pseudonym (`digest`), which the site can find
again and nobody else can undo. Why somebody looks is a word of `WHY`, not free text, which could name people.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import pandas as pd

from client import research
from client.access import Access
from client.counter import Answer
from client.custodian import Custodian
from client.door import USER, Service, Words
from client.errors import ClientError
from client.home import SiteHome
from client.own_models import OwnModels
from client.personalise import personalise
from client.store_settings import StoreSettings
from client.strongroom import rotate_key
from client.supervisor import Supervisor
from client.wardroom import WardRoom
from trust.pseudonym import Pseudonyms
from trust.roles import RIGHTS
from twin.deidentify import deidentify
from twin.store.erasure import digest_of

WHY: Final = ("treatment", "emergency", "patient-request", "operations", "research")


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What the answers are made of."""

    home: SiteHome
    settings: StoreSettings
    custodian: Custodian
    room: WardRoom
    supervisor: Callable[[], Supervisor]
    access: Access
    own: OwnModels
    feeds: tuple[str, ...]


def services(desk: Desk) -> dict[str, Service]:
    """Everything that can be asked."""
    return {**_of_care(desk), **_of_stewards(desk), **_of_operators(desk)}


def digest(patient_id: str) -> str:
    """How the audit log names a patient."""
    return digest_of(patient_id)[:16]


def _of_care(desk: Desk) -> dict[str, Service]:
    return {
        "twin": Service(
            right="twin:read",
            answer=lambda words: Answer(facts=_twin(desk, _patient(words))),
            about=lambda words: f"twin of {_who(words)}, {_why(words)}",
        ),
        "observations": Service(
            right="observations:read",
            answer=lambda words: Answer(table=_observations(desk, words)),
            about=lambda words: f"observations of {_who(words)}, {_why(words)}",
        ),
        "alerts": Service(
            right="alerts:read",
            answer=lambda _: Answer(facts={"alerts": [alert.to_dict() for alert in desk.room.alerts()]}),
            about=lambda words: f"active alerts, {_why(words)}",
        ),
        "acknowledge": Service(
            right="alerts:handle",
            answer=lambda words: _acknowledged(desk, words),
            about=lambda words: f"acknowledge an alert of {_who(words)}",
        ),
        "snooze": Service(
            right="alerts:handle",
            answer=lambda words: _snoozed(desk, words),
            about=lambda words: f"snooze an alert of {_who(words)}",
        ),
        "identify": Service(
            right="identify",
            answer=lambda words: Answer(
                facts={"patient": desk.custodian.pseudonym(_text(words, "identifier"))}
            ),
            about=lambda words: f"pseudonym {digest(desk.custodian.pseudonym(_text(words, 'identifier')))}",
        ),
    }


def _of_stewards(desk: Desk) -> dict[str, Service]:
    return {
        "quality": Service(
            right="quality:totals",
            answer=lambda _: Answer(table=_totals(desk.custodian.store.counts())),
            about=lambda _: "counts of rows",
        ),
        "quality_of_patients": Service(
            right="quality:read",
            answer=lambda _: Answer(table=desk.custodian.store.counts()),
            about=lambda _: "counts of rows by patient",
        ),
        "quarantine": Service(
            right="quarantine:read",
            answer=lambda _: Answer(table=desk.custodian.store.quarantine()),
            about=lambda _: "codes and units in quarantine",
        ),
        "requeue": Service(
            right="quarantine:release",
            answer=lambda _: Answer(facts=desk.custodian.requeue()),
            about=lambda _: "rows of known codes back from quarantine",
        ),
        "consents": Service(
            right="consent:write",
            answer=lambda _: Answer(table=_consents(desk)),
            about=lambda _: "consents of all patients",
        ),
        "consent": Service(
            right="consent:write",
            answer=lambda words: _consent(desk, words),
            about=lambda words: (
                f"consent of {_who(words)}: {'yes' if words.get('research') is True else 'no'}"
            ),
        ),
        "erase": Service(
            right="erase",
            answer=lambda words: _erase(desk, words),
            about=lambda words: (
                f"erase {_who(words)}"
                + (", and make backups unreadable" if words.get("backups") is True else "")
            ),
        ),
        "export": Service(
            right="export:make",
            answer=lambda words: _export(desk, words),
            about=lambda words: f"export for research {_use(words)}",
        ),
        "training": Service(
            right=research.RIGHT,
            answer=lambda _: research.answer_of(desk.custodian.site(desk.home.settings().site, "research")),
            about=lambda _: "consenting patients, for training outside the process",
        ),
    }


def _of_operators(desk: Desk) -> dict[str, Service]:
    return {
        "status": Service(right="status:read", answer=lambda _: Answer(facts=status(desk))),
        "feeds": Service(right="feeds:read", answer=lambda _: Answer(facts=_feeds(desk))),
        "access": Service(right="access:read", answer=lambda _: Answer(facts=_access(desk))),
        "backup": Service(right="store:backup", answer=lambda _: Answer(facts={"path": _backup(desk)})),
        "check": Service(right="store:check", answer=lambda _: Answer(facts=_checked(desk))),
        "rotate": Service(right="store:rotate", answer=lambda _: _rotate(desk)),
        "fit": Service(
            right="models:fit",
            answer=lambda words: _fit(desk, _text(words, "task")),
            about=lambda words: f"fit own models of {_text(words, 'task')}",
        ),
    }


def status(desk: Desk) -> dict[str, Any]:
    """How the process stands; nothing of patients but their number."""
    parts = {
        name: {"state": entry.state, "since_s": entry.since_s, "crashes": entry.crashes, "why": entry.why}
        for name, entry in desk.supervisor().standings().items()
    }
    return {"site": desk.home.settings().site, "parts": parts, "ward": desk.room.counts()}


# Care


def _twin(desk: Desk, patient_id: str) -> dict[str, Any]:
    found = desk.room.twin(patient_id)
    return {"twin": found.to_dict(), "text": str(found)}


def _observations(desk: Desk, words: Words) -> pd.DataFrame:
    hours = words.get("hours", 24.0)
    if not isinstance(hours, int | float) or not 0 < hours <= 1e6:
        raise ClientError("malformed", "Expected hours above 0.")
    patient = _patient(words)
    return desk.custodian.store.recent(pd.Timedelta(hours=float(hours)), [patient])


def _acknowledged(desk: Desk, words: Words) -> Answer:
    notice = desk.room.acknowledge(
        _patient(words), _text(words, "alert"), who=_text(words, USER), why=str(words.get("why", ""))[:500]
    )
    return Answer(facts=notice.to_dict())


def _snoozed(desk: Desk, words: Words) -> Answer:
    minutes = words.get("minutes")
    if not isinstance(minutes, int | float):
        raise ClientError("malformed", "Expected minutes.")
    notice = desk.room.snooze(
        _patient(words), _text(words, "alert"), minutes=float(minutes), who=_text(words, USER)
    )
    return Answer(facts=notice.to_dict())


# Stewards


def _totals(counts: pd.DataFrame) -> pd.DataFrame:
    """Counts without patients."""
    by = ["signal", "fate", "reason", "feed"]
    found = counts.groupby(by, as_index=False)["rows"].sum()
    return pd.DataFrame(found.assign(patient_id=""), columns=list(counts.columns))


def _consents(desk: Desk) -> pd.DataFrame:
    known = desk.custodian.store.consents()
    rest = [p for p in desk.custodian.store.patients().index if p not in set(known["patient_id"])]
    silent = pd.DataFrame({"patient_id": rest, "research": False, "since": ""})
    return pd.concat([known.astype({"since": "str"}), silent], ignore_index=True).astype(
        {"patient_id": "str"}
    )


def _consent(desk: Desk, words: Words) -> Answer:
    if not isinstance(words.get("research"), bool):
        raise ClientError("malformed", "Expected research: yes or no.")
    patient = _patient(words)
    desk.custodian.consent(patient, words["research"])
    return Answer(facts={"patient": patient, "research": words["research"]})


def _erase(desk: Desk, words: Words) -> Answer:
    patient = _patient(words)
    rows = desk.custodian.erase(patient)
    left = sorted(path.name for path in desk.home.backups.glob("*.duckdb"))
    if words.get("backups") is True and left:
        rotate_key(desk.custodian.store, desk.home.vault, desk.settings.lock())
        for name in left:
            (desk.home.backups / name).unlink()
        left = []
        _backup(desk)
    return Answer(facts={"rows": {name: int(count) for name, count in rows.items()}, "backups": left})


def _export(desk: Desk, words: Words) -> Answer:
    use = f"export {_use(words)}"
    found = desk.custodian.site(desk.home.settings().site, "research")
    if not len(found.patients.index):
        raise ClientError("too_few_patients", "Nobody in the store consents to research.")
    made = deidentify(found, Pseudonyms(desk.home.secret(), use), known=_identifiers(found.patients))
    answer = research.answer_of(made.site)
    return Answer(
        facts={**answer.facts, "held_back": dict(made.held_back), "aggregated": made.aggregated},
        table=answer.table,
    )


def _identifiers(patients: pd.DataFrame) -> frozenset[str]:
    """Names of patients that the store knows, so that no text that leaves may hold one."""
    names = [column for column in patients.columns if "name" in str(column).casefold()]
    found = {str(value) for column in names for value in patients[column].dropna()}
    return frozenset(found | set(map(str, patients.index)))


# Operators


def _feeds(desk: Desk) -> dict[str, Any]:
    at_work, standings = desk.custodian.feeds(), desk.supervisor().standings()
    return {
        "feeds": [
            {
                "name": name,
                "state": standings[f"feed {name}"].state,
                "crashes": standings[f"feed {name}"].crashes,
                "why": standings[f"feed {name}"].why,
                **at_work.get(name, {"rows": 0, "batches": 0, "last": None}),
            }
            for name in desk.feeds
        ]
    }


def _access(desk: Desk) -> dict[str, Any]:
    found = desk.access.roles()
    return {
        "users": {name: list(held) for name, held in found.users.items()},
        "rights": {
            name: sorted({right for role in held for right in RIGHTS[role] if found.may(name, right)})
            for name, held in found.users.items()
        },
    }


def _backup(desk: Desk) -> str:
    desk.home.backups.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = desk.home.backups / f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.duckdb"
    desk.custodian.store.backup(path)
    path.chmod(0o600)
    return str(path)


def _checked(desk: Desk) -> dict[str, Any]:
    store = desk.custodian.store
    site = store.site(desk.home.settings().site, purpose="care", marked=True)
    counts = store.counts()
    kept = int(counts.loc[counts["fate"].eq("kept"), "rows"].sum())
    return {
        "patients": len(site.patients),
        "observations": len(site.observations),
        "rows_kept": kept,
        "quarantined": int(store.quarantine()["rows"].sum()),
        "backups": len(list(desk.home.backups.glob("*.duckdb"))),
    }


def _rotate(desk: Desk) -> Answer:
    rotate_key(desk.custodian.store, desk.home.vault, desk.settings.lock())
    return Answer(facts={"backup": _backup(desk)})


def _fit(desk: Desk, task: str) -> Answer:
    return Answer(facts=personalise(desk.home, task, desk.own).facts())


# Words


def _patient(words: Words) -> str:
    return _text(words, "patient")


def _who(words: Words) -> str:
    return f"patient {digest(_patient(words))}"


def _why(words: Words) -> str:
    why = words.get("why", "treatment")
    if why not in WHY:
        raise ClientError("malformed", f"Expected as a reason one of {', '.join(WHY)}.")
    return str(why)


def _use(words: Words) -> str:
    use = _text(words, "use")
    if not use.replace("-", "").isalnum() or not use.isascii() or len(use) > 64:
        raise ClientError("malformed", "Expected a name of the study: up to 64 letters, digits, hyphens.")
    return use


def _text(words: Mapping[str, Any], name: str) -> str:
    value = words.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 1000:
        raise ClientError("malformed", f"Expected {name}: a text.")
    return value
