"""The laws of the privacy ledger."""

from __future__ import annotations

import math
import pickle
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.errors import CODES, ClientError
from client.ledger import Ledger
from privacy.accounting import GaussianRelease, calibrate, epsilon

DELTA = 1e-4
BASE, OTHER_BASE = "a" * 64, "b" * 64
EIGHT = GaussianRelease(noise_multiplier=calibrate(8.0, DELTA, 1.0, 20), sampling_rate=1.0, steps=20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "site" / "ledger.sqlite"


def refused(code: str, call: Callable[[], object]) -> None:
    with pytest.raises(ClientError) as caught:
        call()
    assert caught.value.code == code


def state(path: Path) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    with closing(sqlite3.connect(path)) as sql:
        return sql.execute("SELECT * FROM plans").fetchall(), sql.execute("SELECT * FROM rounds").fetchall()


def test_a_round_is_reserved_computed_completed_and_then_answered_from_the_ledger(path: Path) -> None:
    with Ledger(path, ceiling_epsilon=8.0, delta=DELTA) as ledger:
        ledger.open_plan("p", EIGHT, terms='{"rounds":20}')
        assert ledger.reserve("p", 1, BASE, 1) is None
        assert ledger.cached("p", 1, BASE) is None
        ledger.complete("p", 1, BASE, b"release")
        assert ledger.reserve("p", 1, BASE, 1) == b"release"
    with Ledger(path, ceiling_epsilon=8.0, delta=DELTA) as ledger:
        assert ledger.cached("p", 1, BASE) == b"release"
        assert ledger.cached("p", 1, OTHER_BASE) is None
        (entry,) = ledger.plans()
        assert (entry.release, entry.terms) == (EIGHT, '{"rounds":20}')
        assert (entry.steps_reserved, entry.rounds_reserved, entry.rounds_complete) == (1, 1, 1)


def test_a_plan_is_charged_whole_and_once_and_plans_compose(path: Path) -> None:
    with Ledger(path, ceiling_epsilon=None, delta=DELTA) as ledger:
        assert ledger.spent() == 0.0
        for _ in range(3):
            ledger.open_plan("one", EIGHT)
            assert ledger.spent() == epsilon([EIGHT], DELTA) <= 8.0
        ledger.open_plan("two", EIGHT)
        assert ledger.spent() == epsilon([EIGHT, EIGHT], DELTA)
        assert ledger.spent(1e-6) > ledger.spent()


def test_a_plan_over_the_ceiling_is_refused_and_leaves_no_trace(path: Path) -> None:
    with Ledger(path, ceiling_epsilon=12.0, delta=DELTA) as ledger:
        ledger.open_plan("one", EIGHT)
        before = state(path)
        refused("budget_exhausted", lambda: ledger.open_plan("two", EIGHT))
        assert state(path) == before
        refused("plan_unknown", lambda: ledger.reserve("two", 1, BASE, 1))
        small = GaussianRelease(noise_multiplier=20.0, sampling_rate=1.0, steps=20)
        ledger.open_plan("small", small)
        assert ledger.spent() == epsilon([EIGHT, small], DELTA) <= 12.0


def test_a_lower_ceiling_later_refuses_new_plans_and_keeps_old_ones_running(path: Path) -> None:
    with Ledger(path, ceiling_epsilon=20.0, delta=DELTA) as ledger:
        ledger.open_plan("one", EIGHT)
    with Ledger(path, ceiling_epsilon=1.0, delta=DELTA) as ledger:
        ledger.open_plan("one", EIGHT)
        assert ledger.reserve("one", 1, BASE, 1) is None
        refused("budget_exhausted", lambda: ledger.open_plan("two", EIGHT))


def test_a_plan_without_noise_costs_without_bound_and_no_ceiling_admits_it(path: Path) -> None:
    bare = GaussianRelease(noise_multiplier=0.0, sampling_rate=1.0, steps=20)
    with Ledger(path, ceiling_epsilon=1e6, delta=DELTA) as ledger:
        refused("budget_exhausted", lambda: ledger.open_plan("bare", bare))
    with Ledger(path, ceiling_epsilon=None, delta=DELTA) as ledger:
        ledger.open_plan("bare", bare)
        assert ledger.spent() == math.inf
    with Ledger(path, ceiling_epsilon=1e6, delta=DELTA) as ledger:
        refused("budget_exhausted", lambda: ledger.open_plan("one", EIGHT))


def test_the_same_plan_with_another_schedule_is_refused(path: Path) -> None:
    with Ledger(path, ceiling_epsilon=None, delta=DELTA) as ledger:
        ledger.open_plan("p", EIGHT)
        before = state(path)
        more = GaussianRelease(noise_multiplier=EIGHT.noise_multiplier, sampling_rate=1.0, steps=21)
        refused("plan_differs", lambda: ledger.open_plan("p", more))
        assert state(path) == before


def test_a_round_on_another_base_is_refused_before_and_after_it_is_complete(path: Path) -> None:
    with Ledger(path, ceiling_epsilon=None, delta=DELTA) as ledger:
        ledger.open_plan("p", EIGHT)
        ledger.reserve("p", 1, BASE, 1)
        before = state(path)
        refused("round_repeated_on_other_base", lambda: ledger.reserve("p", 1, OTHER_BASE, 1))
        refused("round_repeated_on_other_base", lambda: ledger.complete("p", 1, OTHER_BASE, b"x"))
        assert state(path) == before
        ledger.complete("p", 1, BASE, b"x")
        refused("round_repeated_on_other_base", lambda: ledger.reserve("p", 1, OTHER_BASE, 1))


def test_rounds_may_not_take_more_steps_than_were_charged(path: Path) -> None:
    with Ledger(path, ceiling_epsilon=None, delta=DELTA) as ledger:
        ledger.open_plan("p", EIGHT)
        ledger.reserve("p", 1, BASE, 15)
        before = state(path)
        refused("steps_exceeded", lambda: ledger.reserve("p", 2, BASE, 6))
        refused("plan_differs", lambda: ledger.reserve("p", 1, BASE, 1))
        refused("malformed", lambda: ledger.reserve("p", 2, BASE, -1))
        assert state(path) == before
        assert ledger.reserve("p", 2, BASE, 5) is None


def test_a_release_is_never_replaced(path: Path) -> None:
    with Ledger(path, ceiling_epsilon=None, delta=DELTA) as ledger:
        ledger.open_plan("p", EIGHT)
        refused("round_unknown", lambda: ledger.complete("p", 1, BASE, b"x"))
        ledger.reserve("p", 1, BASE, 1)
        ledger.complete("p", 1, BASE, b"x")
        ledger.complete("p", 1, BASE, b"x")
        refused("release_differs", lambda: ledger.complete("p", 1, BASE, b"y"))
        assert ledger.cached("p", 1, BASE) == b"x"


calls = st.one_of(
    st.tuples(st.just("open"), st.sampled_from("pq"), st.sampled_from([1, 2, 3])),
    st.tuples(st.just("reserve"), st.sampled_from("pq"), st.integers(0, 3), st.sampled_from("ab")),
    st.tuples(st.just("complete"), st.sampled_from("pq"), st.integers(0, 3), st.sampled_from("ab")),
    st.tuples(st.just("reopen")),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(calls, max_size=25))
def test_after_any_calls_spending_is_under_the_ceiling_and_every_round_has_one_base(
    tmp_path_factory: pytest.TempPathFactory, sequence: list[tuple[object, ...]]
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    first_base: dict[tuple[object, object], object] = {}
    ledger = Ledger(path, ceiling_epsilon=3.0, delta=DELTA)
    for call in sequence:
        spent = ledger.spent()
        try:
            match call:
                case ("open", plan, steps):
                    ledger.open_plan(
                        str(plan),
                        GaussianRelease(noise_multiplier=2.0, sampling_rate=1.0, steps=int(str(steps))),
                    )
                case ("reserve", plan, number, base):
                    ledger.reserve(str(plan), int(str(number)), str(base), 1)
                    assert first_base.setdefault((plan, number), base) == base
                case ("complete", plan, number, base):
                    ledger.complete(str(plan), int(str(number)), str(base), f"{plan}{number}".encode())
                    assert first_base[plan, number] == base
                case _:
                    ledger.close()
                    ledger = Ledger(path, ceiling_epsilon=3.0, delta=DELTA)
        except ClientError:
            assert ledger.spent() == spent
        assert spent <= ledger.spent() <= 3.0
        assert all(entry.steps_reserved <= entry.release.steps for entry in ledger.plans())
    assert sum(entry.rounds_reserved for entry in ledger.plans()) == len(first_base)
    ledger.close()


def test_only_its_owner_may_read_a_new_ledger(path: Path) -> None:
    with Ledger(path, ceiling_epsilon=None, delta=DELTA):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_is_no_ledger_or_of_a_later_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_bytes(b"not a database" * 500)
    refused("ledger_unreadable", lambda: Ledger(text, ceiling_epsilon=None, delta=DELTA))
    assert text.read_bytes() == b"not a database" * 500
    later = tmp_path / "later.sqlite"
    with Ledger(later, ceiling_epsilon=None, delta=DELTA) as ledger:
        ledger.open_plan("p", EIGHT)
    with closing(sqlite3.connect(later)) as sql:
        sql.execute("PRAGMA user_version = 99")
    refused("ledger_unreadable", lambda: Ledger(later, ceiling_epsilon=None, delta=DELTA))


def test_a_delta_or_ceiling_that_makes_no_sense_is_refused(path: Path) -> None:
    refused("malformed", lambda: Ledger(path, ceiling_epsilon=None, delta=0.0))
    refused("malformed", lambda: Ledger(path, ceiling_epsilon=-1.0, delta=DELTA))
    refused("malformed", lambda: Ledger(path, ceiling_epsilon=math.nan, delta=DELTA))
    assert not path.exists()


def test_an_error_keeps_its_code_across_processes_and_knows_only_listed_codes() -> None:
    error = pickle.loads(pickle.dumps(ClientError("budget_exhausted", "Nothing is left.")))
    assert (error.code, str(error)) == ("budget_exhausted", "Nothing is left. [budget_exhausted]")
    assert list(CODES) == sorted(set(CODES))
    with pytest.raises(ValueError, match="Unknown error code"):
        ClientError("patient_17_is_odd", "")
