"""Frames of MLLP out of a stream of bytes: <VT> message <FS><CR>, HL7's minimal lower layer protocol."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

START: Final = b"\x0b"
END: Final = b"\x1c"
_BLANK: Final = b"\r\n \x00"


class TooLarge(Exception):
    """A frame longer than its limit; what follows it cannot be told apart any more."""


@dataclass(slots=True, kw_only=True)
class Frames:
    """Takes bytes as they come and gives the messages that are whole.

    Attributes:
        most_bytes: a longer message is refused.
        faults: what was wrong with the stream, counted: bytes outside a frame, a frame that another one
            began before it had ended. Neither takes a whole frame with it.
    """

    most_bytes: int
    faults: Counter[str] = field(default_factory=Counter)
    _rest: bytearray = field(default_factory=bytearray)
    _searched: int = 0

    @property
    def is_within(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that end in `data`.

        Raises:
            TooLarge: a message is longer than `most_bytes`.
        """
        self._rest += data
        found: list[bytes] = []
        while True:
            self._skip_outside()
            end = self._rest.find(END, self._searched)
            if end < 0:
                self._searched = len(self._rest)
                if self._searched > self.most_bytes + 1:
                    self.faults["frame too large"] += 1
                    raise TooLarge
                return found
            frame = bytes(self._rest[:end])
            del self._rest[: end + 1]
            self._searched = 0
            *cut, message = frame[1:].split(START)
            self.faults["frame without an end"] += len(cut)
            if len(message) > self.most_bytes:
                self.faults["frame too large"] += 1
                raise TooLarge
            found.append(message)

    def _skip_outside(self) -> None:
        """Leaves the rest empty, or beginning with a frame."""
        if self._rest[:1] == START:
            return
        start = self._rest.find(START)
        outside = self._rest if start < 0 else self._rest[:start]
        if outside.strip(_BLANK):
            self.faults["bytes outside a frame"] += 1
        del self._rest[: len(self._rest) if start < 0 else start]
        self._searched = 0


def framed(message: bytes) -> bytes:
    """The frame of a message."""
    return START + message + END + b"\r"
