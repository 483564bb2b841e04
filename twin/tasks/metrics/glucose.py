"""Figures of glucose forecasts: size of the error, width of the band, Clarke zones, alarms, time in range.

Formulas and sources: docs/metrics.md. Every figure counts observed targets only.

Shapes: N windows, H horizons, P patients.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from twin.errors import DataError
from twin.tasks.metrics.alarms import AlarmJudge, AlarmSums
from twin.tasks.metrics.clarke import clarke_zone
from twin.tasks.metrics.ratio import Ratio, Sums, per_patient
from twin.tasks.protocol import Forecast, Metric

REPORTED_MIN = (30, 60)
RANGE_MG_DL = (70.0, 180.0)


def glucose_metrics(
    *, horizons_min: tuple[int, ...], low_mg_dl: float, alarm_mg_dl: float, stride_min: int
) -> tuple[Metric, ...]:
    """The figures by which glucose forecasts are judged, at +30 and +60 minutes.

    Args:
        horizons_min: minutes ahead that the columns of a forecast stand for, rising; 30 and 60 are in it.
        low_mg_dl: hypoglycaemia is observed glucose below this.
        alarm_mg_dl: an alarm rings when the forecast path goes below this.
        stride_min: minutes between two predictions; a prediction watches over that long.

    Raises:
        DataError: 30 or 60 is not among the horizons.
    """
    if not set(REPORTED_MIN) <= set(horizons_min):
        raise DataError(
            f"glucose forecasts are judged at +30 and +60 minutes; the task has {horizons_min}. "
            "Give it horizons that hold both (twin/tasks/glucose.py)."
        )
    judge = AlarmJudge(
        horizons_min=horizons_min, low_mg_dl=low_mg_dl, alarm_mg_dl=alarm_mg_dl, stride_min=stride_min
    )
    ahead = [m for minutes in REPORTED_MIN for m in _at(horizons_min.index(minutes), minutes)]
    half_hour = horizons_min.index(30)
    return (
        *ahead,
        Ratio(name="hypo_sensitivity_pct", sums=_alarm(judge, "detected_P", "events_P"), scale=100.0),
        Ratio(name="hypo_lead_time_min", sums=_alarm(judge, "lead_min_P", "detected_P")),
        Ratio(name="hypo_false_alarms_per_day", sums=_alarm(judge, "false_alarms_P", "watched_days_P")),
        _mean("time_in_range_30_pct", half_hour, lambda _, f: _in_range(f), 100.0),
        _mean("time_in_range_observed_pct", half_hour, lambda y, _: _in_range(y), 100.0),
    )


def _at(column: int, minutes: int) -> tuple[Metric, ...]:
    return (
        _mean(f"rmse_{minutes}_mg_dl", column, lambda y, f: (f - y) ** 2, power=0.5),
        _mean(f"mae_{minutes}_mg_dl", column, lambda y, f: np.abs(f - y)),
        _mean(f"mard_{minutes}_pct", column, lambda y, f: np.abs(f - y) / y, 100.0),
        Ratio(name=f"coverage_80_{minutes}_pct", sums=_coverage(column), scale=100.0),
        _mean(f"clarke_ab_{minutes}_pct", column, lambda y, f: clarke_zone(y, f) <= 1, 100.0),
    )


def _mean(
    name: str,
    column: int,
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    scale: float = 1.0,
    power: float = 1.0,
) -> Metric:
    """The mean over observed windows of `score(target, forecast)` at one horizon."""

    def sums(forecast: Forecast) -> Sums:
        seen_N = forecast.observed_NH[:, column]
        middle_N = forecast.middle_NH[:, column]
        with np.errstate(invalid="ignore", over="ignore"):
            # Where nothing was observed the target is 0; 1 keeps the relative error from dividing by it.
            score_N = score(np.where(seen_N, forecast.target_NH[:, column], 1.0), middle_N).astype(float)
        score_N = np.where(np.isfinite(middle_N), score_N, np.nan)
        return per_patient(np.where(seen_N, score_N, 0.0), forecast), per_patient(seen_N, forecast)

    return Ratio(name=name, sums=sums, scale=scale, power=power)


def _coverage(column: int) -> Callable[[Forecast], Sums]:
    def sums(forecast: Forecast) -> Sums:
        seen_N = forecast.observed_NH[:, column]
        low_N, high_N = forecast.low_NH[:, column], forecast.high_NH[:, column]
        target_N = forecast.target_NH[:, column]
        inside_N = np.where(np.isfinite(low_N) & np.isfinite(high_N), 1.0, np.nan)
        inside_N = inside_N * ((low_N <= target_N) & (target_N <= high_N))
        return per_patient(np.where(seen_N, inside_N, 0.0), forecast), per_patient(seen_N, forecast)

    return sums


def _in_range(glucose_mg_dl: np.ndarray) -> np.ndarray:
    return (glucose_mg_dl >= RANGE_MG_DL[0]) & (glucose_mg_dl <= RANGE_MG_DL[1])


def _alarm(judge: AlarmJudge, above: str, below: str) -> Callable[[Forecast], Sums]:
    def sums(forecast: Forecast) -> Sums:
        counted: AlarmSums = judge(forecast)
        return getattr(counted, above), getattr(counted, below)

    return sums
