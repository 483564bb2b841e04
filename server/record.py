"""How the coordinator's parts write into the audit log."""

from __future__ import annotations

from typing import Protocol


class Record(Protocol):
    """Writes down who did what, durably on return; `trust.audit.AuditLog.append` is one."""

    def __call__(self, kind: str, *, who: str, why: str = "", **facts: str | int) -> object: ...
