"""Print how good alarms of hypoglycaemia are, and whether bands hold, on recordings of real people.

Run it from the root:
    twinward data convert hall ../shared/data/hall colas ../shared/data/colas \
        d1namo ../shared/data/d1namo t1d_uom ../shared/data/t1d_uom studies
    PYTHONPATH=. .venv/bin/python benchmarks/alarms.py studies

Each patient's later half is judged: by a site model of other patients (five folds) from the public start, and
a personal one from the earlier half, with bands that adapt as the record goes on. All ways of ringing go
through the same engine (begin at the limit, end 5 mg/dL above it for 15 minutes, silent for 30). An event is
`twin.tasks.metrics.alarms.event_onsets` below 70 mg/dL. It was told of if an alarm was active at some time in
the hour up to its onset, the onset included. An alarm is false if no reading of the hour after it began is
below 70 mg/dL. Intervals: 95 %, 1,000 resamples of the patients of a site.

Letters: N windows, P patients, H horizons, L levels of coverage, W ways of ringing, E events, A alarms.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.trainer import load_state
from conf import schema
from twin import models, prior, tasks
from twin.alerts.engine import Engine
from twin.alerts.rules import Rule
from twin.connectors.folder import read_site
from twin.halves import halves
from twin.personal.bayes import PathTask, adapt_patients, adapt_site
from twin.site import Site
from twin.splits import Split
from twin.tasks.metrics.alarms import event_onsets
from twin.tasks.protocol import Examples, Forecast
from twin.ward.bands import LEVELS, Bands

LOW = 70.0
HOUR_US, MIN_US = 3_600_000_000, 60_000_000
WAYS = (
    *((f"value < {limit}", "value", limit) for limit in (70, 75, 80, 90)),
    *((f"line, 20 min ahead < {limit}", "line20", limit) for limit in (55, 60, 65, 70, 75)),
    *((f"line, 30 min ahead < {limit}", "line30", limit) for limit in (55, 70)),
    *((f"path to 30 min < {limit}", "path30", limit) for limit in (65, 70, 75, 80, 85)),
    *((f"80 % band to 30 min < {limit}", "low30", limit) for limit in (50, 55, 60, 65, 70)),
)
RULE = Rule(
    name="low", kind="value", quantity="last", of="glucose", side="below", on=0.0, off=5.0, text="low",
    off_for_min=15.0, silent_min=30.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Per patient and way, P × W; days and events are the same for all ways."""

    events: np.ndarray
    told: np.ndarray
    early: np.ndarray
    lead_min: np.ndarray
    alarms: np.ndarray
    false: np.ndarray
    days: np.ndarray


def main() -> None:
    """Both tables, site after site."""
    torch.set_num_threads(1)
    for folder in sorted(p for p in Path(sys.argv[1]).iterdir() if p.is_dir()):
        forecast, slope_N = _forecast(folder)
        people, windows = len(np.unique(forecast.patient_N)), len(forecast.patient_N)
        say(f"\n{folder.name}: {people} patients, {windows:,} windows")
        low_NHL, high_NHL = adapted(forecast)
        _print_bands(forecast, low_NHL, high_NHL)
        _print_alarms(forecast, slope_N, low_NHL)


def adapted(forecast: Forecast) -> tuple[np.ndarray, np.ndarray]:
    """The bands as they stood at each window: outcomes teach once they are there. N × H × L."""
    middle_NH, horizons = forecast.middle_NH, np.array(tasks.glucose.HORIZONS_MIN)
    spread = np.maximum(np.stack([middle_NH - forecast.low_NH, forecast.high_NH - middle_NH], 1), 1e-3)
    bands = Bands(len(horizons))
    bands.reserve(len(forecast.patients))
    first_P, count_P = _runs(forecast)
    taught_PH = np.repeat(first_P[:, None], len(horizons), axis=1)
    low_NHL, high_NHL = np.zeros((*middle_NH.shape, 2)), np.zeros((*middle_NH.shape, 2))
    factor_N2HL = np.zeros((len(middle_NH), 2, len(horizons), 2))
    for turn in range(int(count_P.max())):
        patients = np.flatnonzero(count_P > turn)
        rows = first_P[patients] + turn
        for h, ahead_min in enumerate(horizons):
            while True:
                at = taught_PH[patients, h]
                ripe = at < rows
                ripe &= forecast.time_us_N[at] + (ahead_min + 2.5) * MIN_US <= forecast.time_us_N[rows]
                if not ripe.any():
                    break
                at, who = at[ripe], patients[ripe]
                taught_PH[who, h] += 1
                seen = forecast.observed_NH[at, h]
                off = forecast.target_NH[at[seen], h] - middle_NH[at[seen], h]
                side = np.where(off < 0, 0, 1)
                bands.learn(who[seen], h, off / spread[at[seen], side, h], factor_N2HL[at[seen], :, h])
        factor = factor_N2HL[rows] = bands.factors(patients)
        low_NHL[rows] = middle_NH[rows, :, None] - spread[rows, 0, :, None] * factor[:, 0]
        high_NHL[rows] = middle_NH[rows, :, None] + spread[rows, 1, :, None] * factor[:, 1]
    return low_NHL, high_NHL


def _forecast(folder: Path) -> tuple[Forecast, np.ndarray]:
    """Personal forecasts of the later halves, and how glucose moved over the last 15 minutes (mg/dL/min)."""
    task = tasks.build(schema.Task(stride_min=5))
    if not isinstance(task, PathTask):
        raise TypeError("the glucose task forecasts a path")
    config = schema.Config(task=schema.Task(stride_min=5))
    network = models.build(config.model, task)
    load_state(network, prior.initial_state(config))
    network.requires_grad_(False)
    whole = task.examples(_site(folder))
    slope_N = _slope(whole)
    examples = whole.without_series()
    early_N, late_N = halves(examples, 60.0)
    parts, slopes = [], []
    count = min(5, len(examples.patients))
    for index in range(count):
        judged = set(Split(kind="folds", count=count, index=index).test_patients("", examples.patients))
        in_P = torch.tensor([patient in judged for patient in examples.patients])
        test_N = in_P[examples.patient_N]
        site = adapt_site(network, task, examples.at(~test_N))
        own = examples.at(test_N)
        personal = adapt_patients(network, task, site, own, early_N[test_N])
        rows = own.at(late_N[test_N])
        parts.append(task.forecast(personal.outputs(network, task, rows), rows))
        slopes.append(slope_N[(test_N & late_N).numpy()])
    order = np.argsort(np.concatenate([part.patient_N for part in parts]), kind="stable")
    names = (
        "low_NH",
        "middle_NH",
        "high_NH",
        "target_NH",
        "observed_NH",
        "anchor_N",
        "patient_N",
        "time_us_N",
    )
    joined: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])[order] for name in names
    }
    return replace(parts[0], **joined), np.concatenate(slopes)[order]


def _site(folder: Path) -> Site:
    reading = read_site(folder, None)
    if reading.problems:
        raise SystemExit(f"{folder}: `twinward data check` says what is wrong with it")
    return reading.site


def _slope(examples: Examples) -> np.ndarray:
    """Least squares over the known slots of the last 15 minutes; 0 where fewer than three are known."""
    value = examples.series_NTC[:, -4:, 0].double().numpy()
    known = examples.series_NTC[:, -4:, 1].numpy() > 0
    time = np.array([-15.0, -10.0, -5.0, 0.0])
    count = np.maximum(known.sum(1), 1)
    centre = (known * time).sum(1) / count
    level = (known * value).sum(1) / count
    above = (known * (time - centre[:, None]) * (value - level[:, None])).sum(1)
    below = (known * np.square(time - centre[:, None])).sum(1)
    return np.where(known.sum(1) >= 3, above / np.maximum(below, 1e-9), 0.0)


def _runs(forecast: Forecast) -> tuple[np.ndarray, np.ndarray]:
    count_P = np.bincount(forecast.patient_N, minlength=len(forecast.patients))
    return np.cumsum(count_P) - count_P, count_P


def _print_bands(forecast: Forecast, low_NHL: np.ndarray, high_NHL: np.ndarray) -> None:
    say(f"{'band':<8} {'horizon':>7} {'fixed: %, patients':>30} {'adapted: %, patients':>24} {'wider':>6}")
    for level, share in enumerate(LEVELS):
        for h, ahead_min in ((1, 30), (3, 60)):
            stretch = (1.0, 1.645 / 1.2816)[level]
            middle = forecast.middle_NH[:, h]
            fixed = (
                middle - stretch * (middle - forecast.low_NH[:, h]),
                middle + stretch * (forecast.high_NH[:, h] - middle),
            )
            moved = (low_NHL[:, h, level], high_NHL[:, h, level])
            shown = [_coverage(forecast, h, *band) for band in (fixed, moved)]
            wider = float(np.mean(moved[1] - moved[0]) / np.mean(fixed[1] - fixed[0]))
            told = [f"{100 * c.mean():5.1f} {_span(100 * c):>16}" for c in shown]
            say(f"{100 * share:.0f} %     {ahead_min:>7} {told[0]:>30} {told[1]:>24} {wider:6.2f}")


def _coverage(forecast: Forecast, h: int, low_N: np.ndarray, high_N: np.ndarray) -> np.ndarray:
    """The share of each patient's outcomes within the band, patients with a day of windows."""
    seen = forecast.observed_NH[:, h]
    within = (forecast.target_NH[:, h] >= low_N) & (forecast.target_NH[:, h] <= high_N)
    patients = len(forecast.patients)
    count_P = np.bincount(forecast.patient_N[seen], minlength=patients)
    inside_P = np.bincount(forecast.patient_N[seen], weights=within[seen], minlength=patients)
    return np.asarray(inside_P[count_P >= 144] / count_P[count_P >= 144])


def _span(values: np.ndarray) -> str:
    return f"{np.quantile(values, 0.1):.1f} to {np.quantile(values, 0.9):.1f}"


def _print_alarms(forecast: Forecast, slope_N: np.ndarray, low_NHL: np.ndarray) -> None:
    anchor_N = forecast.anchor_N
    scores = {
        "value": anchor_N,
        "line20": anchor_N + 20.0 * slope_N,
        "line30": anchor_N + 30.0 * slope_N,
        "path30": np.minimum(anchor_N, forecast.middle_NH[:, :2].min(1)),
        "low30": np.minimum(anchor_N, low_NHL[:, :2, 0].min(1)),
    }
    judged = judge(forecast, np.stack([scores[kind] - limit for _, kind, limit in WAYS], axis=1))
    say(f"{int(judged.events.sum())} events in {judged.days.sum():.0f} patient-days")
    heads = ("told of, %", "15 min early, %", "precision, %", "lead, min", "false/day")
    say(f"{'alarm':<28} " + " ".join(f"{head:>18}" for head in heads))
    draws = np.random.default_rng(7)
    weights = draws.multinomial(len(judged.events), np.full(len(judged.events), 1 / len(judged.events)), 1000)
    for way, (name, _, _) in enumerate(WAYS):
        figures = (
            (100 * judged.told[:, way], judged.events),
            (100 * judged.early[:, way], judged.events),
            (100 * (judged.alarms - judged.false)[:, way], judged.alarms[:, way]),
            (judged.lead_min[:, way], judged.told[:, way]),
            (judged.false[:, way], judged.days),
        )
        say(f"{name:<28} " + " ".join(f"{_interval(a, b, weights):>18}" for a, b in figures))


def judge(forecast: Forecast, score_NW: np.ndarray) -> Judged:
    """Runs the engine over every patient's windows, and holds its alarms against what came."""
    patients, ways = len(forecast.patients), score_NW.shape[1]
    first_P, count_P = _runs(forecast)
    engine = Engine((RULE,))
    engine.reserve(patients * ways)
    names = np.arange(patients * ways).astype(str).astype(object)
    begun: list[list[int]] = [[] for _ in names]
    ended: list[list[int]] = [[] for _ in names]
    for turn in range(int(count_P.max())):
        who = np.flatnonzero(count_P > turn)
        at = first_P[who] + turn
        row = (who[:, None] * ways + np.arange(ways)).ravel()
        now = np.repeat(forecast.time_us_N[at], ways)
        for notice in engine.step(0, row, score_NW[at].ravel(), now, names):
            moments = begun if notice.event == "raised" else ended
            moments[int(notice.alert.patient_id)].append(round(notice.at.timestamp() * 1e6))
    parts = [
        _patient(forecast, p, slice(first_P[p], first_P[p] + count_P[p]), begun, ended, ways)
        for p in range(patients)
    ]
    events, days = np.array([part[0] for part in parts]), np.array([part[1] for part in parts])
    table = np.array([part[2] for part in parts])
    return Judged(
        events=events, days=days, told=table[..., 0], early=table[..., 1], lead_min=table[..., 2],
        alarms=table[..., 3], false=table[..., 4],
    )  # fmt: skip


def _patient(
    forecast: Forecast, patient: int, rows: slice, begun: list[list[int]], ended: list[list[int]], ways: int
) -> tuple[float, float, np.ndarray]:
    """(events, days, per way: told, early, lead, alarms, false)."""
    time_us, value = forecast.time_us_N[rows], forecast.anchor_N[rows]
    table = np.zeros((ways, 5))
    if not len(time_us):
        return 0.0, 0.0, table
    onset_E = event_onsets(time_us / MIN_US, value, LOW) * MIN_US
    low_us = time_us[value < LOW]
    for way in range(ways):
        start_A = np.array(begun[patient * ways + way], dtype=float)
        end_A = np.array(ended[patient * ways + way] + [np.inf] * len(start_A), dtype=float)[: len(start_A)]
        for onset in onset_E:
            active = (start_A <= onset) & (end_A >= onset - HOUR_US)
            if active.any():
                lead = min(60.0, (onset - start_A[active].min()) / MIN_US)
                table[way, :3] += 1.0, lead >= 15.0, lead
        later = np.searchsorted(time_us, start_A + HOUR_US, "right") - np.searchsorted(
            time_us, start_A, "right"
        )
        seen = start_A[later > 0]
        lows = np.searchsorted(low_us, seen + HOUR_US, "right") - np.searchsorted(low_us, seen, "left")
        table[way, 3:] = len(seen), (lows == 0).sum()
    return float(len(onset_E)), len(time_us) * 5.0 / 1440.0, table


def _interval(above_P: np.ndarray, below_P: np.ndarray, weights_BP: np.ndarray) -> str:
    if below_P.sum() == 0:
        return "-"
    drawn = (weights_BP @ above_P) / np.maximum(weights_BP @ below_P, 1e-9)
    low, high = np.quantile(drawn[weights_BP @ below_P > 0], (0.025, 0.975))
    digits = 2 if above_P.sum() / below_P.sum() < 10 else 0
    return f"{above_P.sum() / below_P.sum():.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def say(text: str) -> None:
    """Prints at once, also into a file."""
    print(text, flush=True)


if __name__ == "__main__":
    main()
