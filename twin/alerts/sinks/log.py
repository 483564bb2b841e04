"""Notices into the program's log: which rule, how urgent, since when; no patient, no value."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from twin.alerts.alert import Notice

_LOG = logging.getLogger(f"twinward.{__name__}")
_LEVELS = {"high": logging.ERROR, "medium": logging.WARNING, "low": logging.INFO}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSink:
    """Writes one line for each notice."""

    name: str = "log"

    def send(self, notice: Notice) -> None:
        """Never fails."""
        level = _LEVELS[notice.alert.priority] if notice.event in ("raised", "escalated") else logging.INFO
        _LOG.log(level, "alert %s %s, priority %s", notice.alert.id, notice.event, notice.alert.priority)
