"""The errors of the network between coordinator and sites."""

import re

from conf.errors import TwinwardError


class LinkError(TwinwardError):
    """A message that is not of the agreed form, or a grid that cannot carry it."""


_CODE = re.compile(r"[a-z0-9_.]{1,64}")


def code_of(text: str, otherwise: str) -> str:
    """`text` if it has the form of a code; what a peer wrote goes into logs and errors in no other form.

    >>> code_of("too_many", "unknown"), code_of("fine\\n2026-01-01 ERROR forged", "unknown")
    ('too_many', 'unknown')
    """
    return text if _CODE.fullmatch(text) else otherwise


class CallRefused(LinkError):
    """A call that the other side did not answer; `code` says why, and is all that travels."""

    def __init__(self, code: str, text: str = "") -> None:
        super().__init__(f"{text or 'The coordinator refused the call.'} [{code}]")
        self.code = code
