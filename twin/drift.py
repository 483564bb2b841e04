"""Device clocks that are off: found by when their rows arrive, or by another device of the same patient.

A live feed knows when a row arrived. What is stamped later than that cannot be; what is always stamped the
same span earlier than usual comes from a clock that was set back. A delivery that was held up (a phone out of
reach, a broker's queue) looks otherwise: its newest row is as young as ever. So the youngest row of each
arrival tells, and three arrivals in a row that agree within a minute move the device's rows by their common
offset; until then, rows that are stamped ahead are marked, and rows that may just be late are left alone.
It is not told what a recording without arrival times cannot tell: a clock that was wrong from the start.

Shapes: N rows of one arrival, G moments of a grid.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np

_US_PER_MIN: Final = 60_000_000
AHEAD_US: Final = 2 * _US_PER_MIN
"""What is stamped further ahead of its arrival comes from a wrong clock."""
BEHIND_US: Final = 5 * _US_PER_MIN
"""What arrives so much later than usual may come from a clock that was set back."""
_AGREE_US: Final = _US_PER_MIN
_ARRIVALS: Final = 3
_APART_US: Final = 150_000_000
"""Late arrivals that count lie so far apart: what drains after an outage is as late, but soon at its end."""
_USUAL_ARRIVALS: Final = 15


@dataclass(slots=True)
class _Clock:
    """One device: delays of arrivals that were as usual, and of the last ones that were not."""

    usual: deque[int] = field(default_factory=lambda: deque(maxlen=_USUAL_ARRIVALS))
    odd: deque[int] = field(default_factory=lambda: deque(maxlen=_ARRIVALS))
    counted_us: int = 0

    def usual_us(self) -> int:
        return int(np.median(self.usual)) if self.usual else 0

    def hear(self, delay_us: int, received_us: int) -> tuple[int, bool]:
        """(how far its rows must be moved, whether they are suspect) after an arrival's least delay."""
        behind = bool(self.usual) and delay_us > self.usual_us() + BEHIND_US
        if delay_us >= -AHEAD_US and not behind:
            self.usual.append(max(0, delay_us))
            self.odd.clear()
            return 0, False
        if not behind or not self.odd or received_us - self.counted_us >= _APART_US:
            self.odd.append(delay_us)
            self.counted_us = received_us
        heard = [*self.odd, delay_us]
        if len(self.odd) == _ARRIVALS and max(heard) - min(heard) <= _AGREE_US:
            return int(np.median(self.odd)) - self.usual_us(), False
        return 0, not behind


class Clocks:
    """The clocks of all devices of a site, by name; kept in memory, and learnt anew after a restart."""

    def __init__(self) -> None:
        self._clocks: dict[str, _Clock] = {}

    def hear(self, device: str, time_us_N: np.ndarray, received_us: int) -> tuple[int, bool]:
        """(microseconds to add to each row's time, whether the rows are suspect).

        Args:
            device: its name.
            time_us_N: of the rows of one arrival; at least one.
            received_us: when they arrived.
        """
        clock = self._clocks.setdefault(device, _Clock())
        return clock.hear(received_us - int(time_us_N.max()), received_us)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offset:
    """How far a device's clock is ahead of another's.

    Attributes:
        ahead_min: minutes; to be taken from the device's times.
        likeness: correlation of the two devices' changes after that, -1 to 1; below about 0.5 nothing is
            known.
        rows: of the grid that were compared.
    """

    ahead_min: float
    likeness: float
    rows: int


def offset_between(
    reference_us: np.ndarray,
    reference: np.ndarray,
    device_us: np.ndarray,
    device: np.ndarray,
    *,
    most_min: int = 180,
    step_min: float = 1.0,
) -> Offset:
    """By how much a device's times must be moved for its values to go as the reference's do.

    The shift with the greatest correlation of changes over five steps, on a common grid, of two devices that
    measure the same thing of the same patient (two oximeters; an electrocardiogram and an oximeter's pulse).

    Args:
        reference_us, device_us: microseconds since 1970 UTC, rising.
        reference, device: values.
        most_min: greatest offset that is tried, either way.
        step_min: of the grid, and so of the answer.
    """
    step_us = step_min * _US_PER_MIN
    start = max(reference_us[0], device_us[0] - most_min * _US_PER_MIN)
    end = min(reference_us[-1], device_us[-1] + most_min * _US_PER_MIN)
    grid_us = np.arange(start, end, step_us)
    changes_G = _changes(grid_us, reference_us, reference)
    best = Offset(ahead_min=0.0, likeness=-1.0, rows=0)
    for shift in np.arange(-most_min, most_min + step_min, step_min):
        other_G = _changes(grid_us + shift * _US_PER_MIN, device_us, device)
        both_G = np.isfinite(changes_G) & np.isfinite(other_G)
        if both_G.sum() < 30:
            continue
        a, b = changes_G[both_G], other_G[both_G]
        spread = float(a.std() * b.std())
        likeness = float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread else 0.0
        if likeness > best.likeness:
            best = Offset(ahead_min=float(shift), likeness=likeness, rows=int(both_G.sum()))
    return best


def _changes(grid_us: np.ndarray, time_us: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Change over five steps of the grid; NaN where no value is within 20 minutes on both sides."""
    at = np.searchsorted(time_us, grid_us)
    inside = (at > 0) & (at < len(time_us))
    at = np.clip(at, 1, len(time_us) - 1)
    near = inside & (time_us[at] - time_us[at - 1] <= 20 * _US_PER_MIN)
    level = np.where(near, np.interp(grid_us, time_us, value), np.nan)
    changes = np.full(len(grid_us), np.nan)
    changes[5:] = level[5:] - level[:-5]
    return changes
