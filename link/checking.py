"""Whether a body is what its header declares: one SHA-256 per array, while the bytes come in."""

from __future__ import annotations

import hashlib

from link.frames import BAD_BODY, FrameError, Manifest


class Checker:
    """Hashes a body as it comes in, array by array.

    `update` raises FrameError (bad_body) at the end of the first array whose SHA-256 is another.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._lengths = manifest.lengths
        self._digests = manifest.digests
        self._place = 0
        self._left = self._lengths[0] if self._lengths else 0
        self._hash = hashlib.sha256()
        self._close_full()

    def update(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view.nbytes:
            if self._place >= len(self._lengths):
                raise FrameError(BAD_BODY, "Expected no byte after the last array.")
            piece = view[: self._left]
            self._hash.update(piece)
            self._left -= piece.nbytes
            view = view[piece.nbytes :]
            self._close_full()

    def finish(self) -> None:
        """Raises FrameError (bad_body) if bytes are missing."""
        if self._place != len(self._lengths):
            raise FrameError(BAD_BODY, "Expected more bytes: the body ends before its last array does.")

    def _close_full(self) -> None:
        while self._place < len(self._lengths) and self._left == 0:
            if self._hash.digest() != self._digests[self._place]:
                raise FrameError(BAD_BODY, "Expected an array with the declared SHA-256.")
            self._place += 1
            self._hash = hashlib.sha256()
            self._left = self._lengths[self._place] if self._place < len(self._lengths) else 0
