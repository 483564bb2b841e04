"""Erasing patients, and remembering that they were erased without remembering who they were.

The list of erased patients holds SHA-256 digests of pseudonyms, in the store and in a small file beside it.
The file is written first, so an erasure that a crash interrupts is completed when the store is opened; and
it outlives the store's file, so a backup that is put in its place loses its erased patients when it is
opened. The pseudonyms are keyed (trust), so nobody without the site's secret can tell whose digests these
are. Feeds that go on delivering rows of an erased patient are not believed: the rows are dropped.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pandas as pd

from twin.store.rows import Registered
from twin.store.schema import OF_PATIENTS, put_setting

if TYPE_CHECKING:
    import duckdb


STATE: Final = "state/"
"""Begins the names of what is kept for the whole site and is fitted to nobody."""
_MODELS_OF_ALL: Final = f" OR (patient = -1 AND NOT starts_with(name, '{STATE}'))"


def digest_of(patient_id: str) -> str:
    """How the list of erased patients names a patient."""
    return hashlib.sha256(b"twinward erased patient " + patient_id.encode()).hexdigest()


def read(path: Path) -> set[str]:
    """Digests in the file; a line that a crash cut short is none."""
    if not path.exists():
        return set()
    return {line for line in path.read_text("utf-8").splitlines() if len(line) == 64}


def remember(path: Path, digests: Collection[str]) -> None:
    """Adds digests to the file, durably."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, "".join(f"\n{digest}\n" for digest in sorted(digests)).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, digests: Collection[str]) -> None:
    """Writes the file anew."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    remember(temporary, digests)
    temporary.replace(path)


def apply(connection: duckdb.DuckDBPyConnection, digests: Collection[str]) -> dict[str, int]:
    """Deletes the patients of these digests everywhere; within a transaction.

    Models of the whole site go as well: they were fitted to the erased patients' rows, too. What begins with
    `STATE` stays: who keeps that has forgotten the patients before.

    Returns:
        Rows that were deleted, by table.
    """
    known = connection.execute("SELECT patient, patient_id FROM store.patients").df()
    known = known[known["patient_id"].map(digest_of).isin(set(digests))] if len(known) else known
    rows: dict[str, int] = {}
    with Registered(connection, known[["patient"]]) as table:
        theirs = f"IN (SELECT patient FROM {table})"
        rows["observations"] = _deleted(
            connection,
            f"observations WHERE stream IN (SELECT stream FROM store.streams WHERE patient {theirs})",
        )
        for name in OF_PATIENTS:
            also = _MODELS_OF_ALL if name == "models" and len(known) else ""
            rows[name] = _deleted(connection, f"{name} WHERE patient {theirs}{also}")
    listed = pd.DataFrame({"digest": sorted(digests)}, dtype="str")
    with Registered(connection, listed) as table:
        connection.execute(
            f"INSERT INTO store.erased SELECT digest FROM {table} ANTI JOIN store.erased USING (digest)"
        )
    put_setting(connection, "rewrite", "yes")
    return rows


def _deleted(connection: duckdb.DuckDBPyConnection, what: str) -> int:
    row = connection.execute(f"DELETE FROM store.{what}").fetchone()
    return int(row[0]) if row else 0
