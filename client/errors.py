"""The error of the hospital's side, with a code that may leave the site where the text may not."""

from __future__ import annotations

from typing import Final

from conf.errors import TwinwardError

CODES: Final = (
    "access_refused",
    "audit_failed",
    "awaiting_approval",
    "base_mismatch",
    "budget_exhausted",
    "data_unreadable",
    "delta_refused",
    "epsilon_refused",
    "home_unreadable",
    "inbox_unreadable",
    "internal_error",
    "key_refused",
    "ledger_restored",
    "ledger_unreadable",
    "malformed",
    "model_refused",
    "plan_differs",
    "plan_refused",
    "plan_unknown",
    "plan_unsigned",
    "plugin_refused",
    "policy_unreadable",
    "quantity_unknown",
    "question_refused",
    "release_differs",
    "release_refused",
    "round_repeated_on_other_base",
    "round_unknown",
    "site_absent",
    "steps_exceeded",
    "strategy_refused",
    "task_refused",
    "terms_refused",
    "too_few_patients",
    "training_failed",
    "unavailable",
    "version_refused",
)
"""All codes: fixed words, so that a refusal tells a coordinator what to do and nothing about a patient."""


class ClientError(TwinwardError):
    """A request that the site refuses. `code` is one of CODES; the text is for the site's own log."""

    def __init__(self, code: str, text: str) -> None:
        if code not in CODES:
            raise ValueError(f"Unknown error code {code!r}; add it to client.errors.CODES.")
        super().__init__(f"{text} [{code}]")
        self.code = code

    def __reduce__(self) -> tuple[type[ClientError], tuple[str, str]]:
        return ClientError, (self.code, str(self).removesuffix(f" [{self.code}]"))
