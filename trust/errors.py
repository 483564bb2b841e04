"""The errors of plans and digests."""

from conf.errors import TwinwardError


class TrustError(TwinwardError):
    """Something that came from a peer and does not hold; the text says what was expected."""


class PlanError(TrustError):
    """A plan that is malformed or that nobody could carry out; its text lists every fault."""
