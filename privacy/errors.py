"""The error of the privacy mechanism: a release that would not be bounded, terms that make no sense."""

from conf.errors import TwinwardError


class PrivacyError(TwinwardError):
    """Raised before anything was released; its text never depends on a single patient's values."""
