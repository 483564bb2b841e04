"""Gaps filled for who asks, within the limits of each signal, and marked as filled; never in what is stored.

A gap is where a stream that comes regularly (`Signal.step_min`, or the step that is given) has no row for
more than one and a half steps. It is filled on the line between its ends, if it is no longer than
`Dynamics.gap_min`; a longer one stays a gap, as does one with a marked row at an end. Doses, rates and counts
are never filled: what is not recorded is not known to have been.

Deviation from filling forward: the line needs the value after the gap, so the newest gap of a live stream is
not filled; a forecast's input must not know it either.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from twin.dynamics import DYNAMICS
from twin.ingested import COUNTS
from twin.signals import SIGNALS

FILLED = "filled"
_US_PER_MIN = 60e6


def fill(
    observations: pd.DataFrame, step_min: Mapping[str, float] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(observations with the rows that fill gaps, quality "filled"; their counts, columns `COUNTS`).

    Args:
        observations: canonical (`twin.site.Site`), sorted by patient, signal and time.
        step_min: minutes between two rows by signal, where it is not the catalogue's (`Site.step_min`).
    """
    steps = {name: entry.step_min for name, entry in SIGNALS.items()} | dict(step_min or {})
    time_us_N = observations["time"].array.as_unit("us").asi8
    stream = observations["patient_id"].eq(observations["patient_id"].shift()) & observations["signal"].eq(
        observations["signal"].shift()
    )
    clean_N = observations["quality"].eq("").to_numpy()
    step_us_N = _by_signal(observations, {name: step or np.nan for name, step in steps.items()})
    most_us_N = _by_signal(observations, {name: entry.gap_min for name, entry in DYNAMICS.items()})
    gap_us_N = np.diff(time_us_N, prepend=time_us_N[:1]).astype(np.float64)
    joined_N = stream.to_numpy() & clean_N & np.roll(clean_N, 1)
    with np.errstate(invalid="ignore"):
        gap_N = joined_N & (gap_us_N > 1.5 * step_us_N) & (gap_us_N <= most_us_N)
    end_G = np.flatnonzero(gap_N)
    parts_G = np.round(gap_us_N[end_G] / step_us_N[end_G]).astype(np.int64)
    gap_F = np.repeat(np.arange(len(end_G)), np.maximum(parts_G - 1, 0))
    place_F = np.arange(len(gap_F)) - np.searchsorted(gap_F, gap_F) + 1
    share_F = place_F / parts_G[gap_F]
    end_F = end_G[gap_F]
    value_N = observations["value"].to_numpy()
    filled = observations.iloc[end_F].assign(
        time=pd.to_datetime(
            (time_us_N[end_F - 1] + share_F * gap_us_N[end_F]).astype(np.int64), unit="us", utc=True
        ).as_unit("us"),
        value=value_N[end_F - 1] + share_F * (value_N[end_F] - value_N[end_F - 1]),
        quality=FILLED,
    )
    both = pd.concat([observations, filled]).sort_values(
        ["patient_id", "signal", "time"], kind="stable", ignore_index=True
    )
    return both, _counts(filled)


def _by_signal(observations: pd.DataFrame, minutes: Mapping[str, float]) -> np.ndarray:
    found: np.ndarray = observations["signal"].map(dict(minutes)).to_numpy(dtype=np.float64) * _US_PER_MIN
    return found


def _counts(filled: pd.DataFrame) -> pd.DataFrame:
    sums = filled.groupby(["patient_id", "signal"], as_index=False).size().rename(columns={"size": "rows"})
    return sums.assign(fate=FILLED, reason="gap within the signal's limit")[list(COUNTS)]
