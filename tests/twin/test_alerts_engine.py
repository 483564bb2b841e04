"""Alerts begin, stay and end by two limits and durations: they never chatter, and nothing ends unseen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twin.alerts.alert import Notice
from twin.alerts.engine import Engine
from twin.alerts.rules import DEFAULT_RULES, Rule, checked, read_rules
from twin.errors import DataError

MIN_US = 60_000_000
START_US = 1_700_000_000_000_000
NAMES = np.array(["p0"], dtype=object)
quick = settings(max_examples=60, deadline=None)
LOW = Rule(
    name="low",
    kind="value",
    quantity="last",
    of="glucose",
    side="below",
    on=70,
    off=80,
    text="low",
    on_for_min=0,
    off_for_min=0,
    silent_min=0,
)
traces = st.lists(
    st.sampled_from([55.0, 69.0, 72.0, 79.0, 85.0, 120.0, float("nan")]), min_size=1, max_size=60
)


def ring(rule: Rule, values: list[float], step_min: float = 5.0) -> tuple[list[Notice], list[bool]]:
    """Every notice, and after each value whether the alert is active."""
    engine = Engine((rule,))
    engine.reserve(1)
    notices, active = [], []
    for turn, value in enumerate(values):
        now_us = START_US + round(turn * step_min * MIN_US)
        notices += engine.step(0, np.array([0]), np.array([value]), now_us, NAMES)
        active.append(bool(engine.alerts(0, "p0", now_us)))
    return notices, active


@given(traces)
@quick
def test_between_the_two_limits_nothing_changes(values: list[float]) -> None:
    _, active = ring(LOW, values)
    for before, after, value in zip([False, *active], active, values, strict=False):
        if 70 <= value < 80 or np.isnan(value):
            assert before == after
        else:
            assert after == (value < 70)


@given(traces, st.floats(0, 20), st.floats(0, 20), st.floats(0, 40))
@quick
def test_an_alert_never_rings_again_within_its_durations_and_silence(
    values: list[float], on_for: float, off_for: float, silent: float
) -> None:
    rule = replace(LOW, on_for_min=on_for, off_for_min=off_for, silent_min=silent)
    notices, _ = ring(rule, values)
    events = [notice.event for notice in notices]
    assert events == (["raised", "resolved"] * len(events))[: len(events)]
    ends = [notice.at for notice in notices if notice.event == "resolved"]
    begins = [notice.at for notice in notices if notice.event == "raised"][1:]
    for end, begin in zip(ends, begins, strict=False):
        assert (begin - end).total_seconds() >= 60 * silent - 1e-3


@given(traces, st.floats(0, 15))
@quick
def test_a_looser_limit_is_active_whenever_a_stricter_one_is(values: list[float], looser: float) -> None:
    _, strict = ring(LOW, values)
    _, loose = ring(replace(LOW, on=70 + looser, off=80 + looser), values)
    assert all(later or not earlier for earlier, later in zip(strict, loose, strict=True))


@given(traces)
@quick
def test_a_patient_rings_the_same_alone_and_among_others(values: list[float]) -> None:
    alone, _ = ring(LOW, values)
    engine = Engine((LOW,))
    engine.reserve(3)
    names = np.array(["a", "p0", "b"], dtype=object)
    among = []
    for turn, value in enumerate(values):
        now_us = START_US + turn * 5 * MIN_US
        found = engine.step(0, np.arange(3), np.array([120.0, value, 55.0]), now_us, names)
        among += [(n.event, n.at) for n in found if n.alert.patient_id == "p0"]
    assert among == [(n.event, n.at) for n in alone]


def test_an_alert_that_nobody_answers_is_told_again_until_somebody_does() -> None:
    engine = Engine((replace(LOW, escalate_min=15),))
    engine.reserve(1)

    def at(minutes: int) -> list[Notice]:
        now_us = START_US + minutes * MIN_US
        return engine.step(0, np.array([0]), np.array([60.0]), now_us, NAMES)

    (raised,) = at(0)
    assert at(10) == []
    (again,) = at(15)
    assert (again.event, again.alert.escalations) == ("escalated", 1)
    told = engine.acknowledge(0, raised.alert.id, "nurse 7", "juice given", START_US + 16 * MIN_US, NAMES)
    assert (told.alert.acknowledged_by, told.alert.why) == ("nurse 7", "juice given")
    assert at(30) == at(45) == []


def test_a_snoozed_alert_is_silent_and_rings_again_if_it_lasts() -> None:
    engine = Engine((replace(LOW, escalate_min=5, snooze_most_min=30),))
    engine.reserve(1)
    step = (0, np.array([0]))
    (raised,) = engine.step(*step, np.array([60.0]), START_US, NAMES)
    with pytest.raises(DataError, match="at most 30 minutes"):
        engine.snooze(0, raised.alert.id, 31, "nurse 7", START_US, NAMES)
    engine.snooze(0, raised.alert.id, 20, "nurse 7", START_US, NAMES)
    assert engine.step(*step, np.array([60.0]), START_US + 19 * MIN_US, NAMES) == []
    (again,) = engine.step(*step, np.array([60.0]), START_US + 20 * MIN_US, NAMES)
    assert (again.event, again.alert.id) == ("raised", raised.alert.id)


def test_what_is_not_known_any_more_lapses_and_says_so() -> None:
    notices, active = ring(replace(LOW, lapse_min=60), [60.0] + [float("nan")] * 12)
    assert [n.event for n in notices] == ["raised", "lapsed"]
    assert active == [True] * 12 + [False]


@given(traces, st.integers(0, 60))
@quick
def test_a_restart_between_two_values_changes_nothing(values: list[float], cut: int) -> None:
    rule = replace(LOW, on_for_min=5, off_for_min=10, silent_min=20, escalate_min=10)
    whole, _ = ring(rule, values)
    engine, notices = Engine((rule,)), []
    engine.reserve(1)
    for turn, value in enumerate(values):
        if turn == cut:
            kept = engine.snapshot(NAMES)
            engine = Engine((rule,))
            engine.reserve(1)
            engine.restore(kept, {"p0": 0})
        now_us = START_US + turn * 5 * MIN_US
        notices += engine.step(0, np.array([0]), np.array([value]), now_us, NAMES)
    assert notices == whole


def test_rules_of_a_site_stand_beside_ours_and_every_fault_is_named_at_once() -> None:
    own = read_rules(
        'off = ["high-glucose"]\n[[rule]]\nname = "low-glucose"\nkind = "value"\nquantity = "last"\n'
        'of = "glucose"\nside = "below"\non = 65\noff = 70\ntext = "low"\n',
        DEFAULT_RULES,
    )
    by_name = {rule.name: rule for rule in own}
    assert "high-glucose" not in by_name
    assert by_name["low-glucose"].on == 65
    assert len(own) == len(DEFAULT_RULES) - 1
    with pytest.raises(DataError) as caught:
        read_rules('[[rule]]\nname = "x"\nkind = 1\nsid = "below"\n')
    for part in ("kind: expected a text", "sid: unknown", "quantity: missing", "on: missing"):
        assert part in str(caught.value)
    with pytest.raises(DataError, match="safe side"):
        checked([replace(LOW, off=60)])
