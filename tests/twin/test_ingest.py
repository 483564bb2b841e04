"""Batches of feeds: no row vanishes, and it does not matter where a stream is cut."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twin.codes import Codes
from twin.connectors.feed import FACTS, OBSERVATIONS, WITHDRAWN, Batch
from twin.ingest import Ingest
from twin.ingested import Ingested

Row = tuple[str, str, str, str, str, str, str]
START = pd.Timestamp("2024-03-01T00:00:00Z")


def _batch(rows: Iterable[Row], **more: object) -> Batch:
    frame = pd.DataFrame(list(rows), columns=list(OBSERVATIONS), dtype="str")
    return Batch(observations=frame, position="7", **more)  # type: ignore[arg-type] # of the tests below


def _ingest(**more: object) -> Ingest:
    return Ingest(pseudonym=lambda name: f"P{hash(name) % 997}", **more)  # type: ignore[arg-type] # ditto


def _glucose(minute: float, value: object, patient: str = "a", device: str = "") -> Row:
    time = (START + pd.Timedelta(minutes=minute)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return (patient, time, "loinc", "99504-3", str(value), "mg/dL", device)


def _fates(taken: Ingested) -> dict[tuple[str, str], int]:
    return dict(taken.counts.groupby(["fate", "reason"])["rows"].sum())


class Kept:
    """A store as simple as can be: what it would hold after some batches."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, pd.Timestamp, str], tuple[float, str]] = {}
        self.counts: dict[tuple[str, ...], int] = {}

    def commit(self, taken: Ingested) -> None:
        for patient, signal, time, value, source, quality in taken.observations.itertuples(index=False):
            if (patient, signal, time, source) in self.rows:  # a correction
                self._count((patient, signal, "kept", ""), -1)
                self._count((patient, signal, "dropped", "duplicate time, other value"), 1)
            self.rows[patient, signal, time, source] = (value, quality)
        for patient, signal, time, source, quality in taken.remarked.itertuples(index=False):
            value, _ = self.rows[patient, signal, time, source]
            self.rows[patient, signal, time, source] = (value, quality)
        for *key, rows in taken.counts.itertuples(index=False):
            self._count(tuple(key), rows)

    def _count(self, key: tuple[str, ...], rows: int) -> None:
        self.counts[key] = self.counts.get(key, 0) + rows
        if not self.counts[key]:
            del self.counts[key]


def test_a_row_becomes_canonical_under_its_pseudonym() -> None:
    row = ("mrn-1", "2024-03-01T08:05:00+01:00", "mdc", "MDC_CONC_GLU_ISF", "5.5", "mmol/L", "g7")
    taken = _ingest().take(_batch([row]), "cgm")
    (found,) = taken.observations.itertuples(index=False)
    assert found.signal == "glucose"
    assert found.value == pytest.approx(99.088)
    assert found.time == pd.Timestamp("2024-03-01T07:05:00Z")
    assert (found.source, found.quality) == ("cgm/g7", "")
    assert taken.position == "7"
    assert "mrn-1" not in taken.observations.to_csv() + taken.counts.to_csv()


def test_unknown_codes_and_units_wait_in_quarantine_and_come_back() -> None:
    rows = [
        ("a", "2024-03-01T08:05:00Z", "monitor", "HR9", "61", "/min", ""),
        ("a", "2024-03-01T08:06:00Z", "loinc", "8867-4", "61", "furlong", "m"),
        ("a", "2024-03-01T08:07:00", "loinc", "8867-4", "62", "/min", ""),
    ]
    first = _ingest()
    taken = first.take(_batch(rows), "ward")
    assert taken.observations.empty
    assert taken.quarantine["reason"].tolist() == ["unknown code", "unknown unit", "time without zone"]
    assert taken.quarantine["value"].tolist() == ["61", "61", "62"]
    knowing = _ingest(codes=Codes.parse({"monitor": {"HR9": "heart_rate"}}), timezone="Europe/Berlin")
    back = knowing.again(taken.quarantine, "ward")
    assert sorted(back.observations["value"]) == [61.0, 62.0]
    assert set(back.observations["patient_id"]) == set(taken.quarantine["patient_id"])
    assert len(back.quarantine) == 1


def test_facts_withdrawals_and_rejected_rows_are_handed_on() -> None:
    ingest = _ingest()
    ingest.take(_batch([_glucose(0, 100), _glucose(5, 101)]), "cgm")
    facts = pd.DataFrame([("a", "sex", "f"), ("", "sex", "m")], columns=list(FACTS), dtype="str")
    row = _glucose(5, "")
    gone = pd.DataFrame([(row[0], row[1], row[2], row[3], "")], columns=list(WITHDRAWN), dtype="str")
    taken = ingest.take(
        _batch([_glucose(5, 130)], facts=facts, withdrawn=gone, rejected={"no JSON": 2}), "cgm"
    )
    assert taken.facts["value"].tolist() == ["f"]
    assert taken.withdrawn[["signal", "time"]].to_numpy().tolist() == [
        ["glucose", START + pd.Timedelta(minutes=5)]
    ]
    assert _fates(taken) == {("dropped", "no JSON"): 2, ("kept", ""): 1}
    assert taken.observations["value"].tolist() == [130.0]


def test_a_row_delivered_again_is_a_duplicate_also_in_a_later_batch() -> None:
    ingest = _ingest()
    ingest.take(_batch([_glucose(0, 100)]), "cgm")
    taken = ingest.take(_batch([_glucose(0, 100), _glucose(5, 101), _glucose(5, 101)]), "cgm")
    assert _fates(taken) == {("kept", ""): 1, ("dropped", "duplicate"): 2}
    assert len(taken.observations) == 1


def test_two_foods_of_one_moment_add_up_also_in_two_batches() -> None:
    def carbs(grams: str) -> Row:
        return ("a", "2024-03-01T08:05:00Z", "twinward", "carbohydrates", grams, "g", "")

    ingest = _ingest()
    ingest.take(_batch([carbs("30")]), "diary")
    taken = ingest.take(_batch([carbs("12"), carbs("30")]), "diary")
    assert taken.observations["value"].tolist() == [42.0]


def test_a_spike_is_marked_when_the_value_after_has_come() -> None:
    ingest, kept = _ingest(), Kept()
    steady = [_glucose(5 * i, 100 + i % 2) for i in range(40)]
    kept.commit(ingest.take(_batch(steady), "cgm"))
    kept.commit(ingest.take(_batch([_glucose(200, 125)]), "cgm"))
    assert {quality for _, quality in kept.rows.values()} == {""}
    last = ingest.take(_batch([_glucose(205, 101)]), "cgm")
    kept.commit(last)
    assert last.remarked["quality"].tolist() == ["spike"]
    assert [value for value, quality in kept.rows.values() if quality] == [125.0]


def test_a_restart_goes_on_as_if_there_had_been_none() -> None:
    rows = [_glucose(5 * i, 100 + i % 2) for i in range(150)] + [_glucose(750, 180), _glucose(755, 100)]
    going = _ingest()
    first = going.take(_batch(rows[:-1]), "cgm")
    restarted = _ingest()
    restarted.warm(first.observations)
    for ingest in (going, restarted):
        taken = ingest.take(_batch(rows[-1:]), "cgm")
        assert taken.remarked["quality"].tolist() == ["spike"]


def test_a_device_whose_clock_is_ahead_is_marked_and_then_moved() -> None:
    ingest = _ingest()
    qualities, moved = [], []
    for arrival in range(6):
        taken = ingest.take(
            _batch([_glucose(5 * arrival + 60, 100 + arrival)]),
            "cgm",
            START + pd.Timedelta(minutes=5 * arrival),
        )
        qualities += taken.observations["quality"].tolist()
        moved += [(taken.observations["time"] - START).dt.total_seconds().iloc[0] / 60]
    assert qualities[:2] == ["drift", "drift"]
    assert qualities[2:] == [""] * 4
    assert moved[2:] == [10.0, 15.0, 20.0, 25.0]


def test_a_forgotten_patient_leaves_nothing_behind() -> None:
    ingest = _ingest()
    patient = ingest.take(_batch([_glucose(0, 100)]), "cgm").observations["patient_id"].iloc[0]
    ingest.forget(patient)
    assert len(ingest.take(_batch([_glucose(0, 100)]), "cgm").observations) == 1


CELL = st.one_of(st.sampled_from(["", "100", "1e9", "nan", "5,4", "-3", "250.5"]), st.text(max_size=6))
CODE = st.sampled_from(["99504-3", "8867-4", "9059-7", "0000-0", ""])
TIME = st.one_of(
    st.integers(-10, 400).map(lambda minute: str(START + pd.Timedelta(minutes=minute))),
    st.sampled_from(["", "yesterday", "2204-02-30", "2024-03-31 02:30:00", "9999-01-01T00:00:00Z"]),
)
UNIT = st.sampled_from(["mg/dL", "mmol/L", "/min", "g", "", "furlong"])
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "", " a "]),
        TIME,
        st.just("loinc"),
        CODE,
        CELL,
        UNIT,
        st.sampled_from(["", "d"]),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None)
@given(rows=ROWS, zone=st.sampled_from([None, "Europe/London"]))
def test_no_row_vanishes(rows: list[Row], zone: str | None) -> None:
    taken = _ingest(timezone=zone).take(_batch(rows), "feed")
    sums = taken.counts.groupby("fate")["rows"].sum()
    assert sums.reindex(["kept", "dropped", "quarantined"]).sum() == len(rows)
    assert sums.get("kept", 0) == len(taken.observations)
    assert sums.get("quarantined", 0) == len(taken.quarantine)
    key = ["patient_id", "signal", "time", "source"]
    assert not taken.observations.duplicated(key).any()
    assert not taken.observations.isna().any(axis=None)


def _stream(seed: int, rows: int) -> list[Row]:
    """Two patients' streams with spikes, blocks, stuck values, gaps and rows that come twice."""
    rng = np.random.default_rng(seed)
    made: list[Row] = []
    for patient in ("a", "b"):
        value = 120 + np.cumsum(rng.normal(0, 3, rows))
        value[rng.random(rows) < 0.03] += 90
        start, length = rng.integers(0, rows), rng.integers(5, 60)
        value[start : start + length] = (
            value[start] if rng.random() < 0.5 else value[start : start + length] + 150
        )
        minute = np.cumsum(rng.choice([5, 5, 5, 5, 10, 45], rows))
        value = np.clip(np.round(value, 1), 20, 500)
        made += [_glucose(int(m), v, patient) for m, v in zip(minute, value, strict=True)]
    made += [made[i] for i in rng.integers(0, len(made), 5)]
    made.sort(key=lambda row: row[1])
    return made


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), cuts=st.lists(st.integers(0, 400), max_size=12))
def test_it_does_not_matter_where_a_stream_is_cut(seed: int, cuts: list[int]) -> None:
    rows = _stream(seed, 200)
    whole, cut = Kept(), Kept()
    whole.commit(_ingest().take(_batch(rows), "cgm"))
    ingest = _ingest()
    edges = [0, *sorted(cuts), len(rows)]
    for start, end in pairwise(edges):
        cut.commit(ingest.take(_batch(rows[start:end]), "cgm"))
    assert cut.rows == whole.rows
    assert cut.counts == whole.counts


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_order_of_batches_changes_marks_at_most(seed: int) -> None:
    rows = _stream(seed, 120)
    pieces = [rows[i : i + 40] for i in range(0, len(rows), 40)]
    np.random.default_rng(seed).shuffle(pieces)  # type: ignore[arg-type] # a list is shuffled in place
    whole, shuffled = Kept(), Kept()
    whole.commit(_ingest().take(_batch(rows), "cgm"))
    ingest = _ingest()
    for piece in pieces:
        shuffled.commit(ingest.take(_batch(piece), "cgm"))
    values = [{key: value for key, (value, _) in store.rows.items()} for store in (whole, shuffled)]
    assert values[0] == values[1]


def test_a_row_of_the_future_is_dropped_and_counted_and_stays_nobodys_latest() -> None:
    day_min = 24 * 60
    rows = [
        _glucose(0, 100),
        _glucose(day_min - 1, 110),
        _glucose(day_min + 1, 120),
        _glucose(180 * 365 * day_min, 90),
    ]
    taken = _ingest(clock=lambda: START).take(_batch(rows), "meter")
    assert list(taken.observations["value"]) == [100.0, 110.0]
    assert _fates(taken)["dropped", "date in the future"] == 2
    shifted = _ingest().take(_batch(rows), "meter")  # whose records may lie in the future
    assert len(shifted.observations) == 4


def test_a_backlog_that_drains_after_an_outage_keeps_its_times() -> None:
    ingest, outage_min = _ingest(), 20
    minutes = [second / 60 for second in range(60 + 60 * outage_min)]
    for minute in minutes[:60]:  # a row a second, as it is made
        ingest.take(_batch([_glucose(minute, 100)]), "gateway", START + pd.Timedelta(minutes=minute))
    now, held = START + pd.Timedelta(minutes=1 + outage_min), minutes[60:]
    for begin in range(0, len(held), 20):
        part = held[begin : begin + 20]
        taken = ingest.take(_batch([_glucose(minute, 100) for minute in part]), "gateway", now)
        expected = [START + pd.Timedelta(minutes=minute) for minute in part]
        moved = taken.observations["time"] - pd.Series(expected)
        assert moved.abs().max() < pd.Timedelta("1ms")
        assert ("fixed", "device clock off, time moved") not in _fates(taken)
        now += pd.Timedelta("0.25s")
