"""How each signal moves and how well it is measured: one public table, the same for every patient.

The numbers of glucose, heart rate, oxygen saturation and respiratory rate are maximum-likelihood fits
(Student's t with five degrees of freedom, so that spikes do not widen them) on the earlier halves of
published recordings, rounded: glucose on Hall, Colas, D1NAMO and T1D-UOM; the others between BIDMC (one
second apart) and PhysioNet 2019 (one hour apart), which no random walk describes at once: the table leans
to minutes. They say how far a sensor's reading is from a smooth path, not how far from blood: a CGM's own
error, some 11 mg/dL (Facchinetti et al. 2014, doi 10.1109/TBME.2013.2284023), changes slowly and no filter
of the sensor alone can see it. Every other level has what a laboratory's value needs: its noise is a share
of the width in which the median of sites lies.

The spread is what a norm starts from, before the patient's own days are known.

Letters: N filters, S signals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from twin.signals import SIGNALS
from twin.ward.filter import Dynamics

# noise, walk per sqrt(min), rate per min, memory of the rate in min, usual spread; unit of the signal.
_TABLE: Mapping[str, tuple[float, float, float, float, float]] = {
    "glucose": (1.0, 0.13, 0.84, 19.0, 30.0),
    "blood_glucose": (7.0, 3.5, 0.0, 60.0, 30.0),
    "heart_rate": (2.0, 0.8, 0.0, 60.0, 10.0),
    "pulse_rate": (2.0, 0.8, 0.0, 60.0, 10.0),
    "spo2": (0.6, 0.15, 0.0, 60.0, 1.5),
    "respiratory_rate": (1.0, 0.45, 0.0, 60.0, 3.0),
    "systolic_bp": (9.0, 1.0, 0.0, 60.0, 15.0),
    "diastolic_bp": (4.0, 0.8, 0.0, 60.0, 9.0),
    "mean_bp": (4.0, 0.9, 0.0, 60.0, 10.0),
    "temperature": (0.05, 0.01, 0.0, 60.0, 0.4),
    "etco2": (1.0, 0.4, 0.0, 60.0, 4.0),
}
_NOISE_SHARE, _WALK_SHARE, _SPREAD_SHARE = 0.01, 0.002, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Public:
    """The table as arrays over signals.

    Attributes:
        signals: names, in the order of the arrays.
        filtered_S: whether a signal is a level, which has an estimate and a norm; of the others the last
            value is known.
        noise_S, walk_S, rate_S, memory_S: as in `Dynamics`. spread_S: of the norm.
        step_min_S: usual minutes between readings.
    """

    signals: tuple[str, ...]
    filtered_S: np.ndarray
    noise_S: np.ndarray
    walk_S: np.ndarray
    rate_S: np.ndarray
    memory_S: np.ndarray
    spread_S: np.ndarray
    step_min_S: np.ndarray

    @staticmethod
    def of(signals: tuple[str, ...] = tuple(SIGNALS)) -> Public:
        """The table of some signals of the catalogue."""
        rows = np.array([_TABLE.get(name) or _laboratory(name) for name in signals]).reshape(-1, 5)
        return Public(
            signals=signals,
            filtered_S=np.array([SIGNALS[name].kind == "level" for name in signals], dtype=bool),
            noise_S=rows[:, 0],
            walk_S=rows[:, 1],
            rate_S=rows[:, 2],
            memory_S=rows[:, 3],
            spread_S=rows[:, 4],
            step_min_S=np.array([SIGNALS[name].step_min or 60.0 for name in signals]),
        )

    def dynamics(self, signal_N: np.ndarray) -> Dynamics:
        """Those of N filters."""
        return Dynamics(
            noise=self.noise_S[signal_N],
            walk=self.walk_S[signal_N],
            rate=self.rate_S[signal_N],
            memory_min=self.memory_S[signal_N],
        )


def _laboratory(name: str) -> tuple[float, float, float, float, float]:
    entry = SIGNALS[name]
    low, high = entry.usual or (entry.low, min(entry.high, 10.0 * entry.low + 100.0))
    width = high - low
    return _NOISE_SHARE * width, _WALK_SHARE * width, 0.0, 60.0, _SPREAD_SHARE * width
