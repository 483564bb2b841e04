"""The store: every row once, positions with their rows, what is read is what cleaning would keep."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.stored import KEY, batch, frame, minutes
from twin import ingested as form
from twin.cleaning import clean, step_minutes
from twin.signals import SIGNALS
from twin.store import Store, StoreError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store.duckdb", KEY) as made:
        yield made


def rows_of(store: Store, **options: object) -> list[tuple[str, str, float, float]]:
    found = store.site("s", purpose="care", **options).observations
    minute = (found["time"] - minutes(0)).dt.total_seconds() / 60
    return list(zip(found["patient_id"], found["signal"], minute, found["value"], strict=True))


def summed(store: Store) -> dict[tuple[str, str], int]:
    return store.counts().groupby(["fate", "reason"])["rows"].sum().to_dict()


def test_rows_come_back_sorted_and_typed_however_they_came(store: Store) -> None:
    store.commit(batch(("b", "glucose", 5, 90), ("a", "heart_rate", 1, 70), position="1"))
    store.commit(batch(("b", "glucose", 0, 80), ("a", "glucose", 2, 100), position="2"))
    site = store.site("ward", purpose="care")
    assert rows_of(store) == [
        ("a", "glucose", 2, 100),
        ("a", "heart_rate", 1, 70),
        ("b", "glucose", 0, 80),
        ("b", "glucose", 5, 90),
    ]
    assert {name: str(dtype) for name, dtype in site.observations.dtypes.items()} == {
        "patient_id": "str", "signal": "str", "time": "datetime64[us, UTC]", "value": "float64",
        "source": "str", "quality": "str",
    }  # fmt: skip
    assert site.name == "ward"
    assert list(site.patients.index) == ["a", "b"]
    assert (store.position("cgm"), store.position("another")) == ("2", "")


def test_a_batch_that_is_delivered_again_changes_nothing_and_is_counted(store: Store) -> None:
    first = batch(("a", "glucose", 0, 90), ("a", "insulin_bolus", 0, 2), position="1")
    assert len(store.commit(first).observations) == 2
    again = store.commit(first)
    assert (len(again.observations), again.duplicates) == (0, 2)
    assert len(rows_of(store)) == 2
    assert summed(store) == {("kept", ""): 2, ("dropped", "duplicate"): 2}


def test_a_later_value_of_the_same_source_is_a_correction(store: Store) -> None:
    store.commit(batch(("a", "glucose", 0, 90), ("a", "insulin_bolus", 0, 2)))
    done = store.commit(batch(("a", "glucose", 0, 95), ("a", "insulin_bolus", 0, 3)))
    assert done.corrected == 2
    assert rows_of(store) == [("a", "glucose", 0, 95), ("a", "insulin_bolus", 0, 3)]
    assert summed(store) == {
        ("kept", ""): 2, ("dropped", "replaced by a correction"): 2, ("fixed", "corrected"): 2,
    }  # fmt: skip


def test_sources_are_merged_as_cleaning_merges_rows(store: Store) -> None:
    streams = (("a", "glucose", 90), ("a", "insulin_bolus", 2), ("b", "insulin_basal", 1))
    rows = [
        (patient, signal, minute, value + step, f"feed/{source}")
        for patient, signal, value in streams
        for minute in (0, 5)
        for source, step in (("one", 0.0), ("two", 4.0), ("three", 1.0))
    ]  # fmt: skip
    store.commit(batch(*rows))
    store.commit(batch(*rows))
    raw = frame(("patient_id", "signal", "time", "value"), [(p, s, minutes(m), v) for p, s, m, v, _ in rows])
    wanted = clean(raw.assign(unit=raw["signal"].map(lambda name: SIGNALS[name].unit))).observations
    site = store.site("s", purpose="care")
    found = site.observations
    assert site.step_min == step_minutes(found)
    pd.testing.assert_frame_equal(
        found[["patient_id", "signal", "time", "value"]], wanted[["patient_id", "signal", "time", "value"]]
    )


def test_withdrawn_rows_go_if_their_own_feed_brought_them(store: Store) -> None:
    store.commit(batch(("a", "glucose", 0, 90, "cgm/1"), ("a", "glucose", 5, 91, "cgm/1")))
    store.commit(batch(("a", "glucose", 0, 99, "lab"), feed="lab"))
    done = store.commit(batch(withdrawn=[("a", "glucose", 0), ("a", "glucose", 77), ("nobody", "spo2", 0)]))
    assert done.withdrawn == 1
    assert rows_of(store) == [("a", "glucose", 0, 99), ("a", "glucose", 5, 91)]
    assert summed(store)["withdrawn", "taken back by its source"] == 1
    store.commit(batch(("a", "glucose", 0, 92, "cgm/1"), withdrawn=[("a", "glucose", 0)]))
    assert rows_of(store)[0] == ("a", "glucose", 0, (92 + 99) / 2)


def test_suspect_rows_are_read_only_when_asked_for(store: Store) -> None:
    store.commit(batch(("a", "glucose", 0, 90), ("a", "glucose", 5, 400, "cgm", "spike")))
    site = store.site("s", purpose="care")
    assert len(site.observations) == 1
    assert site.quality.dropped == {"marked: spike": 1}
    assert list(store.site("s", purpose="care", marked=True).observations["quality"]) == ["", "spike"]


def test_marks_change_with_what_comes_later_and_count_only_stored_rows(store: Store) -> None:
    rows = [("a", "glucose", 0, 90, "cgm", "drift"), ("a", "glucose", 5, 400, "cgm", "spike")]
    store.commit(batch(*rows))
    store.commit(batch(*rows))
    assert summed(store) == {
        ("kept", ""): 2, ("dropped", "duplicate"): 2, ("marked", "drift"): 1, ("marked", "spike"): 1,
    }  # fmt: skip
    store.commit(batch(remarked=[("a", "glucose", 5, "cgm", ""), ("a", "glucose", 6, "cgm", "jump")]))
    assert rows_of(store) == [("a", "glucose", 5, 400)]
    store.commit(batch(withdrawn=[("a", "glucose", 0)]))
    assert summed(store).get(("marked", "drift"), 0) == 0
    assert list(store.site("s", purpose="care", marked=True).observations["quality"]) == [""]


def test_questions_are_narrowed_to_patients_and_times(store: Store) -> None:
    store.commit(batch(*((patient, "glucose", m, 100) for patient in "abc" for m in range(3))))
    assert rows_of(store, patients=["b"], since=minutes(1)) == [
        ("b", "glucose", 1, 100),
        ("b", "glucose", 2, 100),
    ]
    assert list(store.site("s", purpose="care", patients=["b", "x"]).patients.index) == ["b"]


def test_the_last_fact_holds_and_numbers_are_numbers(store: Store) -> None:
    store.commit(batch(facts=[("a", "birth_year", "1970"), ("a", "sex", "F"), ("b", "birth_year", "1980")]))
    store.commit(batch(facts=[("a", "birth_year", "1971"), ("a", "birth_year", "1972")]))
    patients = store.patients()
    assert list(patients["birth_year"]) == [1972.0, 1980.0]
    assert patients.loc["a", "sex"] == "F"
    assert pd.isna(patients.loc["b", "sex"])


ASIDE = ("a", "2024-03-01T08:00:00Z", "loinc", "9-9", "5.5", "mg", "d", "unknown code")


def test_quarantine_is_counted_once_and_leaves_with_the_commit_of_what_it_became(store: Store) -> None:
    other = (*ASIDE[:3], "8-8", *ASIDE[4:])
    store.commit(batch(quarantine=[ASIDE, ASIDE, other], position="7"))
    store.commit(batch(quarantine=[ASIDE], position="8"))
    assert list(store.quarantine()[["code", "rows"]].itertuples(index=False, name=None)) == [
        ("8-8", 1),
        ("9-9", 1),
    ]
    assert summed(store) == {("quarantined", "unknown code"): 2, ("dropped", "duplicate"): 2}
    (waiting,) = store.requeue([("loinc", "9-9")])
    assert [str(waiting[name].iloc[0]) for name in ("feed", *form.QUARANTINE)] == ["cgm", *ASIDE]
    assert len(store.quarantine()) == 2
    store.commit(batch(("a", "glucose", 0, 99)), requeued=waiting)
    assert list(store.quarantine()["code"]) == ["8-8"]
    assert store.position("cgm") == "8"
    assert summed(store)["quarantined", "unknown code"] == 1


def test_a_batch_of_another_form_is_refused_and_leaves_all_as_it_was(store: Store) -> None:
    good = batch(("a", "glucose", 0, 90), position="1")
    naive = good.observations.assign(time=good.observations["time"].dt.tz_localize(None))
    nan = good.observations.assign(value=np.nan)
    for wrong in (
        naive,
        nan,
        good.observations.drop(columns="quality"),
        good.observations.assign(signal=None),
    ):
        with pytest.raises(StoreError):
            store.commit(form.Ingested(**{**_fields(good), "observations": wrong}))
    assert (rows_of(store), store.position("cgm"), len(store.patients())) == ([], "", 0)
    store.commit(good)
    assert len(rows_of(store)) == 1


def test_everything_is_there_after_closing_and_opening(tmp_path: Path) -> None:
    path = tmp_path / "store.duckdb"
    with Store.create(path, KEY) as store:
        store.commit(batch(("a", "glucose", 0, 90), facts=[("a", "sex", "F")], position="1"))
        store.keep_model("a", "glucose", b"weights")
        store.keep_model("", "site", b"more")
    with Store.open(path, KEY) as store:
        assert store.commit(batch(("a", "glucose", 0, 90), position="1")).duplicates == 1
        assert store.model("a", "glucose") == b"weights"
        assert store.model("a", "site") is None
        assert list(store.models()["patient_id"]) == ["", "a"]
    with pytest.raises(StoreError, match="closed"):
        store.counts()


def test_consent_holds_from_the_next_question_on(store: Store) -> None:
    store.commit(batch(("a", "glucose", 0, 90), ("b", "glucose", 0, 91)))

    def research() -> list[str]:
        site = store.site("s", purpose="research")
        assert set(site.observations["patient_id"]) == set(site.patients.index)
        return list(site.patients.index)

    assert research() == []
    store.consent("a", True, minutes(0))
    assert research() == ["a"]
    store.consent("a", False, minutes(-100))
    assert research() == []
    store.presume_consent(True)
    assert research() == ["b"]
    assert list(store.consents()["since"]) == [minutes(-100)]
    assert len(store.site("s", purpose="care").patients) == 2
    with pytest.raises(StoreError, match="pseudonym"):
        store.consent("unknown", True, minutes(0))


ROW = st.tuples(
    st.sampled_from("ab"),
    st.sampled_from(["glucose", "insulin_bolus", "insulin_basal"]),
    st.integers(0, 4),
    st.integers(1, 3).map(lambda value: 10.0 * value),
    st.sampled_from(["cgm/1", "cgm/2"]),
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(ROW, max_size=6), max_size=5), again=st.booleans())
def test_the_store_is_a_dictionary_of_the_last_values(
    batches: list[list[tuple[str, str, int, float, str]]],
    again: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The oracle keeps one value per (patient, signal, time, source), and merges sources by kind."""
    path = tmp_path_factory.mktemp("s") / "store.duckdb"
    values: dict[tuple[str, str, int, str], float] = {}
    with Store.create(path, KEY) as store:
        for number, rows in enumerate(batches):
            store.commit(batch(*rows, position=str(number)))
            if again:
                last = {row[:3] + row[4:]: row for row in rows}
                assert len(store.commit(batch(*last.values(), position=str(number))).observations) == 0
            values |= {(p, s, m, source): value for p, s, m, value, source in rows}
        if again:
            store.compact()
        moments = sorted({key[:3] for key in values})
        wanted = [(*key, _merged(key, values)) for key in moments]
        assert rows_of(store) == wanted
        counts = store.counts()
        given_rows = sum(len(rows) for rows in batches)
        if not again:
            assert counts.loc[counts["fate"].isin(["kept", "dropped"]), "rows"].sum() == given_rows
        assert counts.loc[counts["fate"] == "kept", "rows"].sum() == len(values)


def _merged(key: tuple[str, str, int], values: dict[tuple[str, str, int, str], float]) -> float:
    found = [values[(*key, source)] for source in ("cgm/1", "cgm/2") if (*key, source) in values]
    if key[1] == "insulin_bolus":
        return sum(found)
    if key[1] == "insulin_basal":  # the store cannot know which of two sources was later: the newer source
        order = list(dict.fromkeys(source for *_, source in values))
        return values[(*key, max((s for s in order if (*key, s) in values), key=order.index))]
    return float(np.median(found))


def _fields(ingested: form.Ingested) -> dict[str, object]:
    return {name: getattr(ingested, name) for name in ingested.__dataclass_fields__}


def test_a_fork_does_not_use_the_store(store: Store) -> None:
    child = os.fork()
    if not child:
        try:
            store.counts()
        except StoreError:
            os._exit(7)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert len(store.counts()) == 0
