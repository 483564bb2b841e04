"""How a signal moves: what parts a fault from a real change, by signal, and how long a gap may be filled.

A signal that is not here is never marked and never filled. The numbers for glucose were set on the clean
recordings of Hall, Colas and T1D-UOM (docs/cleaning.md): of neighbouring values 5 minutes apart, 99.9 %
differ by less than 25 mg/dL (Hall), 13 (Colas) and 72 (T1D-UOM, noisy sensors), so the rate is 6 mg/dL a
minute and the rest is left to the patient's own noise. Sensors report nothing beyond 40 and 400 mg/dL (Dexcom
G6; FreeStyle Libre ends at 500): a run of these is a patient who is very low or very high.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Dynamics:
    """How one signal moves, in its canonical unit.

    Attributes:
        floor: a deviation below this is never a fault.
        rate_per_min: a level that moves faster, and then stays away, is suspect until it has stayed.
        near_min: values further apart are not compared.
        flat_min: a level that stays exactly the same for so long is a stuck device; None: it may.
        clip: values at or beyond these are a device's LOW and HIGH, which may stay.
        gap_min: a gap of at most so long may be filled by who asks for it.
    """

    floor: float
    rate_per_min: float
    near_min: float
    flat_min: float | None = None
    clip: tuple[float, float] = (float("-inf"), float("inf"))
    gap_min: float = 0.0


_HEART: Final = Dynamics(floor=30, rate_per_min=60, near_min=20, gap_min=5)
_PRESSURE: Final = Dynamics(floor=40, rate_per_min=40, near_min=90, gap_min=60)

DYNAMICS: Final[Mapping[str, Dynamics]] = {
    "glucose": Dynamics(floor=20, rate_per_min=6, near_min=20, flat_min=120, clip=(40, 400), gap_min=30),
    "heart_rate": _HEART,
    "pulse_rate": _HEART,
    "spo2": Dynamics(floor=8, rate_per_min=20, near_min=20, gap_min=5),
    "respiratory_rate": Dynamics(floor=15, rate_per_min=30, near_min=20, gap_min=5),
    "systolic_bp": _PRESSURE,
    "diastolic_bp": _PRESSURE,
    "mean_bp": _PRESSURE,
    "temperature": Dynamics(floor=1.5, rate_per_min=0.2, near_min=90, gap_min=120),
    "etco2": Dynamics(floor=20, rate_per_min=20, near_min=20, gap_min=5),
}
