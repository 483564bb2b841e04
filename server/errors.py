"""The error of the coordinator."""

from conf.errors import TwinwardError


class ServerError(TwinwardError):
    """A federation that cannot go on, and what would let it."""
