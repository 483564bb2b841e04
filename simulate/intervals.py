"""Figures of models with intervals, from a bootstrap over patients, and paired differences.

Windows of one patient resemble each other, so patients are resampled and not windows: at each site
as many patients as it has, with replacement, and the same draw for every model, so that a
difference of two models is paired. The figure of a site pools all windows of its patients; the
figure over all is the mean over sites, so a large hospital does not drown a small one. Intervals
are percentiles of the draws (Davison and Hinkley 1997, sections 3.8 and 5.3). With ten patients or
fewer they are too narrow; nothing here corrects that.

Shapes: P patients, D draws, B = 1 + D weightings of which the first counts everybody once.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from conf.errors import TwinwardError
from twin.tasks.protocol import Forecast, Metric

# An interval is given only if the figure is defined in at least this share of the draws.
DEFINED_SHARE = 0.5
_CHUNK_PATIENTS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A figure and its interval; None is "not defined", never a number that stands for it."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """True if the interval is known and lies wholly above or below zero."""
        return self.low is not None and self.high is not None and (self.low > 0.0 or self.high < 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much more of a metric `model` has than `baseline`; site None is the mean over sites."""

    model: str
    baseline: str
    metric: str
    site: str | None
    interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientFigure:
    """One figure of one model for one patient; only defined ones exist."""

    site: str
    patient: str
    model: str
    metric: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """All models judged at all sites.

    Attributes:
        metrics: model, metric, interval over all sites.
        metrics_by_site: site, model, metric, interval.
        per_patient: every defined figure of every patient.
        draws: site, model, metric, figure for each of the B weightings; NaN where not defined.
        level: coverage of the intervals, as a fraction.
    """

    metrics: Mapping[str, Mapping[str, Interval]]
    metrics_by_site: Mapping[str, Mapping[str, Mapping[str, Interval]]]
    per_patient: tuple[PatientFigure, ...]
    draws: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]
    level: float

    def difference(self, model_a: str, model_b: str, metric: str, site: str | None = None) -> Interval:
        """How much more of `metric` model A has than model B, with a paired interval.

        Args:
            model_a, model_b: names of models that were judged.
            metric: name of a metric that was judged.
            site: one site; None is the mean over sites.
        """
        sites = list(self.draws) if site is None else [site]
        a_B, b_B = (_over_sites(self.draws, sites, model, metric) for model in (model_a, model_b))
        return _interval(a_B - b_B, self.level)


def judge(
    forecasts: Mapping[str, Mapping[str, Forecast | None]],
    metrics: Sequence[Metric],
    *,
    samples: int,
    level: float,
    seed: int,
) -> Judged:
    """Every metric of every model at every site and over all, with intervals.

    Args:
        forecasts: by model and site. None, or a site left out, is a model that does not exist
            there; its figures are null there and over all. At a site all models have the same
            `patients`, and forecast the same windows if differences are to mean anything.
        metrics: of the task.
        samples: D, how many times patients are resampled, at least 1.
        level: coverage of the intervals, a fraction between 0 and 1.
        seed: of the resampling; each site's draw follows from it and the site's name alone.

    Raises:
        TwinwardError: two models of one site were judged on different lists of patients.
    """
    sites = sorted({site for by_site in forecasts.values() for site in by_site})
    draws: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    rows: list[PatientFigure] = []
    for site in sites:
        here = {model: by_site.get(site) for model, by_site in forecasts.items()}
        weights_BP = _weights(site, here, samples, seed)
        draws[site] = {model: _figures(f, metrics, weights_BP) for model, f in here.items()}
        rows += [row for model, f in here.items() if f for row in _patients(site, model, f, metrics)]
    names = [metric.name for metric in metrics]
    return Judged(
        metrics={
            model: {name: _interval(_over_sites(draws, sites, model, name), level) for name in names}
            for model in forecasts
        },
        metrics_by_site={
            site: {
                model: {name: _interval(figure_B, level) for name, figure_B in figures.items()}
                for model, figures in draws[site].items()
            }
            for site in sites
        },
        per_patient=tuple(rows),
        draws=draws,
        level=level,
    )


def _weights(site: str, here: Mapping[str, Forecast | None], samples: int, seed: int) -> np.ndarray:
    """How often each patient counts in each weighting (B, P): once, then as drawn; 0 without windows."""
    known = [forecast for forecast in here.values() if forecast is not None]
    if not known:
        return np.zeros((1 + samples, 0))
    patients = known[0].patients
    if any(forecast.patients != patients for forecast in known):
        raise TwinwardError(
            f"site {site!r}: models were judged on different lists of patients, so they cannot be compared. "
            "Give every model's forecast the same `patients` in the same order."
        )
    present_P = np.zeros(len(patients), dtype=bool)
    for forecast in known:
        present_P[forecast.patient_N[forecast.observed_NH.any(1)]] = True
    weights_BP = np.zeros((1 + samples, len(patients)))
    weights_BP[0] = 1.0
    count = int(present_P.sum())
    if count:
        generator = np.random.default_rng([seed, zlib.crc32(site.encode())])
        weights_BP[1:, present_P] = generator.multinomial(count, np.full(count, 1.0 / count), size=samples)
    return weights_BP


def _figures(
    forecast: Forecast | None, metrics: Sequence[Metric], weights_BP: np.ndarray
) -> dict[str, np.ndarray]:
    if forecast is None:
        return {metric.name: np.full(len(weights_BP), np.nan) for metric in metrics}
    return {metric.name: figure(metric, forecast, weights_BP) for metric in metrics}


def figure(metric: Metric, forecast: Forecast, weights_BP: np.ndarray) -> np.ndarray:
    """The metric (B,), as the mean over the repeated judgements in which it is defined."""
    figures_JB = np.stack([metric(part, weights_BP) for part in forecast.judgements()])
    defined_JB = np.isfinite(figures_JB)
    count_B = defined_JB.sum(0)
    return np.where(
        count_B > 0, np.where(defined_JB, figures_JB, 0.0).sum(0) / np.maximum(count_B, 1), np.nan
    )


def _patients(
    site: str, model: str, forecast: Forecast, metrics: Sequence[Metric]
) -> Iterator[PatientFigure]:
    present = np.unique(forecast.patient_N[forecast.observed_NH.any(1)])
    for start in range(0, len(present), _CHUNK_PATIENTS):
        chunk = present[start : start + _CHUNK_PATIENTS]
        one_hot_BP = np.zeros((len(chunk), len(forecast.patients)))
        one_hot_BP[np.arange(len(chunk)), chunk] = 1.0
        for metric in metrics:
            for patient, value in zip(chunk, figure(metric, forecast, one_hot_BP), strict=True):
                if np.isfinite(value):
                    yield PatientFigure(
                        site=site,
                        patient=forecast.patients[patient],
                        model=model,
                        metric=metric.name,
                        value=float(value),
                    )


def _over_sites(
    draws: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
    sites: Sequence[str],
    model: str,
    metric: str,
) -> np.ndarray:
    """The mean over the sites at which any model has a figure (B,); NaN if this model lacks one of them.

    A mean over fewer sites than another model's would look like a difference between the models.
    """
    counted = [
        site for site in sites if any(np.isfinite(figures[metric][0]) for figures in draws[site].values())
    ]
    if not counted:
        return np.full(1, np.nan)
    return np.asarray(np.mean([draws[site][model][metric] for site in counted], axis=0))


def _interval(figure_B: np.ndarray, level: float) -> Interval:
    if not np.isfinite(figure_B[0]):
        return Interval(value=None)
    drawn_D = figure_B[1:][np.isfinite(figure_B[1:])]
    if len(drawn_D) < max(1.0, DEFINED_SHARE * (len(figure_B) - 1)):
        return Interval(value=float(figure_B[0]))
    low, high = np.quantile(drawn_D, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(value=float(figure_B[0]), low=float(low), high=float(high))
