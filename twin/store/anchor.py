"""How many commits a store has seen, kept beside it, so that a cut or an older copy is noticed.

DuckDB takes a cut write-ahead log for one that a crash interrupted, and goes on with what came before; so
would a lost log, or an older file in the place of the newer one. The store counts its commits within each
transaction, and here after it. A store that counts fewer than its anchor has lost commits that were
acknowledged. (A store that counts one more was killed between the two.) This shows accidents. Who may write
to the folder can put back older copies of both: that is what file permissions and backups are for.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

_SLOT = struct.Struct("<QI")


class Anchor:
    """Two slots of a small file, written in turn: one of them is whole whenever a process is killed."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def read(self) -> int:
        """The highest count that was written; 0 if none was."""
        data = os.pread(self._descriptor, 2 * _SLOT.size, 0)
        whole = [data[at : at + _SLOT.size] for at in (0, _SLOT.size) if len(data) >= at + _SLOT.size]
        counts = [_SLOT.unpack(slot) for slot in whole]
        return max((count for count, crc in counts if crc == _crc(count)), default=0)

    def write(self, count: int) -> None:
        """Keeps `count`, durably."""
        os.pwrite(self._descriptor, _SLOT.pack(count, _crc(count)), (count % 2) * _SLOT.size)
        os.fdatasync(self._descriptor)

    def reset(self, count: int) -> None:
        """Keeps `count` although it is lower: the store was restored on purpose."""
        os.ftruncate(self._descriptor, 0)
        self.write(count)

    def close(self) -> None:
        """Closes the file; again is fine."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _crc(count: int) -> int:
    return zlib.crc32(b"twinward commits %d" % count)
