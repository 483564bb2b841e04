"""Holds a site's ledger against its audit log, so that an old copy of the ledger is noticed.

After each charge and each release the ledger's head stands in the audit log. A ledger that does not
contain the newest of those heads is an old copy, or another: it has forgotten what was spent. The site
then stops, until its people say why that happened (`twinward site ledger accept`). Acceptance forgives
nothing. What the audit log knows is charged again, and every plan that is not finished ends here,
because a round whose bytes are lost could be computed a second time, from data that has changed.

A ledger may well be ahead of the audit log: a crash may come between the two.

What this does not find: both files restored together. The coordinator, which holds heads of the audit
log, does (trust/witness.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from client.errors import ClientError
from client.journal import LedgerHead
from client.ledger import Ledger
from privacy.accounting import GaussianRelease
from trust.audit import AuditLog
from trust.errors import PlanError
from trust.plan import from_json
from trust.record import Record

RECOVERED = "recovered offer "
"""What the terms of a recovered plan begin with; the hash of its offer follows."""

_CHARGED, _RELEASED, _ANSWERED, _ACCEPTED = "accepted", "released", "answered", "ledger_accepted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """What accepting a ledger did: plans that were charged again, and plans that ended."""

    recharged: int
    ended: int


def check(ledger: Ledger, log: AuditLog) -> None:
    """Returns if the ledger is the one of the audit log, then or later.

    Raises:
        ClientError: ledger_restored, if it is an old copy or another; ledger_unreadable, if its tables
            are not what its own journal says.
    """
    faults = ledger.faults()
    if faults:
        raise ClientError("ledger_unreadable", f"The privacy ledger was changed: {'; '.join(faults[:5])}.")
    record = log.last(_CHARGED, _RELEASED, _ANSWERED, _ACCEPTED)
    if record is None:
        if any(entry.rounds_complete for entry in ledger.plans()):
            raise _restored("Releases stand in the privacy ledger of which the audit log knows nothing.")
        return
    anchor = _anchor(record)
    if not ledger.contains(anchor):
        raise _restored(
            f"The privacy ledger has {ledger.head().size} changes and does not contain the {anchor.size} of"
            f" which record {record.number} of the audit log tells: it is an old copy, or another."
        )


def accept(ledger: Ledger, log: AuditLog, *, who: str, why: str) -> Acceptance:
    """Goes on with the ledger that is there, charged again with all that the audit log knows.

    Args:
        ledger: opened without a ceiling: what was spent was spent.
        who: the person who decided; why: what happened to the ledger.

    Returns:
        What was done; it stands in the audit log.

    Raises:
        ClientError: malformed, without a reason.
    """
    if not why.strip():
        raise ClientError("malformed", "A ledger is accepted with a reason only.")
    known = {entry.plan_hash for entry in ledger.plans()}
    recharged = 0
    for record in log.records(kinds=(_CHARGED,)):
        plan_hash = str(record.facts["plan"])
        if plan_hash not in known:
            ledger.open_plan(plan_hash, _release(record), RECOVERED + str(record.facts.get("offer", "")))
            known.add(plan_hash)
            recharged += 1
    ended = sum(ledger.end_plan(entry.plan_hash) for entry in ledger.plans())
    head = ledger.head()
    log.append(
        _ACCEPTED,
        who=who,
        why=why,
        ledger_size=head.size,
        ledger_head=head.sha256,
        recharged=recharged,
        ended=ended,
    )
    return Acceptance(recharged=recharged, ended=ended)


def offer_of(terms: str) -> str:
    """Hash of the offer of a plan that stands in the ledger; empty if it is no plan."""
    if terms.startswith(RECOVERED):
        return terms.removeprefix(RECOVERED)
    try:
        return from_json(terms).offer_hash
    except PlanError:
        return ""


def _anchor(record: Record) -> LedgerHead:
    return LedgerHead(size=int(record.facts["ledger_size"]), sha256=str(record.facts["ledger_head"]))


def _release(record: Record) -> GaussianRelease:
    facts = record.facts
    return GaussianRelease(
        noise_multiplier=float(facts["noise_multiplier"]),
        sampling_rate=float(facts["sampling_rate"]),
        steps=int(facts["steps"]),
    )


def _restored(text: str) -> ClientError:
    return ClientError(
        "ledger_restored",
        f"{text} What was spent since is missing from it, so the site stops. Put back the newest ledger,"
        " or, if it is lost: twinward site ledger accept --reason ...",
    )
