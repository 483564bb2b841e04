"""Times as text or timestamps into UTC: zones, daylight saving, and what could not be read.

A time with `Z` or an offset is exact. A naive one is read in the zone that the caller names, or not at
all. Where that zone's clock jumps:
- an hour that the clock skips in spring: the recorder did not change its clock; the time is moved on by the
  hour, so that the distances between readings stay, unless the record already has rows where it would come
  to lie: then it is dropped;
- an hour that comes twice in autumn: if the rows of a patient and signal run through it and then start
  again, the second run is standard time; if they pass once, it is taken for summer time; if local times
  repeat without such an order, nobody can tell them apart and they are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from zoneinfo import ZoneInfo, available_timezones

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from twin.errors import DataError

_ZONE = r"(?:Z|z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)"
_ISO = r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(?::\d{2}(?:[.]\d{1,9})?)?(?:\s?" + _ZONE + ")?$"
_ZONED = r"\d\s?" + _ZONE + "$"
_OTHER_UTC = r"\s?(?:UTC|GMT|z)$"
_HOUR = pd.Timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Times of N rows.

    Attributes:
        utc: datetime64[us, UTC], NaT where missing, unreadable, naive without a zone or unclear.
        missing_N, unreadable_N, naive_N: what the text was; at most one is true of a row.
        skipped_N: stood in an hour that the clock skips; moved on.
        once_N: stood in the hour that comes twice, passed once; taken for summer time.
        unclear_N: stood in an hour that the clock skips or repeats, and cannot be placed.
    """

    utc: pd.Series
    missing_N: np.ndarray
    unreadable_N: np.ndarray
    naive_N: np.ndarray
    skipped_N: np.ndarray
    once_N: np.ndarray
    unclear_N: np.ndarray


def check_zone(timezone: str | None) -> None:
    """Nothing.

    Raises:
        DataError: `timezone` is no IANA name.
    """
    if timezone is not None and timezone not in available_timezones():
        raise DataError(
            f"data.timezone={timezone!r} is no time zone. Expected an IANA name such as Europe/London, "
            "America/New_York or UTC (a full list: https://en.wikipedia.org/wiki/List_of_tz_database_time_zones)."
        )


def to_utc(times: pd.Series, stream_N: np.ndarray, timezone: str | None) -> Times:
    """UTC of each row.

    Args:
        times: N texts in ISO 8601 with at least hours and minutes, or timestamps with or without zone.
        stream_N: int64, one number per patient and signal; rows of a stream stand in the file's order.
        timezone: IANA zone of naive times; without it they stay NaT and are marked.
    """
    naive, utc, missing_N, unreadable_N = _parse(times.reset_index(drop=True))
    naive_N = naive.notna().to_numpy()
    nothing_N = np.zeros(len(times), dtype=bool)
    if timezone is None or not naive_N.any():
        return _times(utc, missing_N, unreadable_N, naive_N, nothing_N, nothing_N, nothing_N)
    local = naive[naive_N]
    resolved, skipped, once, unclear = _localise(local, stream_N[naive_N], ZoneInfo(timezone))
    utc = utc.copy()
    utc[naive_N] = resolved
    marks = []
    for mark in (skipped, once, unclear):
        mark_N = nothing_N.copy()
        mark_N[naive_N] = mark
        marks.append(mark_N)
    return _times(utc, missing_N, unreadable_N, naive_N, *marks)


def _times(
    utc: pd.Series,
    missing_N: np.ndarray,
    unreadable_N: np.ndarray,
    naive_N: np.ndarray,
    skipped_N: np.ndarray,
    once_N: np.ndarray,
    unclear_N: np.ndarray,
) -> Times:
    return Times(
        utc=utc,
        missing_N=missing_N,
        unreadable_N=unreadable_N,
        naive_N=naive_N,
        skipped_N=skipped_N,
        once_N=once_N,
        unclear_N=unclear_N,
    )


def _parse(times: pd.Series) -> tuple[pd.Series, pd.Series, np.ndarray, np.ndarray]:
    """(naive, utc, missing, unreadable); each row has at most one of naive and utc."""
    if isinstance(times.dtype, pd.DatetimeTZDtype):
        utc = times.dt.tz_convert("UTC").dt.as_unit("us")
        return _no_time(times, None), utc, times.isna().to_numpy(), np.zeros(len(times), dtype=bool)
    if pd.api.types.is_datetime64_dtype(times):
        naive = times.dt.as_unit("us")
        return naive, _no_time(times, "UTC"), times.isna().to_numpy(), np.zeros(len(times), dtype=bool)
    text = times.astype("str").str.strip()
    missing = text.isna() | (text == "")
    readable = _matches(text, _ISO)
    zoned = readable & _matches(text, _ZONED)
    other = zoned & _matches(text, _OTHER_UTC)
    if other.any():
        text[other] = text[other].str.replace(_OTHER_UTC, "Z", regex=True)
    utc = _no_time(times, "UTC")
    utc[zoned] = pd.to_datetime(text[zoned], format="ISO8601", utc=True, errors="coerce").dt.as_unit("us")
    naive = _no_time(times, None)
    plain = readable & ~zoned
    naive[plain] = pd.to_datetime(text[plain], format="ISO8601", errors="coerce").dt.as_unit("us")
    unreadable = ~missing & utc.isna() & naive.isna()
    return naive, utc, missing.to_numpy(), unreadable.to_numpy()


def _matches(text: pd.Series, pattern: str) -> pd.Series:
    """Which texts match; Arrow's own matching, as pandas falls back to Python's for such patterns."""
    found = pc.match_substring_regex(pa.array(text, type=pa.large_string(), from_pandas=True), pattern)
    return pd.Series(found.fill_null(False).to_numpy(zero_copy_only=False), index=text.index)


def _no_time(like: pd.Series, zone: str | None) -> pd.Series:
    dtype = f"datetime64[us, {zone}]" if zone else "datetime64[us]"
    return pd.Series(pd.NaT, index=like.index, dtype=dtype)


def _localise(
    local: pd.Series, stream: np.ndarray, zone: ZoneInfo
) -> tuple[pd.Series, np.ndarray, np.ndarray, np.ndarray]:
    """(utc, skipped, once, unclear) of naive local times."""
    twice = local.dt.tz_localize(zone, ambiguous="NaT", nonexistent="shift_forward").isna().to_numpy()
    summer = np.ones(len(local), dtype=bool)
    skipped = local.dt.tz_localize(zone, ambiguous=summer, nonexistent="NaT").isna().to_numpy()
    summer[twice], once_twice, ambiguous_twice = _passes(local[twice], stream[twice])
    try:
        aware = local.dt.tz_localize(zone, ambiguous=summer, nonexistent=_HOUR)
    except ValueError:  # the clock skipped more than an hour, as Samoa's did in 2011
        aware = local.dt.tz_localize(zone, ambiguous=summer, nonexistent="shift_forward")
    utc = aware.dt.tz_convert("UTC").dt.as_unit("us")
    once, unclear = np.zeros(len(local), dtype=bool), np.zeros(len(local), dtype=bool)
    once[twice], unclear[twice] = once_twice, ambiguous_twice
    unclear |= _taken(utc, stream, skipped)
    return utc.mask(unclear), skipped & ~unclear, once, unclear


def _taken(utc: pd.Series, stream: np.ndarray, skipped: np.ndarray) -> np.ndarray:
    """Rows of a skipped hour that would come to lie in an hour of their stream that has rows of its own."""
    if not skipped.any():
        return skipped
    hours = pd.MultiIndex.from_arrays([stream, utc.dt.floor("h")])
    return skipped & hours.isin(hours[~skipped].unique())


def _passes(local: pd.Series, stream: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(summer, once, ambiguous) of rows that stand in hours that come twice."""
    rows = pd.DataFrame({"stream": stream, "day": local.dt.normalize().to_numpy(), "time": local.to_numpy()})
    night = rows.groupby(["stream", "day"], sort=False)
    back = night["time"].diff() < pd.Timedelta(0)
    backs = back.groupby([rows["stream"], rows["day"]], sort=False)
    second = backs.cumsum().to_numpy() > 0
    turns = backs.transform("sum").to_numpy()
    repeated = (
        rows.duplicated().groupby([rows["stream"], rows["day"]], sort=False).transform("any").to_numpy()
    )
    ordered = (turns == 1) & ~rows.assign(second=second).duplicated().groupby(
        [rows["stream"], rows["day"]], sort=False
    ).transform("any").to_numpy()
    ambiguous = ~ordered & repeated
    return ~(ordered & second), ~ordered & ~repeated, ambiguous
