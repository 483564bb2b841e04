"""DuckDB as the store uses it: encrypted with AES-256-GCM, offline, leaving nothing outside its folder.

DuckDB writes encrypted files with the OpenSSL of its extension httpfs (its own cipher code only reads).
The extension comes as a Python package and is loaded by its path, its signature checked by DuckDB; nothing
is fetched, and nothing is put into the user's home. Keys are bound to ATTACH as parameters, so that they
stand in no statement, and no text of DuckDB's errors, which may quote values, is passed on.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from twin.store.errors import StoreError, WrongKeyError

if TYPE_CHECKING:
    import duckdb

KEY_BYTES: Final = 32
_NEEDS = "The store needs DuckDB with its encryption. Install it: pip install 'twinward[site]'"


def connect(temporary: Path, *, memory: str, threads: int = 1) -> duckdb.DuckDBPyConnection:
    """A DuckDB without any database, which spills into `temporary`, encrypted.

    Args:
        memory: at most, as DuckDB writes it, for instance 1GB.
        threads: one is fastest for small commits, and leaves the other cores to training.

    Raises:
        StoreError: DuckDB or its extension is not installed, or they do not fit each other.
    """
    try:
        import duckdb
        import duckdb_extension_httpfs
    except ImportError:
        raise StoreError(_NEEDS) from None
    folder = Path(str(duckdb_extension_httpfs.__file__)).parent / "extensions" / f"v{duckdb.__version__}"
    config: dict[str, str | bool | int | float | list[str]] = {
        "temp_directory": str(temporary),
        "temp_file_encryption": "true",
        "memory_limit": memory,
        "threads": threads,
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_community_extensions": "false",
        "allow_persistent_secrets": "false",
        "python_enable_replacements": "false",
    }
    connection = duckdb.connect(":memory:", config=config)
    try:
        connection.execute(f"LOAD '{_quoted(folder / 'httpfs.duckdb_extension')}'")
    except duckdb.Error:
        connection.close()
        raise StoreError(
            f"Expected the package duckdb-extension-httpfs of version {duckdb.__version__}, as duckdb is;"
            f" it does not load. {_NEEDS}"
        ) from None
    return connection


def attach(connection: duckdb.DuckDBPyConnection, path: Path, key: bytes, name: str) -> None:
    """Opens the encrypted database at `path`, or makes it, under `name`.

    Raises:
        StoreError: the key is wrong; the file is damaged, not encrypted with AES-256-GCM, or in use.
    """
    if len(key) != KEY_BYTES:
        raise StoreError(f"Expected a data key of {KEY_BYTES} bytes; got {len(key)}.")
    import duckdb

    secret = base64.b64encode(key).decode()
    command = f"ATTACH '{_quoted(path)}' AS {name} (ENCRYPTION_KEY ?, ENCRYPTION_CIPHER 'GCM')"
    try:
        connection.execute(command, [secret])
    except duckdb.Error as error:
        raise _opening_error(path, str(error)) from None
    found = connection.execute(
        "SELECT encrypted AND cipher = 'GCM' FROM duckdb_databases() WHERE database_name = ?", [name]
    ).fetchone()
    if not found or not found[0]:
        connection.execute(f"DETACH {name}")
        raise StoreError(f"Expected {path} to be encrypted with AES-256-GCM; it is not, and is not used.")


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Turns an error of DuckDB into a StoreError without its text.

    Args:
        what: was being done, as in "reading observations".
    """
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        text = str(error)
        if "AES tag" in text or "Corrupt" in text or "checksum" in text or "Could not read" in text:
            raise StoreError(
                f"Expected the store to be whole when {what}; a part of it does not hold its seal: it was"
                " damaged or altered. Restore a backup (docs/store.md); nothing of it was used."
            ) from None
        if "No space left" in text or "Could not write" in text or "No such file" in text:
            raise StoreError(f"The disk did not take what the store wrote when {what}: is it full?") from None
        if isinstance(error, duckdb.OutOfMemoryException):
            raise StoreError(
                f"The store's memory did not suffice when {what}; raise its limit (docs/store.md)."
            ) from None
        raise StoreError(f"The database failed when {what} ({type(error).__name__}).") from None


def _opening_error(path: Path, text: str) -> StoreError:
    if "Wrong encryption key" in text:
        return WrongKeyError(
            f"Expected the data key that {path} was written under; this is another one, or the file's first"
            " bytes are damaged. Check the vault, or restore a backup."
        )
    if "lock" in text.lower() or "already attached" in text:
        return StoreError(f"Expected {path} to be used by nobody else; another process holds it.")
    if "not encrypted" in text or "is not a valid DuckDB" in text or "not a valid" in text:
        return StoreError(f"Expected an encrypted store at {path}; the file there is none.")
    return StoreError(
        f"Expected a whole store at {path}; it is damaged (cut short or altered) and is not used."
        " Restore a backup: docs/store.md."
    )


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
