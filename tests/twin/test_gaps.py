"""Gaps are filled within limits, on the line, and marked."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from twin.gaps import fill

START = pd.Timestamp("2024-03-01T00:00:00Z")


def _observations(
    minutes: list[int], values: list[float], signal: str = "glucose", quality: str = ""
) -> pd.DataFrame:
    time = pd.Series(START + pd.to_timedelta(minutes, unit="min")).dt.as_unit("us")
    frame = pd.DataFrame(
        {"patient_id": "a", "signal": signal, "time": time, "value": np.array(values, dtype=float)}
    )
    return frame.assign(source="cgm", quality=quality)


def test_a_gap_within_the_limit_is_filled_on_the_line_and_counted() -> None:
    before = _observations([0, 5, 25, 30], [100, 110, 150, 150])
    both, counts = fill(before)
    filled = both[both["quality"] == "filled"]
    assert ((filled["time"] - START).dt.total_seconds() / 60).tolist() == [10, 15, 20]
    assert filled["value"].tolist() == pytest.approx([120, 130, 140])
    pd.testing.assert_frame_equal(both[both["quality"] == ""].reset_index(drop=True), before)
    assert counts[["fate", "rows"]].to_numpy().tolist() == [["filled", 3]]


@pytest.mark.parametrize(
    "observations",
    [
        _observations([0, 5, 40, 45], [100, 110, 150, 150]),  # longer than the limit
        _observations([0, 5, 11, 16], [100, 110, 150, 150]),  # no gap
        _observations([0, 5, 25, 30], [1, 1, 1, 1], signal="insulin_bolus"),
        _observations([0, 5, 25, 30], [1, 1, 1, 1], signal="insulin_basal"),
        _observations([0, 5, 25, 30], [100, 110, 150, 150], quality="spike"),
        _observations([], []),
    ],
)
def test_what_is_no_gap_or_too_long_or_suspect_stays_as_it_is(observations: pd.DataFrame) -> None:
    both, counts = fill(observations)
    pd.testing.assert_frame_equal(both, observations, check_dtype=len(observations) > 0)
    assert counts.empty


def test_nothing_is_filled_between_two_patients_or_signals() -> None:
    two = pd.concat(
        [_observations([0], [100]), _observations([10], [90]).assign(patient_id="b")], ignore_index=True
    )
    assert len(fill(two)[0]) == 2


def test_a_site_with_another_step_is_filled_by_its_own() -> None:
    quarter_hourly = _observations([0, 15, 30, 60], [100, 110, 120, 140])
    both, _ = fill(quarter_hourly, {"glucose": 15})
    assert both.loc[both["quality"] == "filled", "value"].tolist() == [130]
    assert np.isfinite(both["value"]).all()
