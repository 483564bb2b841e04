"""The error of the hospital's side, with a code that may leave the site where the text may not."""

from __future__ import annotations

from typing import Final

from conf.errors import TwinwardError

CODES: Final = (
    "base_mismatch",
    "budget_exhausted",
    "internal_error",
    "ledger_unreadable",
    "malformed",
    "plan_differs",
    "plan_unknown",
    "release_differs",
    "release_refused",
    "round_repeated_on_other_base",
    "round_unknown",
    "site_absent",
    "steps_exceeded",
    "terms_refused",
    "too_few_patients",
    "training_failed",
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
