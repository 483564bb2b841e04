"""What a task is: how windows, targets, loss and metrics are made from a site's data.

Shapes: N windows, T slots of history, C channels, S static values, H horizons, O outputs of the
network, P patients, B weightings of patients, F columns of the table of inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from twin.site import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Windows of one site, in the order patient, time. Inputs hold nothing later than `time_us_N`.

    Attributes:
        series_NTC: history, oldest first, float32; T may be 0 (static tasks, and where no model
            reads it).
        static_NS: values of the window or the patient without a time axis, float32.
        table_NF: the inputs as numbers of order one, columns as `Task.columns`, the last is 1.
        anchor_N: the last observed value, to which a forecast adds (mg/dL); 0 for static tasks.
        target_NH: what is to be forecast (mg/dL, or label 0/1), 0 where not observed, float32.
        observed_NH: True where the target was observed; targets are never filled.
        patient_N: index into `patients`, int64, non-decreasing.
        time_us_N: moment of prediction, microseconds since 1970 UTC; 0 for static tasks.
        patients: pseudonyms.
    """

    series_NTC: Tensor
    static_NS: Tensor
    table_NF: Tensor
    anchor_N: Tensor
    target_NH: Tensor
    observed_NH: Tensor
    patient_N: Tensor
    time_us_N: Tensor
    patients: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.patient_N)

    def at(self, index: Tensor) -> Examples:
        """The windows that `index` (int64 or bool over N) names; `patients` stays whole."""
        if index.dtype == torch.bool:
            return self._each(lambda values: values[index])
        return self._each(lambda values: values.index_select(0, index))  # half the time for few windows

    def to(self, device: torch.device) -> Examples:
        """The same on another device."""
        return self._each(lambda values: values.to(device))

    def without_series(self) -> Examples:
        """The same without the history, for models that read the table alone."""
        return replace(self, series_NTC=self.series_NTC.new_zeros(len(self), 0, 0))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Examples:
        names = [f.name for f in fields(Examples) if f.name != "patients"]
        tensors: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        return replace(self, **tensors)


def merge(parts: Sequence[Examples]) -> Examples:
    """The windows of several sites as if they were one; patients are numbered on, site after site."""
    offsets = np.cumsum([0, *(len(part.patients) for part in parts)])
    joined = {
        f.name: torch.cat([getattr(part, f.name) for part in parts])
        for f in fields(Examples)
        if f.name not in ("patient_N", "patients")
    }
    return Examples(
        **joined,
        patient_N=torch.cat([part.patient_N + int(o) for part, o in zip(parts, offsets, strict=False)]),
        patients=tuple(patient for part in parts for patient in part.patients),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a model said of windows, beside what came; all that metrics and plots need.

    Attributes:
        low_NH, middle_NH, high_NH: 10, 50, 90 % quantiles (mg/dL); for a binary task the three
            are the same probability.
        target_NH, observed_NH, anchor_N, patient_N, time_us_N, patients: as in `Examples`, float64.
        part_N: which of several repeated judgements a window belongs to; figures are means over
            them. None is one judgement.
    """

    low_NH: np.ndarray
    middle_NH: np.ndarray
    high_NH: np.ndarray
    target_NH: np.ndarray
    observed_NH: np.ndarray
    anchor_N: np.ndarray
    patient_N: np.ndarray
    time_us_N: np.ndarray
    patients: tuple[str, ...]
    part_N: np.ndarray | None = None

    @classmethod
    def of(
        cls, examples: Examples, low_NH: np.ndarray, middle_NH: np.ndarray, high_NH: np.ndarray
    ) -> Forecast:
        """What was said of these windows, beside what came."""
        return cls(
            low_NH=low_NH,
            middle_NH=middle_NH,
            high_NH=high_NH,
            target_NH=examples.target_NH.double().cpu().numpy(),
            observed_NH=examples.observed_NH.cpu().numpy(),
            anchor_N=examples.anchor_N.double().cpu().numpy(),
            patient_N=examples.patient_N.cpu().numpy(),
            time_us_N=examples.time_us_N.cpu().numpy(),
            patients=examples.patients,
        )

    def at(self, index: np.ndarray) -> Forecast:
        """The windows that `index` names; `patients` stays whole."""
        names = [
            f.name for f in fields(Forecast) if f.name != "patients" and getattr(self, f.name) is not None
        ]
        arrays: dict[str, Any] = {name: getattr(self, name)[index] for name in names}
        return replace(self, **arrays)

    def judgements(self) -> tuple[Forecast, ...]:
        """Each of the repeated judgements alone."""
        if self.part_N is None:
            return (self,)
        return tuple(replace(self.at(self.part_N == part), part_N=None) for part in np.unique(self.part_N))


class Task(Protocol):
    """One thing to learn. Built from `conf.schema.Task` by `twin.tasks.build`.

    A network's trained last layer has `latents` outputs, from which a fixed public basis makes the
    O outputs: the fewer numbers are trained, the less privacy noise they carry.
    """

    @property
    def name(self) -> str:
        """As the configuration calls it."""
        ...

    @property
    def outputs(self) -> int:
        """O, numbers per window that `forecast` needs."""
        ...

    @property
    def latents(self) -> int:
        """Numbers per window that the trained last layer gives."""
        ...

    @property
    def horizons_min(self) -> tuple[int, ...]:
        """Minutes ahead of each target, rising; (0,) for a task without time."""
        ...

    @property
    def channels(self) -> int:
        """Of the history; 0 for a task without one."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of the table of inputs; the last is one."""
        ...

    def examples(self, site: Site) -> Examples:
        """All windows of a site."""
        ...

    def sequence(self, examples: Examples) -> Tensor:
        """The history as numbers of order one, shape N × `channels` × T; T is 0 for static tasks."""
        ...

    def loss(self, outputs_NO: Tensor, examples: Examples) -> Tensor:
        """The loss of each window, shape N, mean over its observed targets, 0 without any."""
        ...

    def loss_gradient(self, outputs_NO: Tensor, examples: Examples) -> Tensor:
        """The gradient of each window's loss at its outputs, shape N × O: autograd's, written out."""
        ...

    def forecast(self, outputs_NO: Tensor, examples: Examples) -> Forecast:
        """The network's outputs as quantiles (or probability) in the target's unit."""
        ...

    def metrics(self) -> tuple[Metric, ...]:
        """What forecasts of this task are judged by."""
        ...


@runtime_checkable
class LiveTask(Task, Protocol):
    """A task that forecasts from a living record, where nothing of what is to come is known."""

    def latest(self, site: Site, now_us: int) -> Examples:
        """One window for each patient with fresh enough data, the last by `now_us`; no target observed.

        Nothing later than `now_us` (microseconds since 1970 UTC) is read. The window is the one that
        `examples` makes at the same moment, targets aside.
        """
        ...


@runtime_checkable
class LastValueTask(Task, Protocol):
    """A task that can say what somebody forecasts who looks at the last value alone."""

    def persistence_outputs(self, examples: Examples) -> Tensor:
        """Outputs from the last value alone, N × O."""
        ...


class Metric(Protocol):
    """One figure of merit, named with its unit (`rmse_30_mg_dl`)."""

    @property
    def name(self) -> str:
        """Of the figure, with its unit."""
        ...

    def __call__(self, forecast: Forecast, weights_BP: np.ndarray) -> np.ndarray:
        """The figure for B weightings of the P patients (B,), NaN where it is not defined.

        A weighting is how often each patient of `forecast.patients` is counted: all ones give the
        figure itself, one-hot rows give it per patient, multinomial draws a bootstrap.
        """
        ...
