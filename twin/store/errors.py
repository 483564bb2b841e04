"""The error of the store; its text never carries what the database said, which may quote values."""

from __future__ import annotations

from twin.errors import DataError


class StoreError(DataError):
    """A store that cannot be opened, read or written: what was expected, what came, how to mend it."""


class WrongKeyError(StoreError):
    """The data key is not the one that the file was written under."""
