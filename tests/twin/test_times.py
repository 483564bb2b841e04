"""Times into UTC."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.errors import DataError
from twin.times import check_zone, to_utc


def _times(texts: list[str | None], zone: str | None = None, stream: list[int] | None = None) -> pd.DataFrame:
    times = to_utc(pd.Series(texts, dtype="str"), np.array(stream or [0] * len(texts)), zone)
    return pd.DataFrame({name: getattr(times, name) for name in type(times).__slots__})


def _utc(texts: list[str | None], zone: str | None = None, stream: list[int] | None = None) -> list[str]:
    return [str(time)[:16] if pd.notna(time) else "-" for time in _times(texts, zone, stream)["utc"]]


def test_an_offset_is_exact_however_it_is_written() -> None:
    same = [
        "2024-03-01T08:05:00Z",
        "2024-03-01 08:05:00 UTC",
        "2024-03-01T09:05+01:00",
        "2024-03-01T13:35:00.000000+0530",
        "2024-02-29T20:05:00-12",
    ]
    assert set(_utc([*same])) == {"2024-03-01 08:05"}


@pytest.mark.parametrize(
    "text", ["01/03/2024 08:05", "2024-03-01", "2024-13-01T08:05Z", "1709280300", "noon"]
)
def test_what_is_no_iso_time_with_minutes_is_unreadable(text: str) -> None:
    row = _times([text]).iloc[0]
    assert row["unreadable_N"] and pd.isna(row["utc"])


def test_a_naive_time_is_marked_and_not_guessed() -> None:
    row = _times(["2024-03-01T08:05:00"]).iloc[0]
    assert row["naive_N"] and pd.isna(row["utc"])


def test_naive_and_zoned_times_mix_when_the_zone_is_given() -> None:
    texts: list[str | None] = ["2024-07-01T08:05:00", "2024-07-01T08:05:00Z", None]
    assert _utc(texts, "Europe/London") == ["2024-07-01 07:05", "2024-07-01 08:05", "-"]


def test_timestamps_with_and_without_zone_are_read_like_texts() -> None:
    naive = pd.Series(pd.to_datetime(["2024-07-01 08:05"]))
    aware = naive.dt.tz_localize("Europe/London")
    for times in (naive, aware):
        utc = to_utc(times, np.zeros(1, dtype=int), "Europe/London").utc
        assert utc.dtype == "datetime64[us, UTC]"
        assert str(utc[0]) == "2024-07-01 07:05:00+00:00"


def test_two_passes_of_the_hour_that_comes_twice_are_an_hour_apart() -> None:
    night: list[str | None] = [
        f"2023-10-29T{time}" for time in ("00:30", "01:00", "01:30", "01:00", "01:30", "02:00")
    ]
    assert [time[11:] for time in _utc(night, "Europe/London")] == [
        "23:30",
        "00:00",
        "00:30",
        "01:00",
        "01:30",
        "02:00",
    ]


def test_one_pass_of_the_hour_that_comes_twice_is_summer_time_and_counted() -> None:
    rows = _times(["2023-10-29T01:00", "2023-10-29T01:30"], "Europe/London")
    assert rows["once_N"].all()
    assert str(rows["utc"].iloc[0]) == "2023-10-29 00:00:00+00:00"


def test_repeated_times_without_an_order_in_that_hour_are_not_placed() -> None:
    rows = _times(
        ["2023-10-29T01:00", "2023-10-29T01:00", "2023-10-29T01:30", "2023-10-29T03:00"], "Europe/London"
    )
    assert rows["unclear_N"].tolist() == [True, True, True, False]


def test_streams_of_other_patients_do_not_look_like_a_second_pass() -> None:
    texts: list[str | None] = ["2023-10-29T01:30", "2023-10-29T01:00"]
    assert _times(texts, "Europe/London", stream=[0, 1])["once_N"].all()


def test_an_hour_that_the_clock_skips_is_moved_on_unless_its_place_is_taken() -> None:
    free = _times(["2024-03-31T01:30", "2024-03-31T04:00"], "Europe/London")
    assert free["skipped_N"].tolist() == [True, False]
    assert str(free["utc"].iloc[0]) == "2024-03-31 01:30:00+00:00"
    taken = _times(["2024-03-31T01:30", "2024-03-31T02:35"], "Europe/London")
    assert taken["unclear_N"].tolist() == [True, False]


def test_an_unknown_zone_is_refused_with_an_example() -> None:
    with pytest.raises(DataError, match="Europe/London"):
        check_zone("Mars/Olympus")


@given(
    st.datetimes(datetime.fromisoformat("1990-01-01"), datetime.fromisoformat("2035-01-01")),
    st.sampled_from(["Europe/London", "America/New_York", "Asia/Kolkata", "Australia/Sydney", "UTC"]),
)
def test_local_times_agree_with_the_standard_library(moment: datetime, zone: str) -> None:
    local = moment.replace(microsecond=0)
    aware = local.replace(tzinfo=ZoneInfo(zone))
    back = (aware.astimezone(ZoneInfo("UTC"))).astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    row = _times([local.isoformat()], zone).iloc[0]
    if back != local:  # skipped by the clock: the standard library moves it on by the gap, too
        assert row["skipped_N"]
        assert timedelta(0) < back - local <= timedelta(hours=1)
    assert row["utc"].to_pydatetime() == aware.astimezone(ZoneInfo("UTC"))
