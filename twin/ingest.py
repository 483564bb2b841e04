"""A batch of a feed into what the store keeps: codes, units, UTC, pseudonyms, limits, verdicts, counts.

The rules are those of `twin.cleaning`, in its order, with these differences, since a stream has no end:
- an unknown code or unit, or a time without a zone where none is declared, puts the row in quarantine;
- dropped for its date is what is dated before 1900 or after 2300, and more than a day after the clock, if
  there is one: a stream has no middle, and one row of the year 2204 would be a patient's latest for ever;
- rows of one moment are told apart by their source (feed and device), and the store merges sources;
- a row that does not fit its own stream (`twin.outliers`) is kept and marked. What comes after it may change
  its mark: then it is in `Ingested.remarked`, and counted as one mark fewer, one more;
- nothing is filled (`twin.gaps` does that for who asks).

kept + dropped + quarantined = the rows of the batch and those that its connector rejected. It does not
matter where a stream is cut into batches, nor in which order batches come, for what is stored, with two
exceptions: marks of rows that come after more than eight later rows of their stream; and naive times in the
hour that comes twice in autumn, which are told apart by the rows around them in their batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Final

import numpy as np
import pandas as pd

from twin.cleaning import Fault, readable
from twin.codes import Codes
from twin.connectors.feed import Batch
from twin.drift import Clocks
from twin.ingested import FACTS, OBSERVATIONS, QUARANTINE, REMARKED, WITHDRAWN, Ingested
from twin.outliers import MARKS
from twin.recent import NOTHING, Recent, Stream, kept_rows
from twin.signals import SIGNALS
from twin.streams import Merged, join
from twin.tally import NOBODY, Tally
from twin.times import check_zone, to_utc
from twin.units import scale

log = logging.getLogger(f"twinward.{__name__}")

_SIGNALS: Final = tuple(SIGNALS)
_NUMBER: Final = {name: number for number, name in enumerate(_SIGNALS)}
_FIRST_US: Final = int(np.datetime64("1900-01-01", "us").astype(np.int64))
_LAST_US: Final = int(np.datetime64("2300-01-01", "us").astype(np.int64))
_DAY_US: Final = 86_400_000_000
_NONE_WITHDRAWN: Final = pd.DataFrame({name: pd.Series(dtype="str") for name in WITHDRAWN})


class Ingest:
    """Turns batches into what the store keeps; remembers the last rows of every stream.

    Args of the constructor:
        pseudonym: of a source's identifier of a patient; the same for the same.
        timezone: IANA name of the zone of times that carry none; None: such rows go into quarantine.
        codes: the catalogue of codes with the site's own.
        clock: now, UTC; None where records may lie in the future (dates were shifted).

    Raises:
        DataError: no such zone.
    """

    def __init__(
        self,
        *,
        pseudonym: Callable[[str], str],
        timezone: str | None = None,
        codes: Codes | None = None,
        clock: Callable[[], pd.Timestamp] | None = None,
    ) -> None:
        check_zone(timezone)
        self._pseudonym = pseudonym
        self._timezone = timezone
        self._codes = codes or Codes()
        self._clock = clock
        self._recent: dict[Stream, Recent] = {}
        self._clocks = Clocks()

    def take(self, batch: Batch, feed: str, received: pd.Timestamp | None = None) -> Ingested:
        """What the store keeps of a batch; counts say what became of each row.

        Args:
            feed: its name.
            received: when a live feed's batch arrived (UTC); None: no device clock is judged.
        """
        frame = batch.observations.rename(columns={"patient": "patient_id"})
        return self._take(frame, batch, feed, self._pseudonym, received)

    def again(self, rows: pd.DataFrame, feed: str) -> Ingested:
        """What the store keeps of rows that come back from its quarantine (columns `QUARANTINE`)."""
        return self._take(rows, Batch(), feed, str, None)

    def warm(self, observations: pd.DataFrame) -> None:
        """Learns the last rows of the streams from what the store has, after a restart.

        Args:
            observations: columns `OBSERVATIONS`, sorted by patient, signal and time; as much of the past as
                at hand, the last hundred rows of a stream suffice.
        """
        key = ["patient_id", "signal", "source"]
        for stream, rows in observations.groupby(key, sort=False):
            patient, signal, source = (str(part) for part in stream)
            last = rows.sort_values("time", kind="stable").tail(kept_rows(signal))
            time_us = _microseconds(last["time"])
            value = last["value"].to_numpy(dtype=np.float64)
            new = np.append(True, value[1:] != value[:-1])
            self._recent[patient, signal, source] = Recent(
                time_us=time_us,
                value=value,
                mark=np.array([MARKS.index(m) if m in MARKS else 0 for m in last["quality"]], dtype=np.int8),
                since_us=time_us[np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))],
                trimmed=True,
            )

    def forget(self, patient_id: str) -> None:
        """Forgets a patient (erasure)."""
        self._recent = {key: rows for key, rows in self._recent.items() if key[0] != patient_id}

    def _take(
        self,
        rows: pd.DataFrame,
        batch: Batch,
        feed: str,
        pseudonym: Callable[[str], str],
        received: pd.Timestamp | None,
    ) -> Ingested:
        tally = Tally(rows=len(rows))
        patient_N, patients = _numbers(rows["patient_id"], pseudonym)
        frame = self._known(rows, patient_N, tally)
        faults: list[Fault] = []
        frame = readable(frame, _SIGNALS, tally, faults, self._timezone, _bounded_scale())
        for fault in faults:
            log.info("feed %s: %s; %s", feed, fault.what, fault.fix)
        now_us = _LAST_US if self._clock is None else int(self._clock().timestamp() * 1e6)
        frame = _dated(frame, tally, now_us + _DAY_US)
        device_N, devices = pd.factorize(rows["device"].astype("str").fillna("").str.strip())
        sources = [f"{feed}/{device}" if device else feed for device in devices]
        frame["source"] = device_N[frame["row"].to_numpy()]
        frame["time_us"] = _microseconds(frame["time"])
        frame["drift"] = self._by_clock(frame, patients, sources, received, tally)
        withdrawn = self._withdrawn(batch.withdrawn, feed)
        observations, remarked = self._join(frame, patients, sources, tally)
        counts = tally.counts(patients, _SIGNALS)
        return Ingested(
            feed=feed,
            position=batch.position,
            observations=observations,
            facts=_facts(batch.facts, pseudonym),
            counts=_with_rejected(counts, batch),
            quarantine=_quarantine(rows, tally, patient_N, patients),
            withdrawn=withdrawn,
            remarked=remarked,
        )

    def _known(self, rows: pd.DataFrame, patient_N: np.ndarray, tally: Tally) -> pd.DataFrame:
        """Rows with a patient and a code that means a signal: patient, signal, time, value, unit, row."""
        system_N, systems = pd.factorize(rows["system"].astype("str").fillna(""))
        code_N, codes = pd.factorize(rows["code"].astype("str").fillna("").str.strip())
        pair_N, pairs = pd.factorize(system_N * max(1, len(codes)) + code_N)
        split = [divmod(int(pair), len(codes)) for pair in pairs]
        meant = [self._meaning(str(systems[system]), str(codes[code])) for system, code in split]
        signal_N = np.array([*meant, NOBODY], dtype=np.int64)[pair_N]
        everything = pd.DataFrame({"patient": patient_N, "signal": signal_N, "row": np.arange(len(rows))})
        there_N = patient_N >= 0
        empty_N = (codes == "")[code_N] if len(codes) else np.zeros(0, dtype=bool)
        tally.drop("no patient_id", everything, ~there_N)
        tally.drop("no code", everything, there_N & empty_N)
        tally.put_aside("unknown code", everything, there_N & ~empty_N & (signal_N < 0))
        known_N = there_N & ~empty_N & (signal_N >= 0)
        columns = {name: rows[name].array[known_N] for name in ("time", "value", "unit")}
        return everything[known_N].reset_index(drop=True).assign(**columns)

    def _meaning(self, system: str, code: str) -> int:
        return _NUMBER.get(self._codes.signal_of(system, code) or "", NOBODY)

    def _by_clock(
        self,
        frame: pd.DataFrame,
        patients: list[str],
        sources: list[str],
        received: pd.Timestamp | None,
        tally: Tally,
    ) -> np.ndarray:
        """Moves the times of devices whose clock is off; True where that is suspected."""
        suspect_N = np.zeros(len(frame), dtype=bool)
        if received is None or frame.empty:
            return suspect_N
        received_us = int(received.tz_convert("UTC").timestamp() * 1e6)
        moved_N = np.zeros(len(frame), dtype=bool)
        time_us_N = frame["time_us"].to_numpy().copy()
        device_N = frame["patient"].to_numpy() * len(sources) + frame["source"].to_numpy()
        for device in np.unique(device_N):
            here = np.flatnonzero(device_N == device)
            patient, source = divmod(int(device), len(sources))
            name = f"{patients[patient]} {sources[source]}"
            move_us, odd = self._clocks.hear(name, time_us_N[here], received_us)
            time_us_N[here] += move_us
            moved_N[here] = move_us != 0
            suspect_N[here] = odd
        frame["time_us"] = time_us_N
        tally.fix("device clock off, time moved", frame, moved_N)
        return suspect_N

    def _join(
        self, frame: pd.DataFrame, patients: list[str], sources: list[str], tally: Tally
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """(observations to store, rows whose mark has changed)."""
        signal_N, source_N = frame["signal"].to_numpy(), frame["source"].to_numpy()
        number_N = (frame["patient"].to_numpy() * len(_SIGNALS) + signal_N) * max(1, len(sources)) + source_N
        _, first_S, stream_N = np.unique(number_N, return_index=True, return_inverse=True)
        at_S = frame[["patient", "signal", "source"]].iloc[first_S]
        keys: list[Stream] = [
            (patients[p], _SIGNALS[s], sources[o]) for p, s, o in at_S.itertuples(index=False)
        ]
        merged, after = join(
            [self._recent.get(key, NOTHING) for key in keys],
            at_S["signal"].to_numpy(),
            _SIGNALS,
            stream_N,
            frame["time_us"].to_numpy(),
            frame["value"].to_numpy(),
            frame["drift"].to_numpy(),
        )
        self._recent.update(zip(keys, after, strict=True))
        return self._told(merged, at_S, keys, frame, tally)

    def _told(
        self, merged: Merged, at_S: pd.DataFrame, keys: list[Stream], frame: pd.DataFrame, tally: Tally
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        tally.drop("duplicate", frame, merged.again_N)
        tally.drop("duplicate time, other value", frame, merged.other_N)
        of_M = at_S[["patient", "signal"]].iloc[merged.stream_M]
        new_M, old_M = merged.new_M, merged.was_M & ~merged.new_M
        tally.note("kept", "", of_M, new_M)
        changed_M = merged.mark_M != merged.mark_before_M
        for number, mark in enumerate(MARKS):
            if mark:
                now_M = (merged.mark_M == number) & (new_M | old_M) & changed_M
                tally.note("marked", mark, of_M, now_M)
                tally.note("marked", mark, of_M, (merged.mark_before_M == number) & changed_M, each=-1)
        names = pd.DataFrame(keys, columns=["patient_id", "signal", "source"], dtype="str")
        table = names.iloc[merged.stream_M].reset_index(drop=True)
        table["time"] = pd.to_datetime(merged.time_us_M, unit="us", utc=True).as_unit("us")
        table["value"] = merged.value_M
        table["quality"] = pd.Series(pd.Index(MARKS, dtype="object").take(merged.mark_M), dtype="str")
        stored = table.loc[new_M, list(OBSERVATIONS)].reset_index(drop=True)
        remarked = table.loc[old_M & changed_M, list(REMARKED)].reset_index(drop=True)
        return stored, remarked

    def _withdrawn(self, rows: pd.DataFrame, feed: str) -> pd.DataFrame:
        """The rows that a source took back, as the store knows them; they leave the memory as well."""
        if rows.empty:
            return _NONE_WITHDRAWN
        patient_N, patients = _numbers(rows["patient"], self._pseudonym)
        pairs = zip(rows["system"].astype("str"), rows["code"].astype("str"), strict=True)
        signal_N = np.array([self._meaning(system, code) for system, code in pairs], dtype=np.int64)
        utc = to_utc(rows["time"], patient_N * len(_SIGNALS) + signal_N, self._timezone).utc
        known_N = (patient_N >= 0) & (signal_N >= 0) & utc.notna().to_numpy()
        found = pd.DataFrame(
            {
                "patient_id": pd.Series([patients[p] for p in patient_N[known_N]], dtype="str"),
                "signal": pd.Series([_SIGNALS[s] for s in signal_N[known_N]], dtype="str"),
                "time": utc[known_N].array,
            },
            columns=list(WITHDRAWN),
        )
        self._take_back(found, feed)
        return found

    def _take_back(self, withdrawn: pd.DataFrame, feed: str) -> None:
        if withdrawn.empty:
            return
        times = withdrawn.assign(time=_microseconds(withdrawn["time"])).groupby(["patient_id", "signal"])[
            "time"
        ]
        gone = {key: set(map(int, rows)) for key, rows in times}
        for key, recent in self._recent.items():
            here = gone.get((key[0], key[1]))
            if here and (key[2] == feed or key[2].startswith(f"{feed}/")):
                self._recent[key] = recent.without(here)


def _numbers(column: pd.Series, pseudonym: Callable[[str], str]) -> tuple[np.ndarray, list[str]]:
    """(number of each row's patient, -1 where there is none; pseudonyms by number)."""
    number_N, names = pd.factorize(column.astype("str").fillna("").str.strip())
    known = [pseudonym(str(name)) if name else "" for name in names]
    patients = [name for name in dict.fromkeys(known) if name]
    place = {name: number for number, name in enumerate(patients)}
    recode = [place.get(name, NOBODY) for name in known]
    return np.array([*recode, NOBODY], dtype=np.int64)[number_N], patients


def _bounded_scale(most: int = 1000) -> Callable[[str, str], tuple[float, float] | None]:
    """`twin.units.scale`, asked at most so often in one batch: a stranger's text costs a parse each."""
    left = [most]

    def bounded(signal: str, unit: str) -> tuple[float, float] | None:
        left[0] -= 1
        return scale(signal, unit) if left[0] >= 0 else None

    return bounded


def _dated(frame: pd.DataFrame, tally: Tally, latest_us: int) -> pd.DataFrame:
    time_us_N = _microseconds(frame["time"])
    near_N = (time_us_N >= _FIRST_US) & (time_us_N <= _LAST_US)
    come_N = time_us_N <= latest_us
    tally.drop("date before 1900 or after 2300", frame, ~near_N)
    tally.drop("date in the future", frame, near_N & ~come_N)
    return frame.loc[near_N & come_N].reset_index(drop=True)


def _microseconds(times: pd.Series) -> np.ndarray:
    found: np.ndarray = times.array.as_unit("us").asi8
    return found


def _facts(facts: pd.DataFrame, pseudonym: Callable[[str], str]) -> pd.DataFrame:
    if facts.empty:
        return facts.rename(columns={"patient": "patient_id"})[list(FACTS)]
    named = facts[facts["patient"].astype("str").str.strip().ne("") & facts["patient"].notna()]
    patient = [pseudonym(str(name).strip()) for name in named["patient"]]
    found = pd.DataFrame({"patient_id": patient, "name": named["name"].array, "value": named["value"].array})
    return found.astype("str")[list(FACTS)]


def _with_rejected(counts: pd.DataFrame, batch: Batch) -> pd.DataFrame:
    rejected = [("", "", "dropped", reason, rows) for reason, rows in batch.rejected.items() if rows]
    rejected += [("", "", "fixed", reason, rows) for reason, rows in batch.fixed.items() if rows]
    if not rejected:
        return counts
    return pd.concat([counts, pd.DataFrame(rejected, columns=list(counts.columns))], ignore_index=True)


def _quarantine(
    rows: pd.DataFrame, tally: Tally, patient_N: np.ndarray, patients: Collection[str]
) -> pd.DataFrame:
    """The rows that were put aside, as their source had them, under the pseudonym."""
    if not tally.aside:
        return pd.DataFrame({name: pd.Series(dtype="str") for name in QUARANTINE})
    row = np.concatenate([rows_N for _, rows_N in tally.aside])
    reason = np.repeat([why.split(": ")[0] for why, _ in tally.aside], [len(r) for _, r in tally.aside])
    order = np.argsort(row, kind="stable")
    row, reason = row[order], reason[order]
    found = rows.iloc[row][["time", "system", "code", "value", "unit", "device"]].reset_index(drop=True)
    found = found.astype("str").fillna("")
    found.insert(0, "patient_id", pd.Index([*patients, ""], dtype="object").take(patient_N[row]))
    found["reason"] = reason
    return found.astype("str")[list(QUARANTINE)]
