"""What a continuous glucose sensor makes of interstitial glucose: error, drift, gaps, limits.

Sources (details and deviations in docs/physiology.md):
- G6: M. Vettoretti et al., 41st IEEE EMBC (2019), tables 1 and 2; its two AR(2) noises (common and
  sensor-specific) are added.
- G5: M. Vettoretti et al., IEEE Trans. Biomed. Eng. 65:1281-1290 (2018), tables 1 and 2.
- NAVIGATOR: M. Breton and B. Kovatchev, J. Diabetes Sci. Technol. 2:853-862 (2008), AR(1) noise
  made non-Gaussian by a Johnson transform.

Letters: T moments on the five-minute grid, P people, K values in a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from twin.physiology.hovorka import Array

GRID_MIN = 5
MINUTES_PER_DAY = 1440
BURN_IN = 100
LOWEST_MG_DL, HIGHEST_MG_DL = 40.0, 400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Autoregressive noise: `coefficients` of the past values, `variance` of the innovations."""

    coefficients: tuple[float, ...]
    variance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensor:
    """One make of sensor.

    Attributes:
        noise: additive noises (mg/dL), each drawn every `noise_step_min` minutes.
        noise_step_min: 5, or 15 with linear interpolation between.
        johnson: lambda, xi, gamma, delta of an unbounded Johnson transform of the noise.
        gain, offset_mg_dl: polynomials in the days since insertion or calibration.
        calibration_days: time between calibrations by the user; None for none after insertion.
        gain_sd: between single sensors (our assumption).
        session_days: life of a sensor.
        warm_up_min: minutes without values after insertion.
    """

    noise: tuple[Noise, ...]
    noise_step_min: int = 5
    johnson: tuple[float, float, float, float] | None = None
    gain: tuple[float, float, float] = (1.0, 0.0, 0.0)
    offset_mg_dl: tuple[float, float, float] = (0.0, 0.0, 0.0)
    calibration_days: float | None = None
    gain_sd: float = 0.03
    session_days: float = 10.0
    warm_up_min: float = 120.0


G6 = Sensor(
    noise=(
        Noise(coefficients=(1.220, -0.331), variance=3.641),
        Noise(coefficients=(1.34, -0.492), variance=5.538),
    ),
    gain=(1.048, -0.033, 0.002),
    offset_mg_dl=(-6.398, 6.179, -0.448),
)
G5 = Sensor(
    noise=(Noise(coefficients=(1.27, -0.42), variance=7.64),),
    gain=(1.04, 0.02, 0.0),
    offset_mg_dl=(-8.75, 0.0, 0.0),
    calibration_days=0.5,
    session_days=7.0,
)
NAVIGATOR = Sensor(
    noise=(Noise(coefficients=(0.7,), variance=0.49),),
    noise_step_min=15,
    johnson=(15.96, -5.471, -0.5444, 1.6898),
    session_days=14.0,
    warm_up_min=60.0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorError:
    """Reading = gain_TP * interstitial + offset_TP (mg/dL), lost where `missing_TP`."""

    gain_TP: Array
    offset_TP: Array
    missing_TP: NDArray[np.bool_]


def draw_error(
    sensor: Sensor,
    shape_TP: tuple[int, int],
    scale: float,
    gaps_per_day: float,
    gap_min: float,
    rng: np.random.Generator,
) -> SensorError:
    """The error of P people's sensors over T moments, five minutes apart.

    Args:
        sensor: the make.
        shape_TP: (T, P).
        scale: factor on noise and offset; the published models were identified around the mean
            glucose of people with type 1 diabetes, and a sensor errs less at lower glucose.
        gaps_per_day: expected number of losses of signal.
        gap_min: their mean length (exponential).
        rng: the only source of chance.
    """
    age_days_TP, fresh_TP = _age(sensor, shape_TP, rng)
    drift_days_TP = age_days_TP if sensor.calibration_days is None else age_days_TP % sensor.calibration_days
    gain_TP = _polynomial(sensor.gain, drift_days_TP) + _per_session(fresh_TP, sensor.gain_sd, rng)
    offset_TP = _polynomial(sensor.offset_mg_dl, drift_days_TP) + draw_noise(sensor, shape_TP, rng)
    warming_TP = age_days_TP * MINUTES_PER_DAY < sensor.warm_up_min
    lost_TP = draw_gaps(shape_TP, gaps_per_day, gap_min, rng)
    return SensorError(gain_TP=gain_TP, offset_TP=scale * offset_TP, missing_TP=warming_TP | lost_TP)


def draw_noise(sensor: Sensor, shape_TP: tuple[int, int], rng: np.random.Generator) -> Array:
    """Additive noise (mg/dL) of shape (T, P) from its stationary distribution."""
    moments, people = shape_TP
    every = sensor.noise_step_min // GRID_MIN
    nodes = -(-moments // every) + 1
    noise = np.zeros((nodes, people))
    for part in sensor.noise:
        noise += autoregressive(part.coefficients, part.variance**0.5, (nodes, people), rng)
    if sensor.johnson is not None:
        scale, shift, gamma, delta = sensor.johnson
        noise = shift + scale * np.sinh((noise - gamma) / delta)
    return _interpolated(noise, every)[:moments]


def draw_gaps(
    shape_TP: tuple[int, int], per_day: float, mean_min: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """True within losses that begin at random and last exponentially long."""
    begins_TP = rng.random(shape_TP) < per_day * GRID_MIN / MINUTES_PER_DAY
    length_TP = np.ceil(rng.exponential(mean_min / GRID_MIN, shape_TP))
    moment_T1 = np.arange(shape_TP[0])[:, None]
    ends_TP = np.where(begins_TP, moment_T1 + length_TP, 0.0)
    return np.asarray(np.maximum.accumulate(ends_TP, axis=0) > moment_T1)


def autoregressive(
    coefficients: tuple[float, ...], sd: float, shape_KP: tuple[int, int], rng: np.random.Generator
) -> Array:
    """Autoregressive series along K, settled, with innovations of standard deviation `sd`."""
    innovations = rng.normal(0.0, sd, (shape_KP[0] + BURN_IN, shape_KP[1]))
    settled = lfilter([1.0], [1.0, *(-c for c in coefficients)], innovations, axis=0)
    return np.asarray(settled[BURN_IN:], dtype=np.float64)


def _age(
    sensor: Sensor, shape_TP: tuple[int, int], rng: np.random.Generator
) -> tuple[Array, NDArray[np.bool_]]:
    moments, people = shape_TP
    days_T1 = np.arange(moments)[:, None] * (GRID_MIN / MINUTES_PER_DAY)
    age_TP = np.mod(days_T1 + rng.uniform(0.0, sensor.session_days, people), sensor.session_days)
    fresh_TP = np.diff(age_TP, axis=0, prepend=np.inf) < 0.0
    return age_TP, np.asarray(fresh_TP)


def _per_session(fresh_TP: NDArray[np.bool_], sd: float, rng: np.random.Generator) -> Array:
    """One normal value per sensor and person, constant while the sensor lives."""
    session_TP: NDArray[np.int64] = np.cumsum(fresh_TP, axis=0, dtype=np.int64)
    drawn_KP = rng.normal(0.0, sd, (int(session_TP.max()) + 1, fresh_TP.shape[1]))
    return np.asarray(np.take_along_axis(drawn_KP, session_TP, axis=0))


def _polynomial(coefficients: tuple[float, float, float], x_TP: Array) -> Array:
    constant, linear, quadratic = coefficients
    return constant + x_TP * (linear + quadratic * x_TP)


def _interpolated(nodes_KP: Array, every: int) -> Array:
    weight = (np.arange(every) / every)[None, :, None]
    between = nodes_KP[:-1, None] * (1.0 - weight) + nodes_KP[1:, None] * weight
    return np.asarray(between.reshape(-1, nodes_KP.shape[1]))
