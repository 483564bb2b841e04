"""Figures of a forecast probability against a label: ranking, calibration, accuracy.

Every window counts as often as its patient does. Formulas and sources: docs/metrics.md.

Shapes: N observed windows, P patients, B weightings of patients, G groups of the ranking: windows of equal
probability, where neighbouring groups without a positive count as one (no figure tells them apart).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from twin.tasks.metrics.ratio import Ratio, Sums, per_patient
from twin.tasks.protocol import Forecast, Metric

BINS = 10
# Groups times weightings held at once: 32 MB of float64.
_CHUNK = 4_000_000


def binary_metrics() -> tuple[Metric, ...]:
    """The figures by which forecasts of a yes-or-no label are judged; the label is column 0."""
    return (
        *rankings("", _observed),
        Ratio(name="brier", sums=_mean_of(lambda y, p: (p - y) ** 2)),
        _CalibrationError(name="calibration_error"),
        Ratio(name="accuracy", sums=_mean_of(lambda y, p: (p >= 0.5) == (y > 0.5))),
    )


def rankings(suffix: str, counted: Callable[[Forecast], np.ndarray]) -> tuple[Metric, Metric]:
    """Area under the ROC curve and average precision, `auroc` and `auprc` with a suffix.

    Args:
        suffix: of the names, for instance "_onset".
        counted: which windows of a forecast count (N, bool); their target must be observed.
    """
    return (
        _Ranking(name=f"auroc{suffix}", score=_auroc, counted=counted),
        _Ranking(name=f"auprc{suffix}", score=_average_precision, counted=counted),
    )


def _observed(forecast: Forecast) -> np.ndarray:
    return forecast.observed_NH[:, 0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ranking:
    """A figure of how positives and negatives are ordered, NaN unless both are there."""

    name: str
    score: Callable[[np.ndarray, np.ndarray], np.ndarray]
    counted: Callable[[Forecast], np.ndarray]

    def __call__(self, forecast: Forecast, weights_BP: np.ndarray) -> np.ndarray:
        seen_N = self.counted(forecast)
        patient_N, probability_N = forecast.patient_N[seen_N], forecast.middle_NH[seen_N, 0]
        positive_N = forecast.target_NH[seen_N, 0] > 0.5
        if not len(patient_N) or not np.isfinite(probability_N).all():
            return np.full(len(weights_BP), np.nan)
        order_N = np.argsort(-probability_N, kind="stable")
        patient_N, positive_N = patient_N[order_N], positive_N[order_N]
        group_N = _groups(probability_N[order_N], positive_N)
        shape = (len(forecast.patients), int(group_N[-1]) + 1)
        true_PG = _counts(patient_N[positive_N], group_N[positive_N], shape)
        false_PG = _counts(patient_N[~positive_N], group_N[~positive_N], shape)
        rows = max(1, _CHUNK // shape[1])
        return np.concatenate(
            [
                self.score(np.asarray(chunk_BP @ true_PG), np.asarray(chunk_BP @ false_PG))
                for chunk_BP in np.split(weights_BP, range(rows, len(weights_BP), rows))
            ]
        )


def _groups(falling_N: np.ndarray, positive_N: np.ndarray) -> np.ndarray:
    """The group of each window, rising from 0, along falling probabilities."""
    tie_N = np.cumsum(np.append(True, np.diff(falling_N) != 0)) - 1
    has_positive_T = np.bincount(tie_N, weights=positive_N) > 0
    begins_T = np.append(True, has_positive_T[1:] | has_positive_T[:-1])
    return np.asarray((np.cumsum(begins_T) - 1)[tie_N])


def _counts(patient_K: np.ndarray, group_K: np.ndarray, shape: tuple[int, int]) -> csr_array:
    """How many windows of each patient lie in each group, P × G."""
    counts = csr_array((np.ones(len(patient_K)), (patient_K, group_K)), shape=shape)
    counts.sum_duplicates()
    return counts


def _auroc(true_BG: np.ndarray, false_BG: np.ndarray) -> np.ndarray:
    """The share of pairs in which the positive one is ranked higher; a tie counts half."""
    above_BG = np.cumsum(true_BG, axis=1) - true_BG / 2.0
    return _divide((above_BG * false_BG).sum(1), true_BG.sum(1) * false_BG.sum(1))


def _average_precision(true_BG: np.ndarray, false_BG: np.ndarray) -> np.ndarray:
    """Precision at each threshold, averaged with the recall that it adds; no interpolation."""
    found_BG = np.cumsum(true_BG, axis=1)
    called_BG = found_BG + np.cumsum(false_BG, axis=1)
    precision_BG = np.divide(found_BG, called_BG, out=np.zeros_like(found_BG), where=called_BG > 0)
    total_B, negatives_B = true_BG.sum(1), false_BG.sum(1)
    return _divide((precision_BG * true_BG).sum(1), np.where(negatives_B > 0, total_B, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class _CalibrationError:
    """Mean distance of probability and frequency over ten bins of equal width, weighted by their size."""

    name: str

    def __call__(self, forecast: Forecast, weights_BP: np.ndarray) -> np.ndarray:
        seen_N = forecast.observed_NH[:, 0]
        probability_N = forecast.middle_NH[:, 0]
        if not np.isfinite(probability_N[seen_N]).all():
            return np.full(len(weights_BP), np.nan)
        bin_N = np.clip((np.where(seen_N, probability_N, 0.0) * BINS).astype(np.int64), 0, BINS - 1)
        gap_N = probability_N - (forecast.target_NH[:, 0] > 0.5)
        gap_B, total_B = np.zeros(len(weights_BP)), np.zeros(len(weights_BP))
        for number in range(BINS):
            inside_N = seen_N & (bin_N == number)
            gap_B += np.abs(weights_BP @ per_patient(np.where(inside_N, gap_N, 0.0), forecast))
            total_B += weights_BP @ per_patient(inside_N, forecast)
        return _divide(gap_B, total_B)


def _mean_of(score: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[Forecast], Sums]:
    def sums(forecast: Forecast) -> Sums:
        seen_N, probability_N = forecast.observed_NH[:, 0], forecast.middle_NH[:, 0]
        score_N = score(forecast.target_NH[:, 0], probability_N).astype(float)
        score_N = np.where(np.isfinite(probability_N), score_N, np.nan)
        return per_patient(np.where(seen_N, score_N, 0.0), forecast), per_patient(seen_N, forecast)

    return sums


def _divide(above_B: np.ndarray, below_B: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(above_B, below_B, out=np.full(len(below_B), np.nan), where=below_B > 0))
