"""What rules of alerts look at: one number for each patient, NaN where nothing is known.

Letters: N patients' rows, S signals.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from twin.alerts.rules import Rule
from twin.ward.norm import block_of, usual
from twin.ward.pairs import SENSOR, Pairs
from twin.ward.paths import Paths, Standing
from twin.ward.state import State

_MIN_US = 60_000_000
# Below so many hours of a patient's own, nothing is unusual yet.
NORM_HOURS = 12.0
VITAL_SIGNS = (
    "heart_rate",
    "pulse_rate",
    "spo2",
    "respiratory_rate",
    "systolic_bp",
    "diastolic_bp",
    "mean_bp",
    "temperature",
)
_LEAST_SIGNS = 3
# For so long after a compression low is over, it is told of.
_PRESSED_TOLD_MIN = 30.0
_LEAST_READINGS = 24
# Mean square of surprises, in the model's own unit: a smoother record counts as one as smooth as this.
_LEAST_NOISE = 0.1


def measure(
    rule: Rule, state: State, pairs: Pairs, paths: Mapping[str, Paths], row_N: np.ndarray, now_us: int
) -> np.ndarray:
    """The measure of a rule for some patients, N."""
    if rule.kind == "forecast":
        return _forecast(rule, paths.get(rule.of), row_N, now_us)
    if rule.quantity == "joint":
        return joint(state, row_N, now_us, rule.fresh_min)
    if rule.of not in state.signals:
        return np.full(len(row_N), np.nan)
    stream_N = row_N * len(state.signals) + state.signals.index(rule.of)
    age_min = (now_us - state["time_us"][stream_N]) / _MIN_US
    live_N = (state["count"][stream_N] > 0) & (age_min <= rule.fresh_min)
    if rule.kind == "value":
        value_N = state["value"][stream_N]
    elif rule.kind == "anomaly":
        value_N = unusual(state, stream_N)
    else:
        value_N = _device(rule, state, pairs, row_N, stream_N, now_us)
    return np.where(live_N, value_N, np.nan)


def unusual(state: State, stream_N: np.ndarray) -> np.ndarray:
    """Estimate at the last reading minus what is usual, in standard deviations; NaN without a norm."""
    centre_N, spread_N, hours_N = usual(state.norms(stream_N), block_of(state["time_us"][stream_N]))
    sd_N = np.sqrt(np.square(spread_N) + state["level_var"][stream_N])
    known_N = (hours_N >= NORM_HOURS) & (sd_N > 0)
    off_N = state["level"][stream_N] - centre_N
    return np.where(known_N, off_N / np.where(sd_N > 0, sd_N, 1.0), np.nan)


def joint(state: State, row_N: np.ndarray, now_us: int, fresh_min: float) -> np.ndarray:
    """How unusual the fresh vital signs are together, as a standard normal's value; NaN below three.

    The sum of squares of `unusual` over k signs, by Wilson and Hilferty's cube root (1931), as if signs
    were independent: a patient's correlations are not estimated.
    """
    signs = [state.signals.index(name) for name in VITAL_SIGNS if name in state.signals]
    stream_NS = row_N[:, None] * len(state.signals) + np.array(signs, np.int64)
    flat = stream_NS.ravel()
    z_NS = unusual(state, flat).reshape(stream_NS.shape)
    age_NS = (now_us - state["time_us"][flat].reshape(stream_NS.shape)) / _MIN_US
    live_NS = np.isfinite(z_NS) & (age_NS <= fresh_min)
    k_N = live_NS.sum(1)
    total_N = np.where(live_NS, np.square(z_NS), 0.0).sum(1)
    shrink_N = 2.0 / (9.0 * np.maximum(k_N, 1))
    value_N = (np.cbrt(total_N / np.maximum(k_N, 1)) - (1.0 - shrink_N)) / np.sqrt(shrink_N)
    return np.where(k_N >= _LEAST_SIGNS, value_N, np.nan)


def device(state: State, stream_N: np.ndarray, now_us: int) -> dict[str, np.ndarray]:
    """How sensors do: flat_min, gap_min, missing_percent, noise, age_days, pressed; each N."""
    time_us_N = state["time_us"][stream_N]
    gap_N = np.maximum(now_us - time_us_N, 0) / _MIN_US - np.exp(state["log_step"][stream_N])
    past_N = np.maximum(state["noise_past"][stream_N], _LEAST_NOISE)
    enough_N = state["count"][stream_N] >= _LEAST_READINGS
    since_N = (now_us - state["pressed_us"][stream_N]) / _MIN_US
    return {
        "flat_min": (time_us_N - state["equal_since_us"][stream_N]) / _MIN_US,
        "gap_min": np.maximum(gap_N, 0.0),
        "missing_percent": 100.0 * state["missing"][stream_N],
        "noise": np.where(enough_N, state["noise_now"][stream_N] / past_N, np.nan),
        "age_days": (now_us - state["session_us"][stream_N]) / (1440.0 * _MIN_US),
        "pressed": ((since_N >= 0) & (since_N <= _PRESSED_TOLD_MIN)).astype(np.float64),
    }


def _device(
    rule: Rule, state: State, pairs: Pairs, row_N: np.ndarray, stream_N: np.ndarray, now_us: int
) -> np.ndarray:
    if rule.quantity == "drift":
        known = rule.of == SENSOR
        return pairs.drift(row_N, state["session_us"][stream_N]) if known else np.full(len(row_N), np.nan)
    return device(state, stream_N, now_us)[rule.quantity]


def _forecast(rule: Rule, paths: Paths | None, row_N: np.ndarray, now_us: int) -> np.ndarray:
    """The worst of the horizons that the rule looks at, of the standing forecast."""
    value_N = np.full(len(row_N), np.nan)
    if paths is None or paths.standing is None or not len(row_N):
        return value_N
    chosen = np.array(paths.horizons_min) <= rule.within_min
    if not chosen.any() or paths.is_path == (rule.quantity == "probability"):
        return value_N
    standing = paths.standing
    fresh = now_us - standing.time_us_N <= rule.fresh_min * _MIN_US
    path_NH = _quantity(rule.quantity, standing)[:, chosen]
    worst = path_NH.min(1) if rule.side == "below" else path_NH.max(1)
    # The standing rows are in no order: a sorted view of them is looked up.
    order = np.argsort(standing.row_N)
    place = np.minimum(np.searchsorted(standing.row_N[order], row_N), len(order) - 1)
    if not len(order):
        return value_N
    at = order[place]
    return np.where((standing.row_N[at] == row_N) & fresh[at], worst[at], np.nan)


def _quantity(name: str, standing: Standing) -> np.ndarray:
    if name in ("middle", "probability"):
        return standing.middle_NH
    bands = standing.low_NHL if name.startswith("low") else standing.high_NHL
    return np.asarray(bands[..., 0 if name.endswith("80") else 1])
