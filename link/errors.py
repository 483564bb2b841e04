"""The error of the network between coordinator and sites."""

from conf.errors import TwinwardError


class LinkError(TwinwardError):
    """A message that is not of the agreed form, or a grid that cannot carry it."""
