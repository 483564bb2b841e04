"""The encrypted store of a hospital's patients: one file, one process, everything in transactions.

Files beside `<path>`, which is encrypted with AES-256-GCM as its write-ahead log is: `<path>.lock` (held by
who uses the store), `<path>.commits` (how many commits there were: `twin.store.anchor`), `<path>.erased`
(digests of erased pseudonyms: `twin.store.erasure`), `<path>.tmp/` (what a large sort spills, encrypted
under a key that dies with the process), `<path>.new` (a file that is being written).

A store may be used from many threads: one writes at a time, readers see the last commit. It does not
survive a fork; start processes with spawn.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pandas as pd

from twin.ingested import Ingested
from twin.site import Site
from twin.store import erasure, making, quarantine, reading, schema, writing
from twin.store.errors import StoreError
from twin.store.file import StoreFile
from twin.store.making import beside
from twin.store.reading import Purpose
from twin.store.rows import append, moment
from twin.store.writing import Committed

MEMORY: Final = "1GB"
_FOLD_ROWS: Final = 200_000


class Store:
    """A store that is open; close it, or use it as a context."""

    def __init__(self, path: Path, key: bytes, *, memory: str = MEMORY, accept_loss: bool = False) -> None:
        """Opens the store: see `open`."""
        self._erased_file, self._withdrawn_file = beside(path, "erased"), beside(path, "withdrawn")
        self._loose_counts = 0
        self._erased: frozenset[str] = frozenset()
        self._file = StoreFile(path, key, memory=memory, accept_loss=accept_loss)
        try:
            self._finish_erasures()
            self._withdraw_again()
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def create(cls, path: Path, key: bytes, *, memory: str = MEMORY) -> Self:
        """A new, empty store, open.

        Args:
            path: of the file; nothing may be there.
            key: 32 random bytes (trust.vault); without it the store is lost.
            memory: that the database may use, as DuckDB writes it.

        Raises:
            StoreError: there is a file already, or DuckDB is not installed.
        """
        making.make(path, key, memory=memory)
        return cls(path, key, memory=memory, accept_loss=True)

    @classmethod
    def open(cls, path: Path, key: bytes, *, memory: str = MEMORY, accept_loss: bool = False) -> Self:
        """The store at `path`, open.

        Args:
            accept_loss: take a file that holds fewer commits than were acknowledged (an older copy that was
                put in its place); feeds then go on from the positions that it holds.

        Raises:
            StoreError: no store there, a wrong key, a damaged file, one in use, one of a later version, or
                one that lost commits.
        """
        return cls(path, key, memory=memory, accept_loss=accept_loss)

    @classmethod
    def restore(cls, backup: Path, path: Path, key: bytes, *, memory: str = MEMORY) -> Self:
        """The store as it was backed up, open; patients who were erased or withdrew since stay so.

        Args:
            path: where it goes; nothing may be there. What `<path>.erased` and `<path>.withdrawn` list is
                applied.
            key: that the backup was made under.

        Raises:
            StoreError: as `create` and `open`.
        """
        making.put_back(backup, path, key, memory=memory)
        return cls(path, key, memory=memory, accept_loss=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def works(self) -> bool:
        """Whether it can be used; not after a full disk broke a commit, until it is opened again."""
        return self._file.works

    def close(self) -> None:
        """Gives the file up, whole; again is fine."""
        self._file.close()

    # Feeds

    def commit(self, ingested: Ingested, *, requeued: pd.DataFrame | None = None) -> Committed:
        """Stores a batch and its feed's position, together, durable on return.

        Args:
            requeued: what `requeue` gave and the batch was made of: those rows leave the quarantine in the
                same transaction, and the feed's position stays.

        Raises:
            StoreError: the batch is not of its form, or the disk or database failed; nothing is stored.
        """
        writing.check(ingested)
        with self._file.writing:
            ingested, names = writing.without(ingested, self._erased_among(ingested)), self._file.names
            try:
                with self._file.transaction("storing a batch") as connection:
                    committed, new = writing.Writer(connection, names).write(ingested, requeued)
            except BaseException:
                names.forget()
                raise
            names.settle(new["stream"].to_numpy(), new["time"].to_numpy())
            self._loose_counts += len(ingested.counts)
            if self._loose_counts > _FOLD_ROWS:
                self._fold_counts()
        return committed

    def position(self, feed: str) -> str:
        """Where the feed goes on; "" if nothing of it was committed."""
        with self._file.snapshot("reading a position") as connection:
            row = connection.execute("SELECT position FROM store.positions WHERE feed = ?", [feed]).fetchone()
        return str(row[0]) if row else ""

    def requeue(self, codes: Iterable[tuple[str, str]], *, rows: int = 10_000) -> Iterator[pd.DataFrame]:
        """Quarantined rows of these (system, code), of one feed at a time, to be ingested and committed.

        Yields:
            Columns row, feed and `twin.ingested.QUARANTINE`. Commit what becomes of each with
            `commit(…, requeued=frame)`; until then it stays in quarantine.
        """
        wanted, after = list(codes), -1
        while True:
            with self._file.snapshot("reading the quarantine") as connection:
                frame = quarantine.following(connection, wanted, after=after, rows=rows)
            if frame.empty:
                return
            after = int(frame["row"].iloc[-1])
            for _, part in frame.groupby("feed", sort=True):
                yield part.reset_index(drop=True)

    # Reading

    def site(
        self,
        name: str,
        *,
        purpose: Purpose,
        patients: Collection[str] | None = None,
        since: pd.Timestamp | None = None,
        marked: bool = False,
    ) -> Site:
        """The patients whom the purpose allows, with their observations.

        Args:
            purpose: care (everybody) or research (who consents; without a word on record, as
                `presume_consent` says, by default not).
            patients: only these pseudonyms.
            since: only observations from then on; with a zone.
            marked: also suspect observations (whose quality is not "").
        """
        with self._file.snapshot("reading observations") as connection:
            return reading.site(
                connection, name, purpose=purpose, patients=patients, since=since, marked=marked
            )

    def allowed(self, purpose: Purpose) -> list[str]:
        """Pseudonyms of the patients whom a purpose allows, sorted."""
        with self._file.snapshot("reading consents") as connection:
            return reading.allowed(connection, purpose)

    def recent(self, span: pd.Timedelta, patients: Collection[str] | None = None) -> pd.DataFrame:
        """The last `span` of every stream as feeds delivered it, columns as `twin.ingested.OBSERVATIONS`.

        Suspect rows and rows of several sources are in it: from it a process that was restarted knows again
        what it knew. Sorted by patient, signal and time.
        """
        with self._file.snapshot("reading recent observations") as connection:
            return reading.recent(connection, span, patients)

    def patients(self) -> pd.DataFrame:
        """Index patient_id (sorted), one column per fact, of everybody."""
        with self._file.snapshot("reading patients") as connection:
            return reading.patients(connection)

    def counts(self) -> pd.DataFrame:
        """Columns `twin.ingested.COUNTS` and feed: what became of every row that feeds delivered."""
        with self._file.snapshot("reading counts") as connection:
            return reading.counts(connection)

    def quarantine(self) -> pd.DataFrame:
        """Columns system, code, unit, reason, rows; the most frequent first."""
        with self._file.snapshot("reading the quarantine") as connection:
            return quarantine.waiting(connection)

    # Consent and erasure

    def consent(self, patient_id: str, research: bool, at: pd.Timestamp) -> None:
        """Records a patient's word on research; what is recorded last holds, from now on.

        Who withdrew stands by a digest in a file beside the store as well, so that a backup from before the
        withdrawal does not bring the consent back.

        Args:
            at: since when, with a zone.

        Raises:
            StoreError: the patient is not known, or `at` has no zone.
        """
        when, digest = moment(at), erasure.digest_of(patient_id)
        with self._file.writing:
            patient = self._known(patient_id)
            # Before the commit: a crash between the two leaves the word that keeps the patient out.
            if research:
                erasure.replace(self._withdrawn_file, erasure.read(self._withdrawn_file) - {digest})
            else:
                erasure.remember(self._withdrawn_file, [digest])
            with self._file.transaction("recording a consent") as connection:
                connection.execute("DELETE FROM store.consents WHERE patient = ?", [patient])
                connection.execute("INSERT INTO store.consents VALUES (?, ?, ?)", [patient, research, when])

    def consents(self) -> pd.DataFrame:
        """Columns patient_id, research, since: what is on record."""
        with self._file.snapshot("reading consents") as connection:
            return reading.consents(connection)

    def presume_consent(self, presumed: bool) -> None:
        """Whether patients without a word on record are in research: for sites whose law says so."""
        with self._file.transaction("recording a rule of consent") as connection:
            schema.put_setting(connection, "presume_consent", "yes" if presumed else "no")

    def erase(self, patient_id: str) -> dict[str, int]:
        """Removes everything of a patient, also from the file's free pages; rows that went, by table.

        Models of the whole site go too, but not what is kept under a name that begins with `state/`: its
        keeper must have forgotten the patient before. Backups: `restore` applies the list of erased
        patients; to make older backups unreadable, rotate the key (docs/store.md).

        Raises:
            StoreError: the patient is not known.
        """
        with self._file.writing:
            self._known(patient_id)
            digest = erasure.digest_of(patient_id)
            erasure.remember(self._erased_file, [digest])
            with self._file.transaction("erasing a patient") as connection:
                rows = erasure.apply(connection, [digest])
            self._erased = self._erased | {digest}
            self._file.rewrite()
            return rows

    def readmit(self, patient_id: str) -> None:
        """Takes rows of a patient again who was erased before; what was erased does not come back."""
        with self._file.writing:
            digest = erasure.digest_of(patient_id)
            with self._file.transaction("readmitting a patient") as connection:
                connection.execute("DELETE FROM store.erased WHERE digest = ?", [digest])
            self._erased = self._erased - {digest}
            erasure.replace(self._erased_file, self._erased)

    # Models and cached results

    def keep_model(self, patient_id: str, name: str, data: bytes) -> None:
        """Keeps bytes of a patient, or of the whole site (""), in place of those of the same name.

        Raises:
            StoreError: the patient is not known, as one who was erased is not.
        """
        with self._file.transaction("keeping a model") as connection:
            patient = self._known(patient_id) if patient_id else schema.NOBODY
            connection.execute("DELETE FROM store.models WHERE patient = ? AND name = ?", [patient, name])
            connection.execute("INSERT INTO store.models VALUES (?, ?, ?)", [patient, name, data])

    def model(self, patient_id: str, name: str) -> bytes | None:
        """The bytes that `keep_model` kept; None if there are none."""
        with self._file.snapshot("reading a model") as connection:
            row = connection.execute(
                "SELECT data FROM store.models LEFT JOIN store.patients USING (patient)"
                " WHERE coalesce(patient_id, '') = ? AND name = ?",
                [patient_id, name],
            ).fetchone()
        return bytes(row[0]) if row else None

    def models(self) -> pd.DataFrame:
        """Columns patient_id ("" for the site's), name, bytes."""
        with self._file.snapshot("reading the list of models") as connection:
            return connection.execute(
                "SELECT coalesce(patient_id, '') AS patient_id, name, octet_length(data) AS bytes"
                " FROM store.models LEFT JOIN store.patients USING (patient) ORDER BY ALL"
            ).df()

    # The file

    def backup(self, path: Path) -> None:
        """Writes a whole, sorted copy under the same key; feeds wait, readers do not.

        Raises:
            StoreError: there is a file already.
        """
        self._file.copy(path)

    def compact(self) -> None:
        """Writes the file anew, sorted, without free pages: reading gets faster after much came unsorted."""
        self._file.rewrite()

    def rotate(self, new_key: bytes) -> None:
        """Writes the file anew under another key; killed at any instant, it is under the one or the other."""
        self._file.rewrite(new_key)

    # Within

    def check_known(self, patient_id: str) -> None:
        """Returns if the store has the patient.

        Raises:
            StoreError: it has not.
        """
        self._known(patient_id)

    def _known(self, patient_id: str) -> int:
        patient = self._file.names.patients.find(patient_id)
        if patient is None:
            raise StoreError("Expected the pseudonym of a patient in the store; nobody has this one.")
        return patient

    def _erased_among(self, ingested: Ingested) -> set[str]:
        if not self._erased:
            return set()
        frames = (ingested.observations, ingested.facts, ingested.counts, ingested.quarantine)
        names = {str(name) for frame in frames for name in frame["patient_id"].unique()}
        return {name for name in names if erasure.digest_of(name) in self._erased}

    def _finish_erasures(self) -> None:
        """Erases whom the list beside the file names and the file still holds; completes its rewriting."""
        with self._file.snapshot("reading erasures") as connection:
            rows = connection.execute("SELECT digest FROM store.erased").fetchall()
            due = schema.setting(connection, "rewrite") == "yes"
        listed, known = erasure.read(self._erased_file), {str(row[0]) for row in rows}
        self._erased = frozenset(known | listed)
        if known - listed:
            erasure.remember(self._erased_file, known - listed)
        if listed - known:
            with self._file.transaction("completing erasures") as connection:
                erasure.apply(connection, listed - known)
            due = True
        if due:
            self._file.rewrite()

    def _withdraw_again(self) -> None:
        """Takes the word of those who withdrew since this file was made, if it is an older copy."""
        withdrawn = erasure.read(self._withdrawn_file)
        if not withdrawn:
            return
        with self._file.snapshot("reading consents") as connection:
            people = connection.execute(
                "SELECT p.patient, p.patient_id FROM store.patients p"
                " LEFT JOIN store.consents c USING (patient) WHERE c.research IS DISTINCT FROM FALSE"
            ).fetchall()
        late = [patient for patient, name in people if erasure.digest_of(name) in withdrawn]
        if late:
            now = moment(pd.Timestamp.now("UTC"))
            with self._file.transaction("repeating withdrawals of consent") as connection:
                for patient in late:
                    connection.execute("DELETE FROM store.consents WHERE patient = ?", [patient])
                    connection.execute("INSERT INTO store.consents VALUES (?, FALSE, ?)", [patient, now])

    def _fold_counts(self) -> None:
        with self._file.transaction("summing counts") as connection:
            folded = connection.execute(
                "SELECT feed, patient, signal, fate, reason, sum(rows)::BIGINT AS rows FROM store.counts"
                " GROUP BY ALL"
            ).df()
            connection.execute("DELETE FROM store.counts")
            append(connection, "counts", folded)
        self._loose_counts = 0
