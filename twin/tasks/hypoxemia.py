"""Probability that the mean SpO2 of the next minutes falls below a threshold.

From oxygen, breathing and heart of the last twelve horizons (an hour for five minutes, half a day for an
hour). A label is known where enough of the horizon was observed; nothing is filled. Most hypoxemia of the
next minutes is hypoxemia of this minute: figures named `onset` count only who is not low yet.

Letters as in `twin.tasks.protocol`; H = O = 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from conf import schema
from twin.site import Site
from twin.tasks import hypoxemia_inputs as inputs
from twin.tasks.metrics import binary_metrics, onset_metrics
from twin.tasks.protocol import Examples, Forecast, Metric
from twin.tasks.windows import Clock, Track, last_rows, microseconds, moments

# So much of what a patient's monitor usually writes in a horizon must be there for a label.
OBSERVED_SHARE = 0.6
# How far beyond the horizon a value still counts, as a share of the patient's usual step: clocks jitter.
JITTER = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class HypoxemiaTask:
    """Risk of hypoxemia within the horizon. Not a diagnosis, and no alarm that replaces a monitor's own.

    Attributes:
        horizon_min: minutes whose mean SpO2 is judged.
        low_pct: hypoxemia is a mean below it.
        stride_min: minutes between two moments of prediction of a patient.
        false_alarms_per_day: at which warnings are judged.
    """

    horizon_min: int
    low_pct: float
    stride_min: int
    false_alarms_per_day: float
    name: str = "hypoxemia"
    outputs: int = 1
    latents: int = 1
    channels: int = inputs.CHANNELS
    columns: tuple[str, ...] = field(default_factory=inputs.columns)

    @staticmethod
    def build(config: schema.Task) -> HypoxemiaTask:
        """The task as configured."""
        return HypoxemiaTask(
            horizon_min=config.horizon_min,
            low_pct=config.spo2_low_pct,
            stride_min=config.stride_min,
            false_alarms_per_day=config.false_alarms_per_day,
        )

    @property
    def horizons_min(self) -> tuple[int, ...]:
        return (self.horizon_min,)

    @property
    def history_min(self) -> float:
        """How far back the window of this moment looks, which may begin two horizons ago."""
        return inputs.LOOKS_BACK * self.horizon_min

    def examples(self, site: Site) -> Examples:
        """A window for the first SpO2 value in each stride whose label is known."""
        clock = Clock.over(microseconds(site.observations["time"]))
        found = inputs.tracks(site.observations, site.patients.index, clock)
        rows = moments(found.spo2, self.stride_min)
        label_N, known_N = labels(found.spo2, clock, rows, horizon_min=self.horizon_min, low_pct=self.low_pct)
        return self._windows(site, found, rows[known_N], label_N[known_N], known_N[known_N])

    def latest(self, site: Site, now_us: int) -> Examples:
        """The window at the last SpO2 value of each patient who has one in the last two horizons."""
        live = site.observations[microseconds(site.observations["time"]) <= now_us]
        clock = Clock.over(microseconds(live["time"]))
        found = inputs.tracks(live, site.patients.index, clock)
        rows = last_rows(found.spo2)
        fresh_us = now_us - round(inputs.CARRY_SPO2 * self.horizon_min * 60e6)
        rows = rows[found.spo2.time_us_R[rows] >= fresh_us]
        return self._windows(site, found, rows, np.zeros(len(rows)), np.zeros(len(rows), bool))

    def sequence(self, examples: Examples) -> Tensor:
        """Channels over time, oldest first, at order one; 0 where nothing is known."""
        return examples.series_NTC.transpose(1, 2)

    def loss(self, outputs_NO: Tensor, examples: Examples) -> Tensor:
        """Cross-entropy of each window in nats, 0 without a label."""
        each = functional.binary_cross_entropy_with_logits(
            outputs_NO[:, 0], examples.target_NH[:, 0], reduction="none"
        )
        return each * examples.observed_NH[:, 0].to(each.dtype)

    def loss_gradient(self, outputs_NO: Tensor, examples: Examples) -> Tensor:
        """Probability minus label, 0 without a label."""
        return (torch.sigmoid(outputs_NO) - examples.target_NH) * examples.observed_NH

    def forecast(self, outputs_NO: Tensor, examples: Examples) -> Forecast:
        """The probability, in all three places of a quantile."""
        probability = torch.sigmoid(outputs_NO.detach().double()).cpu().numpy()
        return Forecast.of(examples, probability, probability, probability)

    def persistence_outputs(self, examples: Examples) -> Tensor:
        """Log odds that rise by one for each percent that the last SpO2 is lower, even at the threshold."""
        return (self.low_pct - examples.anchor_N.double())[:, None]

    def metrics(self) -> tuple[Metric, ...]:
        """Ranking, calibration; the same of onsets, warnings at a rate of false alarms, warning time."""
        chosen = tuple(metric for metric in binary_metrics() if metric.name != "accuracy")
        return (
            *chosen,
            *onset_metrics(
                threshold=self.low_pct,
                horizon_min=self.horizon_min,
                stride_min=self.stride_min,
                false_alarms_per_day=self.false_alarms_per_day,
            ),
        )

    def _windows(
        self, site: Site, found: inputs.Tracks, rows: np.ndarray, label_N: np.ndarray, known_N: np.ndarray
    ) -> Examples:
        """The windows at some rows of the SpO2 track, with their labels."""
        patient_N, now_us_N = found.spo2.patient_R[rows], found.spo2.time_us_R[rows]
        anchor_N = found.spo2.value_R[rows]
        series_NTC = inputs.series(found, patient_N, now_us_N, self.horizon_min)
        table_NF = inputs.table(
            found,
            series_NTC,
            patient_N,
            now_us_N,
            anchor_N,
            horizon_min=self.horizon_min,
            low_pct=self.low_pct,
        )
        return Examples(
            series_NTC=torch.from_numpy(series_NTC),
            static_NS=torch.zeros(len(rows), 0),
            table_NF=torch.from_numpy(table_NF),
            anchor_N=torch.from_numpy(anchor_N.astype(np.float32)),
            target_NH=torch.from_numpy(label_N.astype(np.float32)[:, None]),
            observed_NH=torch.from_numpy(known_N[:, None]),
            patient_N=torch.from_numpy(patient_N),
            time_us_N=torch.from_numpy(now_us_N),
            patients=tuple(str(p) for p in site.patients.index),
        )


def labels(
    spo2: Track, clock: Clock, rows: np.ndarray, *, horizon_min: float, low_pct: float
) -> tuple[np.ndarray, np.ndarray]:
    """Whether the mean of the values in (now, now + horizon] is below the threshold, and if it is known.

    It is known where at least `OBSERVED_SHARE` of the values are there that the patient's usual step
    (median over the record) lets expect; nowhere if that step is longer than the horizon.

    Args:
        spo2: of all patients.
        clock: of the track.
        rows: of the track, the moments of prediction (N).
        horizon_min: minutes.
        low_pct: threshold.

    Returns:
        Label (N, bool, False where not known) and known (N, bool).
    """
    if not len(rows):
        return np.zeros(0, bool), np.zeros(0, bool)
    step_min_N = _usual_step_min(spo2)[spo2.patient_R[rows]]
    now_us = spo2.time_us_R[rows]
    slack_us = np.nan_to_num(JITTER * step_min_N * 60e6)
    until_us = now_us + np.round(horizon_min * 60e6 + slack_us).astype(np.int64)
    first, last = inputs.rows_between(spo2, clock, spo2.patient_R[rows], now_us, until_us)
    expected_N = np.floor((horizon_min + JITTER * step_min_N) / step_min_N)
    known = (last > first) & (expected_N >= 1) & (last - first >= OBSERVED_SHARE * expected_N)
    total = np.concatenate([[0.0], np.cumsum(spo2.value_R - low_pct)])
    return known & (total[last] - total[first] < -1e-9), known


def _usual_step_min(spo2: Track) -> np.ndarray:
    """Median minutes between two values of each patient, NaN with fewer than two (up to the last patient)."""
    minutes = pd.Series(np.diff(spo2.time_us_R) / 60e6)
    same = spo2.patient_R[1:] == spo2.patient_R[:-1]
    median = minutes[same].groupby(spo2.patient_R[1:][same]).median()
    step_min: np.ndarray = median.reindex(np.arange(int(spo2.patient_R.max()) + 1)).to_numpy(np.float64)
    return step_min
