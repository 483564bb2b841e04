"""The error of the privacy mechanism: a release that would not be bounded, terms that make no sense."""

from conf.errors import TwinwardError


class PrivacyError(TwinwardError):
    """Raised before anything was released; its text never depends on a single patient's values."""


class InseparableError(PrivacyError):
    """One patient's gradient is not finite and may have spoilt others': take one patient at a time."""
