"""The errors of the coordinator."""

from conf.errors import TwinwardError


class ServerError(TwinwardError):
    """A federation that cannot go on, and what would let it."""


class Halted(TwinwardError):
    """A run that somebody paused or stopped, or a coordinator that is shutting down; nothing is lost."""

    def __init__(self) -> None:
        super().__init__("This run was halted; what is committed is kept.")
