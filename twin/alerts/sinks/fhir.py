"""Notices into a health record as FHIR R4 resources: a Communication for each, a Flag while an alert lasts.

Models are those of `fhir.resources` (R4B, whose Communication and Flag are R4's), so that what is sent is
valid. Resources are put under ids made of the notice's and the alert's id, so that a notice that comes twice
changes nothing; the server must let clients choose ids (FHIR R4, 3.1.0.7.1, update as create). The patient is
named by an identifier: the site's pseudonym, or what `subject` makes of it. A measured value is not in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from twin.alerts.alert import Notice
from twin.alerts.sinks.http import checked_url, send
from twin.errors import DataError

SYSTEM: Final = "urn:twinward:alert"
_PRIORITY: Final = {"high": "stat", "medium": "urgent", "low": "routine"}
_TYPE: Final = "application/fhir+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FhirSink:
    """Puts resources to a server.

    Attributes:
        base: of the FHIR server, https://…/fhir.
        identifier_system: of the patients' identifiers.
        token_file: of a bearer token; empty is none.
        subject: from the site's pseudonym to the identifier that the record knows.
    """

    base: str
    identifier_system: str
    token_file: str = ""
    ca_file: str = ""
    name: str = "fhir"
    timeout_s: float = 10.0
    subject: Callable[[str], str] = field(default=str, repr=False)

    def __post_init__(self) -> None:
        checked_url(self.base)
        try:
            import fhir.resources  # noqa: F401  asked for here, so that a site without it hears of it at once
        except ImportError:
            raise DataError("the FHIR sink needs `pip install 'twinward[feeds]'`") from None

    def send(self, notice: Notice) -> None:
        """Raises if the server did not take both resources."""
        for resource in resources(notice, self.identifier_system, self.subject(notice.alert.patient_id)):
            url = f"{self.base.rstrip('/')}/{resource.get_resource_type()}/{resource.id}"
            body = resource.model_dump_json().encode()
            send("PUT", url, body, self._headers(), timeout_s=self.timeout_s, ca_file=self.ca_file)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": _TYPE, "Accept": _TYPE}
        if self.token_file:
            token = Path(self.token_file).read_text(encoding="utf-8").strip()
            headers["Authorization"] = f"Bearer {token}"
        return headers


def resources(notice: Notice, identifier_system: str, identifier: str) -> tuple[Any, Any]:
    """(Communication, Flag) of a notice."""
    from fhir.resources.R4B.communication import Communication
    from fhir.resources.R4B.flag import Flag

    alert = notice.alert
    subject = {"identifier": {"system": identifier_system, "value": identifier}}
    over = notice.event in ("resolved", "lapsed")
    period = {"start": alert.since.isoformat()} | ({"end": notice.at.isoformat()} if over else {})
    communication = Communication.model_validate(
        {
            "id": _id(f"{alert.id}-{notice.id}"),
            "status": "completed",
            "identifier": [{"system": SYSTEM, "value": notice.id}],
            "category": [{"text": "alert"}],
            "priority": _PRIORITY[alert.priority],
            "subject": subject,
            "sent": notice.at.isoformat(),
            "payload": [{"contentString": f"{alert.text} ({notice.event})"}],
        }
    )
    flag = Flag.model_validate(
        {
            "id": _id(alert.id),
            "status": "inactive" if over else "active",
            "identifier": [{"system": SYSTEM, "value": alert.id}],
            "category": [{"text": f"alert, {alert.priority} priority"}],
            "code": {"text": alert.text},
            "subject": subject,
            "period": period,
        }
    )
    return communication, flag


def _id(text: str) -> str:
    """A FHIR id: letters, digits, hyphens, dots, at most 64; the end of a longer text is what tells."""
    return re.sub(r"[^A-Za-z0-9.-]", "-", text)[-64:]
