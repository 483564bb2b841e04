"""Oxygen in the blood from oxygen in the air, and virtual people who become short of it.

    S = 1 / (1 + 23400 / (pO2^3 + 150 pO2))            Severinghaus 1979, J Appl Physiol 46(3):599-602, eq. 1
    PAO2 = FiO2 (PB - 47) - PaCO2 / R                  the alveolar gas equation, R = 0.8, in mmHg
    Sa = S(PAO2) - (Sa - Sv) s / (1 - s)               a share s of the blood passes the lung unoxygenated

Deviations: saturation stands for oxygen content (dissolved oxygen is left out), the difference of arterial
and venous saturation is 0.25 for everybody, blood is at pH 7.4 and 37 Cel. The virtual people are a public
prior of how such records look: no study of patients stands behind their courses, and they validate nothing.

Letters: P people, T moments.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from twin.site import Site

AIR_PCT = 21.0
_PRESSURE_MMHG, _WATER_MMHG, _QUOTIENT = 760.0, 47.0, 0.8
_DIFFERENCE = 0.25
_PACO2_MMHG = 40.0


def saturation(po2_mmhg: np.ndarray) -> np.ndarray:
    """Saturation of haemoglobin, a fraction, at a partial pressure of oxygen (mmHg, at least 0).

    >>> round(float(saturation(np.array(26.8))), 2)
    0.5
    """
    po2 = np.maximum(po2_mmhg, 1e-6)
    return np.asarray(1.0 / (1.0 + 23_400.0 / (po2**3 + 150.0 * po2)))


def alveolar_po2_mmhg(fio2_pct: np.ndarray, paco2_mmhg: np.ndarray) -> np.ndarray:
    """Partial pressure of oxygen in the alveoli at sea level (mmHg)."""
    inspired = fio2_pct / 100.0 * (_PRESSURE_MMHG - _WATER_MMHG)
    return np.maximum(inspired - paco2_mmhg / _QUOTIENT, 0.0)


def arterial_saturation(fio2_pct: np.ndarray, paco2_mmhg: np.ndarray, shunt: np.ndarray) -> np.ndarray:
    """Arterial saturation, a fraction; `shunt` is the share of blood that takes up no oxygen."""
    full = saturation(alveolar_po2_mmhg(fio2_pct, paco2_mmhg))
    return np.clip(full - _DIFFERENCE * shunt / (1.0 - shunt), 0.3, 1.0)


def virtual_respiratory_site(
    generator: np.random.Generator, *, people: int, moments: int, step_min: float, horizon_min: float
) -> Site:
    """People whose breathing and lungs drift and fail for a while, as a site.

    Args:
        people, moments: P, T.
        step_min: minutes between two observations.
        horizon_min: the time in which things happen: episodes last half to eight of it, drifts one to
            forty.
    """
    step = step_min / horizon_min
    fio2_pct = _oxygen(generator, people)
    ventilation = np.exp(
        0.12 * _drift(generator, people, moments, step)
        - _episodes(generator, people, moments, step, 1 / 150, (0.2, 0.9))
    )
    worse = _episodes(generator, people, moments, step, 1 / 60, (0.4, 2.0))
    usual = generator.normal(-2.7, 0.8, (people, 1))
    wandering = generator.uniform(0.1, 0.5, (people, 1)) * _drift(generator, people, moments, step)
    shunt = np.minimum(1.0 / (1.0 + np.exp(-(usual + wandering + worse))), 0.6)
    saturation_pct = 100.0 * arterial_saturation(fio2_pct, _PACO2_MMHG / ventilation, shunt)
    spo2_pct = saturation_pct + generator.uniform(0.3, 1.3, (people, 1)) * generator.normal(
        size=saturation_pct.shape
    )
    short = np.maximum(95.0 - saturation_pct, 0.0)
    charted = generator.random((people, 1)) < 0.5
    return _site(
        {
            "spo2": np.clip(np.round(spo2_pct), 50.0, 100.0),
            "fio2": np.where(charted, fio2_pct, np.nan) + np.zeros_like(spo2_pct),
            "respiratory_rate": np.round(
                _rate(generator, 18.0, 3.0, ventilation.shape) * ventilation + 0.4 * short
            ),
            "heart_rate": np.round(_rate(generator, 84.0, 14.0, ventilation.shape) + short),
        },
        generator.random((people, moments)) > generator.uniform(0.0, 0.25, (people, 1)),
        step_min,
    )


def _oxygen(generator: np.random.Generator, people: int) -> np.ndarray:
    """Inspired oxygen of each, percent, P × 1: room air for half of them."""
    given = np.round(generator.uniform(24.0, 60.0, (people, 1)))
    return np.where(generator.random((people, 1)) < 0.5, AIR_PCT, given)


def _drift(generator: np.random.Generator, people: int, moments: int, step: float) -> np.ndarray:
    """A stationary Gaussian drift of variance one that forgets within one to forty horizons, P × T."""
    memory = np.exp(-step / np.exp(generator.uniform(0.0, np.log(40.0), people)))
    noise = generator.normal(size=(people, moments))
    drift = np.empty_like(noise)
    drift[:, 0] = noise[:, 0]
    for t in range(1, moments):
        drift[:, t] = memory * drift[:, t - 1] + np.sqrt(1.0 - memory**2) * noise[:, t]
    return drift


def _episodes(
    generator: np.random.Generator,
    people: int,
    moments: int,
    step: float,
    per_horizon: float,
    depth: tuple[float, float],
) -> np.ndarray:
    """Bumps that rise and fall as a raised cosine, half a horizon to eight of them long, P × T."""
    at = step * np.arange(moments)
    bumps = np.zeros((people, moments))
    counts_P = generator.poisson(per_horizon * at[-1], people)
    for person in np.repeat(np.arange(people), counts_P):
        middle, half = (
            generator.uniform(0.0, at[-1]),
            0.5 * np.exp(generator.uniform(np.log(0.5), np.log(8.0))),
        )
        inside = np.clip((at - middle) / half, -1.0, 1.0)
        bumps[person] += generator.uniform(*depth) * 0.5 * (1.0 + np.cos(np.pi * inside))
    return bumps


def _rate(generator: np.random.Generator, mean: float, spread: float, shape: tuple[int, ...]) -> np.ndarray:
    usual = generator.normal(mean, spread, (shape[0], 1))
    return np.asarray(np.maximum(usual + 0.08 * mean * generator.normal(size=shape), 0.3 * mean))


def _site(values: dict[str, np.ndarray], seen_PT: np.ndarray, step_min: float) -> Site:
    names = np.array([f"v{number:05d}" for number in range(len(seen_PT))], dtype=object)
    person, moment = np.nonzero(seen_PT)
    time = pd.Timestamp("2000-01-01T00:00:00Z") + pd.to_timedelta(moment * step_min, unit="min")
    parts = [
        pd.DataFrame(
            {"patient_id": names[person], "signal": signal, "time": time, "value": value[person, moment]}
        )
        for signal, value in values.items()
    ]
    frame = (
        pd.concat(parts, ignore_index=True)
        .dropna()
        .sort_values(["patient_id", "signal", "time"], ignore_index=True)
    )
    observations = frame.assign(source="virtual", quality="").astype(
        {"patient_id": "str", "signal": "str", "time": "datetime64[us, UTC]", "value": "float64"}
    )
    return Site(
        name="virtual_respiratory",
        observations=observations,
        patients=pd.DataFrame(index=pd.Index(names, dtype="str", name="patient_id")),
        step_min=dict.fromkeys(values, step_min),
    )
