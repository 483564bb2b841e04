"""The forecasts of one task as they stand, and how they turned out: what calibrates the bands.

Forecasts wait until their outcome is observed, or can no longer be; then they teach the bands.

Letters: N patients with a forecast, P patients' rows, H horizons, L levels of coverage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from twin.personal.bayes import PathTask
from twin.signals import SIGNALS
from twin.site import Site
from twin.tasks.protocol import Examples, Forecast
from twin.tasks.windows import Clock, microseconds, track, values_after
from twin.ward.bands import Bands
from twin.ward.forecaster import Forecaster

COLUMNS: Final = (
    *("patient_id", "task", "model", "made", "horizon_min", "at", "middle", "probability"),
    *("low_80", "high_80", "low_90", "high_90"),
)
_MIN_US = 60_000_000
# An outcome is the reading nearest to the horizon, within so many minutes.
_WITHIN_MIN = 2.5
# In the target's unit: no patient's spread is narrower.
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The last forecast of each patient.

    Attributes:
        row_N: patient's row. time_us_N: of the reading that it starts from.
        middle_NH: path (or probability). low_NHL, high_NHL: bands; NaN for a probability.
    """

    row_N: np.ndarray
    time_us_N: np.ndarray
    middle_NH: np.ndarray
    low_NHL: np.ndarray
    high_NHL: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """Forecasts of one moment whose outcome is awaited; spreads are the model's own, factors the bands'."""

    row_N: np.ndarray
    time_us_N: np.ndarray
    middle_NH: np.ndarray
    spread_N2H: np.ndarray
    factor_N2HL: np.ndarray


class Paths:
    """Forecasts of one task for the patients of a ward."""

    def __init__(self, forecaster: Forecaster) -> None:
        self.forecaster = forecaster
        self.is_path = isinstance(forecaster.task, PathTask)
        self.horizons_min = forecaster.task.horizons_min
        self.bands = Bands(len(self.horizons_min))
        self.standing: Standing | None = None
        self._waiting: list[list[_Waiting]] = [[] for _ in self.horizons_min]
        self._last_us = np.zeros(0, np.int64)
        signal = SIGNALS.get(forecaster.task.name)
        self._limits = (signal.low, signal.high) if signal else (-np.inf, np.inf)

    def make(self, site: Site, names: np.ndarray, row_of: dict[str, int], now_us: int) -> Standing:
        """Forecasts for every patient with fresh data, after learning from the outcomes that came.

        Args:
            site: the last hours. names: pseudonym by row; row_of: the reverse.
        """
        self.bands.reserve(len(names))
        if len(self._last_us) < len(names):
            more = np.zeros(len(names) - len(self._last_us), np.int64)
            self._last_us = np.concatenate([self._last_us, more])
        if self.is_path:
            self._learn(site, row_of, now_us)
        examples = self.forecaster.task.latest(site, now_us)
        if not self.forecaster.network.reads_series:
            examples = examples.without_series()
        forecast = self.forecaster.task.forecast(self.forecaster.outputs(examples), examples)
        row_N = _rows(examples, row_of)
        self.standing = self._banded(forecast, row_N)
        return self.standing

    def table(self, names: np.ndarray) -> pd.DataFrame:
        """The standing forecasts, one row for each patient and horizon."""
        standing = self.standing
        if standing is None:
            return pd.DataFrame(columns=COLUMNS)
        count, horizons = len(standing.row_N), len(self.horizons_min)
        made_us = np.repeat(standing.time_us_N, horizons)
        ahead_min = np.tile(np.array(self.horizons_min, np.int64), count)
        patients = names[standing.row_N]
        model = [self.forecaster.model_of(str(patient)) for patient in patients]
        frame = {
            "patient_id": pd.Series(np.repeat(patients, horizons), dtype="str"),
            "task": self.forecaster.task.name,
            "model": pd.Series(np.repeat(np.array(model, dtype=object), horizons), dtype="str"),
            "made": pd.to_datetime(made_us, unit="us", utc=True).as_unit("us"),
            "horizon_min": ahead_min,
            "at": pd.to_datetime(made_us + ahead_min * _MIN_US, unit="us", utc=True).as_unit("us"),
            "middle": standing.middle_NH.ravel() if self.is_path else np.nan,
            "probability": np.nan if self.is_path else standing.middle_NH.ravel(),
        }
        for level, percent in enumerate((80, 90)):
            frame[f"low_{percent}"] = standing.low_NHL[..., level].ravel()
            frame[f"high_{percent}"] = standing.high_NHL[..., level].ravel()
        return pd.DataFrame(frame)

    def forget(self, row: int, patient_id: str) -> None:
        """Drops a patient's forecasts, calibration and model."""
        if row < len(self.bands.count):
            self.bands.clear(row)
            self._last_us[row] = 0
        self.forecaster = self.forecaster.without(patient_id)
        self._waiting = [[_left(w, row) for w in waiting] for waiting in self._waiting]
        if self.standing is not None:
            keep = self.standing.row_N != row
            self.standing = Standing(
                row_N=self.standing.row_N[keep],
                time_us_N=self.standing.time_us_N[keep],
                middle_NH=self.standing.middle_NH[keep],
                low_NHL=self.standing.low_NHL[keep],
                high_NHL=self.standing.high_NHL[keep],
            )

    def _banded(self, forecast: Forecast, row_N: np.ndarray) -> Standing:
        """Calibrated bands; each reading's forecast waits for its outcome once."""
        middle_NH = forecast.middle_NH
        if not self.is_path:
            nowhere = np.full((*middle_NH.shape, 2), np.nan)
            return Standing(
                row_N=row_N,
                time_us_N=forecast.time_us_N,
                middle_NH=middle_NH,
                low_NHL=nowhere,
                high_NHL=nowhere,
            )
        spread_N2H = np.stack([middle_NH - forecast.low_NH, forecast.high_NH - middle_NH], axis=1)
        spread_N2H = np.maximum(spread_N2H, _LEAST_SPREAD)
        new_N = forecast.time_us_N > self._last_us[row_N]
        self._last_us[row_N] = np.maximum(self._last_us[row_N], forecast.time_us_N)
        factor_N2HL = self.bands.factors(row_N)
        waits = _Waiting(
            row_N=row_N[new_N],
            time_us_N=forecast.time_us_N[new_N],
            middle_NH=middle_NH[new_N],
            spread_N2H=spread_N2H[new_N],
            factor_N2HL=factor_N2HL[new_N],
        )
        for waiting in self._waiting:
            waiting.append(waits)
        middle_NH1 = middle_NH[..., None]
        low_NHL = middle_NH1 - spread_N2H[:, 0, :, None] * factor_N2HL[:, 0]
        high_NHL = middle_NH1 + spread_N2H[:, 1, :, None] * factor_N2HL[:, 1]
        # No value lies beyond the signal's own limits, so a band need not either.
        least, most = self._limits
        return Standing(
            row_N=row_N,
            time_us_N=forecast.time_us_N,
            middle_NH=middle_NH,
            low_NHL=np.maximum(low_NHL, np.minimum(least, middle_NH1)),
            high_NHL=np.minimum(high_NHL, np.maximum(most, middle_NH1)),
        )

    def _learn(self, site: Site, row_of: dict[str, int], now_us: int) -> None:
        if not any(self._waiting) or not len(site.observations):
            return
        patients = site.patients.index
        clock = Clock.over(microseconds(site.observations["time"]))
        truth = track(site.observations, self.forecaster.task.name, patients, clock)
        place = np.full(len(row_of) and max(row_of.values()) + 1, -1, np.int64)
        place[[row_of[str(patient)] for patient in patients]] = np.arange(len(patients))
        for column, horizon_min in enumerate(self.horizons_min):
            # The outcome of a horizon can be told once a reading beyond it could have come.
            until_us = now_us - round((horizon_min + _WITHIN_MIN) * _MIN_US)
            left = []
            for waits in self._waiting[column]:
                ripe_N = waits.time_us_N <= until_us
                where_N = np.where(ripe_N, place[waits.row_N] if len(place) else -1, -1)
                ready = np.flatnonzero(where_N >= 0)
                value, seen = values_after(
                    truth, clock, where_N[ready], waits.time_us_N[ready], np.array([horizon_min]), _WITHIN_MIN
                )
                ready, value = ready[seen[:, 0]], value[seen[:, 0], 0]
                off = value - waits.middle_NH[ready, column]
                side = np.where(off < 0, 0, 1)
                ratio = off / waits.spread_N2H[ready, side, column]
                self.bands.learn(waits.row_N[ready], column, ratio, waits.factor_N2HL[ready, :, column])
                if not ripe_N.all():
                    left.append(_only(waits, ~ripe_N))
            self._waiting[column] = left


def _rows(examples: Examples, row_of: dict[str, int]) -> np.ndarray:
    of_P = np.array([row_of[patient] for patient in examples.patients], dtype=np.int64)
    index_N = examples.patient_N.numpy()
    return of_P[index_N] if len(index_N) else np.zeros(0, np.int64)


def _only(waits: _Waiting, kept_N: np.ndarray) -> _Waiting:
    return _Waiting(
        row_N=waits.row_N[kept_N],
        time_us_N=waits.time_us_N[kept_N],
        middle_NH=waits.middle_NH[kept_N],
        spread_N2H=waits.spread_N2H[kept_N],
        factor_N2HL=waits.factor_N2HL[kept_N],
    )


def _left(waits: _Waiting, row: int) -> _Waiting:
    return _only(waits, waits.row_N != row)
