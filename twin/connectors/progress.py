"""How far a feed of files has come: which files are read, and where in the next one to go on.

A file is known by a digest of its place, size and time of change, never by its name, which may be that of a
patient. One that changed is read anew; what was in it before is recognised by the store.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from twin.errors import DataError

LONGEST_LINE: Final = 32 * 1024 * 1024
LARGEST_FILE: Final = 512 * 1024 * 1024


@dataclass(slots=True, kw_only=True)
class Progress:
    """Grows as files are read; `str` of it is a position.

    Attributes:
        done: digests of the files that are read.
        current: digest of the file that is read in part; "" is none.
        offset: bytes or messages of it that are read.
    """

    done: set[str] = field(default_factory=set)
    current: str = ""
    offset: int = 0

    @classmethod
    def of(cls, position: str) -> Progress:
        """What `str` of a progress says.

        Raises:
            DataError: it says nothing such.
        """
        try:
            found = json.loads(position or "{}")
            return cls(
                done=set(map(str, found.get("done", []))),
                current=str(found.get("current", "")),
                offset=int(found.get("offset", 0)),
            )
        except (ValueError, TypeError, AttributeError):
            raise DataError("The position of a feed of files is damaged; start the feed anew.") from None

    def __str__(self) -> str:
        return json.dumps({"done": sorted(self.done), "current": self.current, "offset": self.offset})

    def start_of(self, mark: str) -> int:
        """Where to begin in the file of this digest."""
        return self.offset if mark == self.current else 0

    def reached(self, mark: str, offset: int) -> None:
        """The file is read up to here."""
        self.current, self.offset = mark, offset

    def finish(self, mark: str) -> None:
        """The file is read."""
        self.done.add(mark)
        self.current, self.offset = "", 0


def files_below(path: Path, endings: Sequence[str]) -> list[Path]:
    """The file itself, or the files of a folder and of those in it that end so, in order of their names.

    Raises:
        DataError: there is no such file or folder. Hidden files and links to files are not read.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError("The option path of a feed names no file or folder that is there.")
    return sorted(
        found
        for found in path.rglob("*")
        if found.name.lower().endswith(tuple(endings))
        and not any(part.startswith(".") for part in found.relative_to(path).parts)
        and found.is_file()
        and not found.is_symlink()
    )


def mark_of(path: Path, root: Path) -> str:
    """The digest by which a file is known."""
    state = path.stat()
    place = path.relative_to(root).as_posix() if path != root else path.name
    text = f"{place}\n{state.st_size}\n{state.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def is_worth_another_try(fault: Exception) -> bool:
    """Whether the machine would not give a file, which may change; a damaged archive stays damaged.

    >>> is_worth_another_try(PermissionError(13, "Permission denied"))
    True
    """
    return isinstance(fault, OSError) and fault.errno is not None


def lines_from(path: Path, offset: int) -> Iterator[tuple[int, bytes | None]]:
    """(where it ends, line) of every line from a byte on; None for one that is too long to be read.

    Raises:
        OSError: the file cannot be read further (a damaged archive among them).
    """
    with _opened(path) as handle:
        handle.seek(offset)
        while line := handle.readline(LONGEST_LINE):
            offset += len(line)
            if len(line) < LONGEST_LINE or line.endswith(b"\n"):
                yield offset, line
                continue
            while rest := handle.readline(LONGEST_LINE):
                offset += len(rest)
                if rest.endswith(b"\n"):
                    break
            yield offset, None


def whole(path: Path) -> bytes | None:
    """Everything in a file; None if that is more than `LARGEST_FILE`.

    Raises:
        OSError: it cannot be read.
    """
    with _opened(path) as handle:
        text = handle.read(LARGEST_FILE + 1)
    return text if len(text) <= LARGEST_FILE else None


def blocks_of(path: Path, size: int = 1 << 18) -> Iterator[bytes]:
    """The bytes of a file, of what is in it if it is a gzip, block by block.

    Raises:
        OSError: the file cannot be read further.
    """
    with _opened(path) as handle:
        while block := handle.read(size):
            yield block


def _opened(path: Path) -> io.BufferedIOBase:
    return _Archive(path) if path.name.lower().endswith(".gz") else path.open("rb")


class _Archive(gzip.GzipFile):
    """A gzip whose every fault is an OSError."""

    def __init__(self, path: Path) -> None:
        super().__init__(filename=str(path), mode="rb")

    def read(self, size: int | None = -1) -> bytes:
        try:
            return super().read(size)
        except (EOFError, zlib.error):
            raise OSError("a damaged archive") from None

    def readline(self, size: int | None = -1) -> bytes:
        try:
            return super().readline(size)
        except (EOFError, zlib.error):
            raise OSError("a damaged archive") from None
