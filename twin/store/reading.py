"""What a store holds, as frames: a site to train on or to care with, patients, counts, consents.

Every question is one snapshot: a commit, a withdrawal of consent or an erasure is in it whole or not at
all, and one that returned before the question is in it.

Rows of several sources at the same moment are merged by the rule of `twin.cleaning`: doses of different
sources add up, of rates that of the source which the store saw last holds, of all else the median.

Shapes: N observations, P patients, S streams.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from twin.ingested import COUNTS
from twin.signals import SIGNALS
from twin.site import Quality, Site
from twin.store.errors import StoreError
from twin.store.rows import Registered, moment, utc
from twin.store.schema import setting

if TYPE_CHECKING:
    import duckdb

Purpose = Literal["care", "research"]

MERGED: Final = "duplicate time, other source"


def site(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    *,
    purpose: Purpose,
    patients: Collection[str] | None = None,
    since: pd.Timestamp | None = None,
    marked: bool = False,
) -> Site:
    """The patients whom the purpose allows, with their observations; within a transaction."""
    allowed = _allowed(connection, purpose, patients)
    streams = _streams(connection, allowed)
    frame = _rows(connection, streams, since)
    dropped: dict[str, int] = {}
    if not marked:
        frame, dropped = _unmarked(connection, frame)
    frame, merged = _merged(frame, streams)
    if merged:
        dropped[MERGED] = merged
    observations = _canonical(connection, frame, streams)
    return Site(
        name=name,
        observations=observations,
        patients=_facts(connection, allowed),
        step_min=_steps(frame, streams),
        quality=_quality(connection, allowed, len(observations), dropped),
    )


def allowed(connection: duckdb.DuckDBPyConnection, purpose: Purpose) -> list[str]:
    """Pseudonyms of the patients whom a purpose allows, sorted."""
    return [str(name) for name in _allowed(connection, purpose, None)["patient_id"]]


def recent(
    connection: duckdb.DuckDBPyConnection, span: pd.Timedelta, patients: Collection[str] | None
) -> pd.DataFrame:
    """The last `span` of every stream as feeds delivered it: of all sources, with suspects."""
    streams = _streams(connection, _allowed(connection, "care", patients))
    with Registered(connection, streams[["stream"]]) as table:
        found = connection.execute(
            f"WITH held AS (SELECT o.* FROM store.observations o SEMI JOIN {table} USING (stream)),"
            " latest AS (SELECT stream, max(time) AS time FROM held GROUP BY stream)"
            " SELECT h.stream, h.time, h.value, h.source, h.quality FROM held h JOIN latest l USING (stream)"
            " WHERE h.time > l.time - ?",
            [int(span.total_seconds() * 1e6)],
        ).to_arrow_table()
    frame = {name: column.to_numpy() for name, column in zip(found.column_names, found.columns, strict=True)}
    place_S = np.zeros(int(streams["stream"].max()) + 1 if len(streams) else 0, dtype=np.int32)
    place_S[streams["stream"].to_numpy()] = np.arange(len(streams))
    frame["place"] = place_S[frame.pop("stream")]
    return _canonical(connection, _sorted(frame), streams)


def patients(connection: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    """Index patient_id, one column per fact: everybody of whom the store knows anything."""
    return _facts(connection, _allowed(connection, "care", None))


def counts(connection: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    """Columns `COUNTS` and feed, summed; sums of nothing are left out."""
    return connection.execute(
        "SELECT coalesce(p.patient_id, '') AS patient_id, signal, fate, reason,"
        " sum(rows)::BIGINT AS rows, feed FROM store.counts LEFT JOIN store.patients p USING (patient)"
        " GROUP BY ALL HAVING sum(rows) <> 0 ORDER BY patient_id, signal, fate, reason, feed"
    ).df()[[*COUNTS, "feed"]]


def consents(connection: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    """Columns patient_id, research (bool), since: what is on record, sorted by patient."""
    found = connection.execute(
        "SELECT p.patient_id, c.research, c.since FROM store.consents c JOIN store.patients p USING (patient)"
        " ORDER BY p.patient_id"
    ).df()
    return found.assign(since=utc(found["since"].to_numpy(dtype=np.int64)))


def _allowed(
    connection: duckdb.DuckDBPyConnection, purpose: str, patients: Collection[str] | None
) -> pd.DataFrame:
    """Columns patient, patient_id, sorted by patient_id."""
    if purpose not in ("care", "research"):
        raise StoreError(f"Expected the purpose care or research; got {purpose!r}.")
    presumed = setting(connection, "presume_consent") == "yes"
    consenting = "coalesce(c.research, ?)" if purpose == "research" else "coalesce(true, ?)"
    found = connection.execute(
        "SELECT p.patient, p.patient_id FROM store.patients p LEFT JOIN store.consents c USING (patient)"
        f" WHERE {consenting}",
        [presumed],
    ).df()
    if patients is not None:
        found = found[found["patient_id"].isin(set(patients))]
    return found.sort_values("patient_id", ignore_index=True).astype({"patient_id": "str"})


def _streams(connection: duckdb.DuckDBPyConnection, allowed: pd.DataFrame) -> pd.DataFrame:
    """Columns stream, patient_id, signal, sorted by the latter two."""
    found = connection.execute("SELECT stream, patient, signal FROM store.streams").df()
    found = found.merge(allowed, on="patient")[["stream", "patient_id", "signal"]]
    return found.sort_values(["patient_id", "signal"], ignore_index=True)


def _rows(
    connection: duckdb.DuckDBPyConnection, streams: pd.DataFrame, since: pd.Timestamp | None
) -> dict[str, np.ndarray]:
    """Columns place (of the stream in `streams`), time, value, source, quality; sorted by place and time."""
    columns = "o.stream, o.time, o.value, o.source, o.quality"
    everybody = connection.execute("SELECT count(*) FROM store.streams").fetchone() == (len(streams),)
    with Registered(connection, streams[["stream"]]) as table:
        only = "" if everybody else f" SEMI JOIN {table} USING (stream)"
        after = "" if since is None else " WHERE o.time >= ?"
        found = connection.execute(
            f"SELECT {columns} FROM store.observations o{only}{after}",
            [] if since is None else [moment(since)],
        ).to_arrow_table()
    frame = {name: column.to_numpy() for name, column in zip(found.column_names, found.columns, strict=True)}
    place_S = np.zeros(int(streams["stream"].max()) + 1 if len(streams) else 0, dtype=np.int32)
    place_S[streams["stream"].to_numpy()] = np.arange(len(streams))
    frame["place"] = place_S[frame.pop("stream")]
    return _sorted(frame)


def _sorted(frame: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    place_N, time_N, source_N = frame["place"], frame["time"], frame["source"]
    step_N = np.diff(place_N)
    same_N = step_N == 0
    later_N = np.diff(time_N)
    if (step_N >= 0).all() and (later_N[same_N] > 0).all():
        return frame
    order_N = np.lexsort((source_N, time_N, place_N))
    return {name: column_N[order_N] for name, column_N in frame.items()}


def _unmarked(
    connection: duckdb.DuckDBPyConnection, frame: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The rows without a mark of quality, and how many there were of each mark."""
    words = dict(connection.execute("SELECT word, text FROM store.words").fetchall())
    marks, rows = np.unique(frame["quality"], return_counts=True)
    suspect = {int(mark): int(n) for mark, n in zip(marks, rows, strict=True) if words[int(mark)]}
    if not suspect:
        return frame, {}
    plain_N = ~np.isin(frame["quality"], list(suspect))
    dropped = {f"marked: {words[mark]}": count for mark, count in suspect.items()}
    return {name: column_N[plain_N] for name, column_N in frame.items()}, dropped


def _merged(frame: dict[str, np.ndarray], streams: pd.DataFrame) -> tuple[dict[str, np.ndarray], int]:
    """One row per stream and time, and how many rows were merged into others."""
    same_N = (np.diff(frame["place"]) == 0) & (np.diff(frame["time"]) == 0)
    if not same_N.any():
        return frame, 0
    several_N = np.append(same_N, False) | np.insert(same_N, 0, False)
    some = pd.DataFrame({name: column_N[several_N] for name, column_N in frame.items()})
    kind_S = np.array(
        [SIGNALS[signal].kind if signal in SIGNALS else "level" for signal in streams["signal"]]
    )
    kind_N = pd.Series(kind_S[some["place"].to_numpy()], index=some.index)
    groups = some.groupby(["place", "time"], sort=False)["value"]
    value = groups.transform("median")
    value = value.mask(kind_N == "dose", groups.transform("sum"))
    value = value.mask(kind_N == "rate", groups.transform("last"))
    first_N = np.insert(~same_N, 0, True)
    merged = {name: column_N[first_N] for name, column_N in frame.items()}
    merged["value"] = merged["value"].copy()
    merged["value"][several_N[first_N]] = value[first_N[several_N]].to_numpy()
    return merged, int(same_N.sum())


def _steps(frame: dict[str, np.ndarray], streams: pd.DataFrame) -> dict[str, float]:
    """What `twin.cleaning.step_minutes` says of these rows, from numbers instead of names."""
    signal_S, signals = pd.factorize(streams["signal"], sort=True)
    within_N = np.diff(frame["place"]) == 0
    minutes_N = np.diff(frame["time"])[within_N] / 60e6
    signal_N = signal_S[frame["place"][1:][within_N]]
    steps = ((str(name), minutes_N[signal_N == code]) for code, name in enumerate(signals))
    return {name: round(float(np.median(step_N)), 2) for name, step_N in steps if len(step_N)}


def _canonical(
    connection: duckdb.DuckDBPyConnection, frame: dict[str, np.ndarray], streams: pd.DataFrame
) -> pd.DataFrame:
    words = connection.execute("SELECT word, text FROM store.words ORDER BY word").df()
    text_W = np.full(int(words["word"].max()) + 1 if len(words) else 0, "", dtype=object)
    text_W[words["word"].to_numpy()] = words["text"]
    return pd.DataFrame(
        {
            "patient_id": _named(frame["place"], streams["patient_id"].to_numpy(dtype=object)),
            "signal": _named(frame["place"], streams["signal"].to_numpy(dtype=object)),
            "time": utc(frame["time"]),
            "value": frame["value"],
            "source": _named(frame["source"], text_W),
            "quality": _named(frame["quality"], text_W),
        }
    )


def _named(number_N: np.ndarray, name_U: np.ndarray) -> pd.Series:
    """Text by number, without a Python object per row."""
    names = pa.array(list(name_U), type=pa.large_string())
    return pd.Series(pd.array(names.take(pa.array(number_N)), dtype="str"))


def _facts(connection: duckdb.DuckDBPyConnection, allowed: pd.DataFrame) -> pd.DataFrame:
    """Index patient_id, a column per fact; numbers where all of its values are numbers."""
    found = connection.execute("SELECT patient, name, value FROM store.facts").df()
    found = found.merge(allowed, on="patient")
    wide = found.pivot(index="patient_id", columns="name", values="value")
    wide = wide.reindex(pd.Index(allowed["patient_id"].to_numpy(), name="patient_id", dtype="str"))
    wide.columns = pd.Index([str(name) for name in wide.columns])
    for name in wide.columns:
        number = pd.to_numeric(wide[name], errors="coerce")
        plain = bool((number.notna() == wide[name].notna()).all())
        wide[name] = number.astype("float64") if plain else wide[name].astype("str")
    return wide


def _quality(
    connection: duckdb.DuckDBPyConnection, allowed: pd.DataFrame, kept: int, dropped: dict[str, int]
) -> Quality:
    """What became of these patients' rows, from the feeds to the site that is read."""
    with Registered(connection, allowed[["patient"]]) as table:
        rows = connection.execute(
            "SELECT fate, reason, sum(rows)::BIGINT FROM store.counts"
            f" SEMI JOIN {table} USING (patient) GROUP BY ALL HAVING sum(rows) <> 0 ORDER BY ALL"
        ).fetchall()
    by_fate: dict[str, dict[str, int]] = {"dropped": dict(dropped), "fixed": {}, "quarantined": {}}
    for stored, reason, count in rows:
        fate = "dropped" if stored == "withdrawn" else stored
        if fate in by_fate:
            by_fate[fate][reason] = by_fate[fate].get(reason, 0) + int(count)
    read = kept + sum(by_fate["dropped"].values()) + sum(by_fate["quarantined"].values())
    return Quality(rows_read=read, rows_kept=kept, **by_fate)
