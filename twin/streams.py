"""New rows beside the last rows of their streams: duplicates, corrections, verdicts.

Shapes: N new rows, P pooled rows (new and kept parts), M merged rows (one per stream and time), S streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from twin.cleaning import merge
from twin.outliers import MARKS, PAST, Streams, judge
from twin.recent import Recent, kept_rows

_DRIFT: Final = MARKS.index("drift")
_NO_RUN: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """M rows, one per stream and time, sorted by these.

    Attributes:
        stream_M: index into the streams that were given.
        time_us_M, value_M, mark_M, since_us_M: of each row.
        was_M: there was such a row before.
        new_M: to be stored: it was not there, or has another value now.
        mark_before_M: its mark before; 0 if it was not there.
        again_N: new rows that were there already, or came twice.
        other_N: new rows that are part of another row of the same moment, beyond its first.
    """

    stream_M: np.ndarray
    time_us_M: np.ndarray
    value_M: np.ndarray
    mark_M: np.ndarray
    since_us_M: np.ndarray
    was_M: np.ndarray
    new_M: np.ndarray
    mark_before_M: np.ndarray
    again_N: np.ndarray
    other_N: np.ndarray


def join(
    recent: Sequence[Recent],
    signal_S: np.ndarray,
    signals: Sequence[str],
    stream_N: np.ndarray,
    time_us_N: np.ndarray,
    value_N: np.ndarray,
    drift_N: np.ndarray,
) -> tuple[Merged, list[Recent]]:
    """(what the new rows make of their streams, the last rows of each stream after them).

    Args:
        recent: the last rows of each of S streams.
        signal_S: number of each stream's signal.
        signals: names by number.
        stream_N, time_us_N, value_N: the new rows, in the order in which they came.
        drift_N: rows of a device whose clock is suspected; they are marked so.
    """
    parts = [entry.parts for entry in recent]
    size_S = np.array([len(time_us) for time_us, _ in parts], dtype=np.int64)
    old = int(size_S.sum())
    stream_P = np.concatenate([np.repeat(np.arange(len(recent)), size_S), stream_N])
    time_P = np.concatenate([*(time_us for time_us, _ in parts), time_us_N])
    value_P = np.concatenate([*(value for _, value in parts), value_N])
    order_P = np.lexsort((time_P, stream_P))
    stream_P, time_P, value_P = stream_P[order_P], time_P[order_P], value_P[order_P]
    first_P = np.ones(len(order_P), dtype=bool)
    first_P[1:] = (stream_P[1:] != stream_P[:-1]) | (time_P[1:] != time_P[:-1])
    row_P = np.cumsum(first_P) - 1
    rows = int(first_P.sum())
    again_P = np.zeros(len(order_P), dtype=bool)
    value_M = value_P[first_P]
    if rows < len(order_P):
        _merge_moments(row_P, signal_S[stream_P], signals, value_P, again_P, value_M)
    fresh_P = (order_P >= old) & ~again_P
    was_M = np.zeros(rows, dtype=bool)
    was_M[row_P[order_P < old]] = True
    fresh_M = np.zeros(rows, dtype=bool)
    fresh_M[row_P[fresh_P]] = True
    value_before_M = value_M.copy()
    value_before_M[was_M] = np.concatenate([entry.value for entry in recent]) if old else []
    new_M = fresh_M & (~was_M | (value_M != value_before_M))
    time_M = time_P[first_P]
    verdicts = _judged(recent, signal_S, signals, stream_P[first_P], time_M, value_M, was_M, new_M)
    drift_P = np.append(np.zeros(old, dtype=bool), drift_N)[order_P]
    verdicts[0][row_P[drift_P & fresh_P]] = _DRIFT
    place_P = np.empty(len(order_P), dtype=np.int64)
    place_P[order_P] = np.arange(len(order_P))
    other_P = fresh_P.copy()
    other_P[_one_of_each(row_P, fresh_P, new_M)] = False
    merged = Merged(
        stream_M=stream_P[first_P],
        time_us_M=time_M,
        value_M=value_M,
        mark_M=verdicts[0],
        since_us_M=verdicts[1],
        was_M=was_M,
        new_M=new_M,
        mark_before_M=verdicts[2],
        again_N=again_P[place_P[old:]],
        other_N=other_P[place_P[old:]],
    )
    left_P = ~again_P
    return merged, _kept(recent, merged, signal_S, signals, row_P[left_P], time_P[left_P], value_P[left_P])


def _merge_moments(
    row_P: np.ndarray,
    signal_P: np.ndarray,
    signals: Sequence[str],
    value_P: np.ndarray,
    again_P: np.ndarray,
    value_M: np.ndarray,
) -> None:
    """Sets `again_P` and `value_M` where several parts have one moment."""
    shared_P = np.bincount(row_P)[row_P] > 1
    some = pd.DataFrame({"row": row_P, "signal": signal_P, "value": value_P})[shared_P]
    again = some.duplicated(["row", "value"]).to_numpy()
    again_P[np.flatnonzero(shared_P)] = again
    one = merge(some[~again], ["row", "signal"], signals)
    value_M[one["row"].to_numpy()] = one["value"].to_numpy()


def _one_of_each(row_P: np.ndarray, fresh_P: np.ndarray, new_M: np.ndarray) -> np.ndarray:
    """Of each row that is to be stored, the last new part."""
    fresh: np.ndarray = np.flatnonzero(fresh_P)
    row = row_P[fresh]
    last = np.append(row[1:] != row[:-1], np.ones(min(1, len(row)), dtype=bool))
    chosen: np.ndarray = fresh[last & new_M[row]]
    return chosen


def _judged(
    recent: Sequence[Recent],
    signal_S: np.ndarray,
    signals: Sequence[str],
    stream_M: np.ndarray,
    time_M: np.ndarray,
    value_M: np.ndarray,
    was_M: np.ndarray,
    new_M: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mark, when the run of the value began, mark before) of each row.

    Of a stream whose earlier rows are not here, the first rows keep the verdict that these took part in.
    """
    rows = len(stream_M)
    before_M, began_M = np.zeros(rows, dtype=np.int8), np.full(rows, _NO_RUN)
    if was_M.any():
        before_M[was_M] = np.concatenate([entry.mark for entry in recent])
        began_M[was_M] = np.concatenate([entry.since_us for entry in recent])
    verdicts = judge(
        Streams(
            stream_N=stream_M,
            signal_N=signal_S[stream_M],
            time_us_N=time_M,
            value_N=value_M,
            since_us_N=began_M,
            mark_N=before_M,
        ),
        signals,
    )
    mark_M = verdicts.mark_N
    start_M = np.searchsorted(stream_M, stream_M)
    trimmed_S = np.array([entry.trimmed for entry in recent], dtype=bool)
    settled_M = was_M & ~new_M & trimmed_S[stream_M] & (np.arange(rows) - start_M < PAST)
    settled_M |= was_M & ~new_M & (before_M == _DRIFT)
    mark_M[settled_M] = before_M[settled_M]
    return mark_M, verdicts.since_us_N, before_M


def _kept(
    recent: Sequence[Recent],
    merged: Merged,
    signal_S: np.ndarray,
    signals: Sequence[str],
    row_P: np.ndarray,
    time_P: np.ndarray,
    value_P: np.ndarray,
) -> list[Recent]:
    """The last rows of each stream."""
    edge_S = np.searchsorted(merged.stream_M, np.arange(len(recent) + 1))
    part_S = np.searchsorted(row_P, edge_S)
    kept: list[Recent] = []
    for number, entry in enumerate(recent):
        end, most = edge_S[number + 1], kept_rows(signals[signal_S[number]])
        start = max(edge_S[number], end - most)
        here = slice(start, end)
        first = np.searchsorted(row_P, start)
        parts = slice(first, part_S[number + 1])
        several = parts.stop - parts.start > end - start
        kept.append(
            Recent(
                time_us=merged.time_us_M[here].copy(),
                value=merged.value_M[here].copy(),
                mark=merged.mark_M[here].copy(),
                since_us=merged.since_us_M[here].copy(),
                part_us=time_P[parts].copy() if several else None,
                part_value=value_P[parts].copy() if several else None,
                trimmed=entry.trimmed or start > edge_S[number],
            )
        )
    return kept
