"""What an alert is, and what is told of it to those who listen."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal

Priority = Literal["high", "medium", "low"]
PRIORITIES: Final[tuple[Priority, ...]] = ("high", "medium", "low")
MEANING: Final = {
    # The words of IEC 60601-1-8 for what each priority asks of a person.
    "high": "immediate operator response is required",
    "medium": "prompt operator response is required",
    "low": "operator awareness is required",
}

Event = Literal["raised", "escalated", "acknowledged", "snoozed", "resolved", "lapsed"]
EVENTS: Final[tuple[Event, ...]] = (
    "raised",
    "escalated",
    "acknowledged",
    "snoozed",
    "resolved",
    "lapsed",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A condition of a patient that a rule found and that has not ended.

    Attributes:
        id: of this alert at this site, "rule-number".
        patient_id: the site's pseudonym.
        rule, priority, text: of the rule; the text names no value and no person.
        since: when it was raised.
        escalations: how often it was, unacknowledged.
        acknowledged_by, acknowledged_at, why: empty until somebody does.
        snoozed_until: None if it is not.
    """

    id: str
    patient_id: str
    rule: str
    priority: Priority
    text: str
    since: datetime
    escalations: int = 0
    acknowledged_by: str = ""
    acknowledged_at: datetime | None = None
    why: str = ""
    snoozed_until: datetime | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, times in ISO 8601."""
        plain = asdict(self)
        return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in plain.items()}

    def __str__(self) -> str:
        state = f"acknowledged by {self.acknowledged_by}" if self.acknowledged_by else "not acknowledged"
        if self.snoozed_until is not None:
            state += f", snoozed until {self.snoozed_until:%H:%M} UTC"
        return (
            f"{self.priority.upper()} {self.text} [{self.id}] since {self.since:%Y-%m-%d %H:%M} UTC, {state}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One event in the life of an alert, as sinks are told of it.

    Attributes:
        id: unique at this site; a sink that is told twice can know it by this.
        event: one of `EVENTS`. at: when.
        alert: as it is after the event.
    """

    id: str
    event: Event
    at: datetime
    alert: Alert

    def to_dict(self) -> dict[str, Any]:
        """Plain values, times in ISO 8601."""
        return {
            "id": self.id,
            "event": self.event,
            "at": self.at.isoformat(),
            "alert": self.alert.to_dict(),
        }

    @staticmethod
    def from_dict(plain: dict[str, Any]) -> Notice:
        """What `to_dict` gave."""
        told = dict(plain["alert"])
        for name in ("since", "acknowledged_at", "snoozed_until"):
            if told[name] is not None:
                told[name] = datetime.fromisoformat(told[name])
        return Notice(
            id=plain["id"],
            event=plain["event"],
            at=datetime.fromisoformat(plain["at"]),
            alert=replace(Alert(**told)),
        )


def moment(time_us: int) -> datetime:
    """A time in microseconds since 1970 as UTC."""
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).replace(microsecond=int(time_us % 1_000_000))
