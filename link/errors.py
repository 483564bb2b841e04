"""The errors of the network between coordinator and sites."""

from conf.errors import TwinwardError


class LinkError(TwinwardError):
    """A message that is not of the agreed form, or a grid that cannot carry it."""


class CallRefused(LinkError):
    """A call that the other side did not answer; `code` says why, and is all that travels."""

    def __init__(self, code: str, text: str = "") -> None:
        super().__init__(f"{text or 'The coordinator refused the call.'} [{code}]")
        self.code = code
