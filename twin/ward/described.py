"""One patient's twin out of the ward's arrays.

Letters: S signals that were ever read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from twin.alerts.alert import Alert, moment
from twin.signals import SIGNALS
from twin.ward.measures import NORM_HOURS, device, unusual
from twin.ward.norm import block_of, usual
from twin.ward.pairs import SENSOR, Pairs
from twin.ward.paths import Paths
from twin.ward.state import State
from twin.ward.twin import Ahead, Device, Reading, Twin

_MIN_US = 60_000_000


def described(
    state: State,
    pairs: Pairs,
    paths: Mapping[str, Paths],
    alerts: tuple[Alert, ...],
    patient_id: str,
    row: int,
    now_us: int,
) -> Twin:
    """The twin of the patient in a row."""
    all_S = row * len(state.signals) + np.arange(len(state.signals))
    stream_S = all_S[state["count"][all_S] > 0]
    return Twin(
        patient_id=patient_id,
        now=moment(now_us),
        readings=tuple(_readings(state, stream_S, now_us)),
        devices=tuple(_devices(state, pairs, row, stream_S, now_us)),
        forecasts=tuple(ahead for each in paths.values() for ahead in _ahead(each, patient_id, row)),
        models={name: each.forecaster.model_of(patient_id) for name, each in paths.items()},
        alerts=alerts,
    )


def _readings(state: State, stream_S: np.ndarray, now_us: int) -> Iterator[Reading]:
    beliefs = state.beliefs(stream_S, now_us)
    centre_S, spread_S, hours_S = usual(state.norms(stream_S), block_of(state["time_us"][stream_S]))
    z_S = unusual(state, stream_S)
    for at, stream in enumerate(stream_S):
        name = state.signals[stream % len(state.signals)]
        is_level = bool(state.public.filtered_S[stream % len(state.signals)])
        has_norm = is_level and hours_S[at] >= NORM_HOURS
        time_us = int(state["time_us"][stream])
        yield Reading(
            signal=name,
            unit=SIGNALS[name].unit,
            value=float(state["value"][stream]),
            time=moment(time_us),
            age_min=round((now_us - time_us) / _MIN_US, 2),
            estimate=float(beliefs.level_N[at]) if is_level else None,
            estimate_sd=math.sqrt(float(beliefs.level_var_N[at])) if is_level else None,
            rate_per_h=60.0 * float(beliefs.rate_N[at]) if is_level else None,
            usual=float(centre_S[at]) if has_norm else None,
            usual_sd=float(spread_S[at]) if has_norm else None,
            usual_h=float(hours_S[at]) if has_norm else None,
            unusual=float(z_S[at]) if has_norm else None,
        )


def _devices(state: State, pairs: Pairs, row: int, stream_S: np.ndarray, now_us: int) -> Iterator[Device]:
    told = device(state, stream_S, now_us)
    for at, stream in enumerate(stream_S):
        name = state.signals[stream % len(state.signals)]
        if SIGNALS[name].kind != "level" or SIGNALS[name].step_min is None:
            continue
        noise = float(told["noise"][at])
        session_us = state["session_us"][stream : stream + 1]
        drift = float(pairs.drift(np.array([row]), session_us)[0]) if name == SENSOR else math.nan
        yield Device(
            signal=name,
            flat_min=float(told["flat_min"][at]),
            gap_min=float(told["gap_min"][at]),
            missing_percent=float(told["missing_percent"][at]),
            noise=noise if math.isfinite(noise) else 1.0,
            age_days=float(told["age_days"][at]),
            drift=drift if math.isfinite(drift) else None,
            late=int(state["late"][stream]),
            suspect=int(state["suspect"][stream]),
        )


def _ahead(paths: Paths, patient_id: str, row: int) -> Iterator[Ahead]:
    standing = paths.standing
    if standing is None:
        return
    for at in np.flatnonzero(standing.row_N == row):
        for column, horizon_min in enumerate(paths.horizons_min):
            value = float(standing.middle_NH[at, column])
            low, high = standing.low_NHL[at, column], standing.high_NHL[at, column]
            yield Ahead(
                task=paths.forecaster.task.name,
                model=paths.forecaster.model_of(patient_id),
                made=moment(int(standing.time_us_N[at])),
                horizon_min=horizon_min,
                middle=value if paths.is_path else None,
                probability=None if paths.is_path else value,
                low_80=float(low[0]) if paths.is_path else None,
                high_80=float(high[0]) if paths.is_path else None,
                low_90=float(low[1]) if paths.is_path else None,
                high_90=float(high[1]) if paths.is_path else None,
            )
