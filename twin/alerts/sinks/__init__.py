"""Where notices of alerts go: one protocol, four sinks, and others by entry point.

A sink of another distribution is an entry point in the group `twinward.sinks`: a callable that takes the
entry's keys of alerts.toml as keyword arguments and gives a `Sink`. It runs in the hospital's process and
sees its patients' alerts: install only what you trust.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any, Final, Protocol

from twin.alerts.alert import Notice
from twin.errors import DataError

GROUP: Final = "twinward.sinks"
OURS: Final = ("log", "webhook", "email", "fhir")


class Sink(Protocol):
    """One way out."""

    @property
    def name(self) -> str:
        """Unique at a site."""
        ...

    def send(self, notice: Notice) -> None:
        """Hands over one notice, within seconds; a notice may come twice, under one id.

        Raises:
            Exception: it was not taken; whoever drives the sink tries again later.
        """
        ...


def build(entries: Iterable[Mapping[str, Any]]) -> tuple[Sink, ...]:
    """The sinks of `[[sink]]` tables: `kind`, `name` (by default the kind), and the kind's own keys.

    Raises:
        DataError: every fault at once; secrets are not shown.
    """
    sinks: list[Sink] = []
    found: list[str] = []
    for number, entry in enumerate(entries, 1):
        try:
            sinks.append(_one(dict(entry)))
        except DataError as error:
            found.append(f"sink {number}: {error}")
        except TypeError:
            found.append(f"sink {number}: keys that kind={entry.get('kind')!r} does not take, or lacks")
    names = [sink.name for sink in sinks]
    found += [f"two sinks have the name {name!r}" for name in sorted(set(names)) if names.count(name) > 1]
    if found:
        raise DataError(f"The sinks of alerts do not hold. {'; '.join(found)} (alerts.toml, [[sink]]).")
    return tuple(sinks)


def _one(entry: dict[str, Any]) -> Sink:
    kind = str(entry.pop("kind", ""))
    entry.setdefault("name", kind)
    sink: Sink = _maker(kind)(**entry)
    return sink


def _maker(kind: str) -> Callable[..., Any]:
    from twin.alerts.sinks.fhir import FhirSink
    from twin.alerts.sinks.log import LogSink
    from twin.alerts.sinks.mail import MailSink
    from twin.alerts.sinks.webhook import WebhookSink

    ours: dict[str, Callable[..., Any]] = {
        "log": LogSink,
        "webhook": WebhookSink,
        "email": MailSink,
        "fhir": FhirSink,
    }
    if kind in ours:
        return ours[kind]
    points = list(entry_points(group=GROUP, name=kind))
    if len(points) != 1:
        raise DataError(
            f"kind {kind!r} is none of {', '.join(OURS)} nor one installed entry point of {GROUP}"
        )
    made: Callable[..., Any] = points[0].load()
    return made
