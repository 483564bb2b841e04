"""Parts of a report taken from forecasts that were judged.

Shapes as in `twin.tasks.protocol`; K points of one cloud or stretch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from simulate.intervals import Difference, Judged
from simulate.models import COMPARISONS
from simulate.report.data import Example, Pairs
from twin.tasks.protocol import Forecast


def differences_of(judged: Judged, metrics: tuple[str, ...]) -> tuple[Difference, ...]:
    """Paired differences of the usual comparisons, over all and at each site, where both models exist."""
    return tuple(
        Difference(
            model=model,
            baseline=baseline,
            metric=metric,
            site=site,
            interval=judged.difference(model, baseline, metric, site),
        )
        for model, baseline in COMPARISONS
        if model in judged.metrics and baseline in judged.metrics
        for metric in metrics
        for site in (None, *judged.metrics_by_site)
    )


def pairs_of(
    forecasts: Mapping[str, Forecast | None],
    model: str,
    horizons_min: tuple[int, ...],
    horizon_min: int,
    *,
    generator: np.random.Generator,
    most: int = 2000,
    is_label: bool = False,
) -> tuple[Pairs, ...]:
    """Observed and forecast values of each site, at most `most` of them, drawn evenly at random.

    Args:
        forecasts: of one model, by site.
        model: its name.
        horizons_min: what the columns of a forecast stand for; (0,) for a task without a time axis.
        horizon_min: the one to take.
        generator: for the draw.
        most: points of one site.
        is_label: of yes-or-no tasks; all points are taken then, since rare labels would be lost in a draw.
    """
    column = horizons_min.index(horizon_min)
    pairs: list[Pairs] = []
    for site, forecast in forecasts.items():
        if forecast is None:
            continue
        seen_K = np.flatnonzero(forecast.observed_NH[:, column] & np.isfinite(forecast.middle_NH[:, column]))
        if len(seen_K) > most and not is_label:
            seen_K = np.sort(generator.choice(seen_K, size=most, replace=False))
        pairs.append(
            Pairs(
                site=site,
                model=model,
                horizon_min=horizon_min,
                observed_K=forecast.target_NH[seen_K, column],
                forecast_K=forecast.middle_NH[seen_K, column],
                is_label=is_label,
            )
        )
    return tuple(pairs)


def examples_of(
    forecasts: Mapping[str, Forecast | None],
    model: str,
    horizons_min: tuple[int, ...],
    horizon_min: int,
    *,
    generator: np.random.Generator,
    per_site: int = 1,
    hours: float = 24.0,
) -> tuple[Example, ...]:
    """The last `hours` of patients drawn at random, at least half of them observed; never the prettiest.

    Args:
        forecasts: of one model, by site.
        model: its name.
        horizons_min: what the columns of a forecast stand for.
        horizon_min: the one to take.
        generator: for the draw.
        per_site: patients of each site.
        hours: length of the stretch.
    """
    column = horizons_min.index(horizon_min)
    examples = []
    for site, forecast in forecasts.items():
        if forecast is None:
            continue
        candidates = generator.permutation(np.unique(forecast.patient_N))
        drawn = (_stretch(forecast, int(patient), column, hours) for patient in candidates)
        usable = (index for index in drawn if len(index) > 1)
        for number, index in zip(range(1, per_site + 1), usable, strict=False):
            examples.append(_example(forecast, index, column, site, number, model, horizon_min))
    return tuple(examples)


def _stretch(forecast: Forecast, patient: int, column: int, hours: float) -> np.ndarray:
    """The windows of the patient's last hours, none if fewer than half of them were observed."""
    index = np.flatnonzero(forecast.patient_N == patient)
    since_us = forecast.time_us_N[index].max() - hours * 3.6e9
    index = index[forecast.time_us_N[index] > since_us]
    said = np.stack([part[index, column] for part in (forecast.low_NH, forecast.middle_NH, forecast.high_NH)])
    index = index[np.isfinite(said).all(0)]
    enough = 2.0 * np.count_nonzero(forecast.observed_NH[index, column]) >= len(index)
    return np.asarray(index if enough else index[:0])


def _example(
    forecast: Forecast, index: np.ndarray, column: int, site: str, number: int, model: str, horizon_min: int
) -> Example:
    time_us = forecast.time_us_N[index]
    seen_K = forecast.observed_NH[index, column]
    return Example(
        site=site,
        number=number,
        model=model,
        horizon_min=horizon_min,
        hours_K=np.asarray((time_us - time_us.min()) / 3.6e9),
        low_K=forecast.low_NH[index, column],
        middle_K=forecast.middle_NH[index, column],
        high_K=forecast.high_NH[index, column],
        observed_K=np.where(seen_K, forecast.target_NH[index, column], np.nan),
    )
