"""Print how good alarms of hypoxemia are on recordings of real people, beside limits on the SpO2 itself.

Run it from the root:
    twinward data convert physionet2019 ../shared/data/physionet2019b icu
    .venv/bin/python -m benchmarks.alarms_spo2 icu 60
    twinward data convert varfio2 ../shared/data/varfio2 bidmc ../shared/data/bidmc oximetry
    .venv/bin/python -m benchmarks.alarms_spo2 oximetry 5

Judged are the later halves of patients whom the site's model has not seen (five folds of patients); base is
the public start, the patient's offset is from the earlier half. All ways of ringing go through the same
engine, in steps of the horizon for charts and of a minute for monitors: it begins at the limit, ends at 60 %
of a probability or 2 % of saturation above, and is silent for a horizon. An event is a run of windows whose
last value is 90 % or more and whose next horizon is low (mean below 90 %), as
`twin.tasks.metrics.onset` has it. It was told
of if the alarm was active at the last of them, before the low value was read. An alarm is false if neither
the value that it began at nor the horizon after it is low. Only moments whose next horizon was observed
count. *Active* is the share of time that an alarm is on: who is always warned is always warned before, and
has a long lead. Intervals: 95 %, 1,000 resamples of the patients of a site.

Letters: N windows, P patients, W ways of ringing, B resamples.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
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
from twin.personal.logistic import adapt_patient_classifiers, adapt_site_classifier, offset_precision
from twin.splits import Split
from twin.tasks.protocol import Forecast

LOW = 90.0
MIN_US = 60_000_000
VALUES = (90.0, 91.0, 92.0, 93.0, 94.0, 95.0, 96.0)
CHANCES = (0.5, 0.3, 0.2, 0.1, 0.07, 0.05, 0.03, 0.02, 0.015, 0.01, 0.007)
RATES, SHARES = (0.1, 0.25, 0.5, 1.0), (2.0, 5.0, 10.0, 20.0)
# Less than this tells nothing at the same cost.
LEAST_DAYS = 30.0
MODELS = ("global", "personal")
# Every way rings above its limit, so values are turned round.
WAYS = (
    *((f"SpO2 < {limit:g}", "value", -limit + 1e-6, -limit - 2.0) for limit in VALUES),
    *((f"{name}, risk > {chance:g}", name, chance, 0.6 * chance) for name in MODELS for chance in CHANCES),
)
FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Sums per patient and way, P × W; events and days P."""

    events: np.ndarray
    days: np.ndarray
    told: np.ndarray
    lead_min: np.ndarray
    alarms: np.ndarray
    false: np.ndarray
    active_days: np.ndarray


def main() -> None:
    """A table for each site."""
    torch.set_num_threads(1)
    horizon_min = int(sys.argv[2])
    task = schema.Task(
        name="hypoxemia", horizon_min=horizon_min, stride_min=horizon_min if horizon_min >= 60 else 1
    )
    for folder in sorted(p for p in Path(sys.argv[1]).iterdir() if p.is_dir()):
        said = forecasts(folder, task)
        judged = judge(said, horizon_min=horizon_min, stride_min=task.stride_min)
        people, windows = len(np.unique(said["global"].patient_N)), len(said["global"].patient_N)
        say(f"\n{folder.name}: {people} patients, {windows:,} windows, {judged.days.sum():.0f} days,")
        say(f"{judged.events.sum():.0f} events of {np.count_nonzero(judged.events)} patients")
        _print(judged)


def forecasts(folder: Path, settings: schema.Task) -> dict[str, Forecast]:
    """What each model says of the windows that judge, in the order patient, time."""
    config = schema.Config(task=settings)
    reading = read_site(folder, None)
    if reading.problems:
        raise SystemExit(f"{folder}: `twinward data check` says what is wrong with it")
    task = tasks.build(config.task)
    network = models.build(config.model, task)
    network.requires_grad_(False)
    load_state(network, prior.initial_state(config))
    examples = task.examples(reading.site)
    examples = examples if network.reads_series else examples.without_series()
    early_N, late_N = halves(examples, float(settings.horizon_min))
    parts: dict[str, list[Forecast]] = {name: [] for name in MODELS}
    for index in range(FOLDS):
        held = Split(kind="folds", count=FOLDS, index=index).test_patients("", examples.patients)
        test_N = torch.tensor([patient in set(held) for patient in examples.patients])[examples.patient_N]
        training = examples.at(~test_N)
        site = adapt_site_classifier(network, training)
        precision = offset_precision(network, site, training, early_N[~test_N], late_N[~test_N])
        personal = adapt_patient_classifiers(network, site, examples, early_N & test_N, precision)
        rows = examples.at(test_N & late_N)
        parts["global"].append(task.forecast(network(rows), rows))
        parts["personal"].append(task.forecast(personal.outputs(network, rows), rows))
    return {name: _joined(found) for name, found in parts.items()}


def judge(said: dict[str, Forecast], *, horizon_min: int, stride_min: int) -> Judged:
    """Runs the engine over every patient's windows, and holds its alarms against what came."""
    base = next(iter(said.values()))
    active_NW, begun_NW, since_NW = _rung(said, float(horizon_min))
    patients = len(base.patients)
    low_N, next_N = base.anchor_N < LOW, base.target_NH[:, 0] > 0.5
    onset_N = _last_of_runs(base, ~low_N & next_N, 2 * stride_min * MIN_US)
    lead_NW = (base.time_us_N[:, None] - since_NW) / MIN_US + stride_min

    def tally(values: np.ndarray) -> np.ndarray:
        sums = np.zeros((patients, *values.shape[1:]))
        np.add.at(sums, base.patient_N, values.astype(float))
        return sums

    told_NW = onset_N[:, None] & active_NW
    return Judged(
        events=tally(onset_N),
        days=np.bincount(base.patient_N, minlength=patients) * stride_min / 1440.0,
        told=tally(told_NW),
        lead_min=tally(np.where(told_NW, lead_NW, 0.0)),
        alarms=tally(begun_NW),
        false=tally(begun_NW & ~(low_N | next_N)[:, None]),
        active_days=tally(active_NW) * stride_min / 1440.0,
    )


def _rung(said: dict[str, Forecast], silent_min: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether each way's alarm is active after each window, began at it, and since when; N × W each."""
    base = next(iter(said.values()))
    rules = tuple(
        Rule(
            name=f"way-{way}", kind="value", quantity="last", of="spo2", side="above", on=on, off=off,
            off_for_min=0.0, silent_min=silent_min, lapse_min=1e5, text="low",
        )
        for way, (_, _, on, off) in enumerate(WAYS)
    )  # fmt: skip
    engine = Engine(rules)
    engine.reserve(len(base.patients))
    names = np.arange(len(base.patients)).astype(str).astype(object)
    count_P = np.bincount(base.patient_N, minlength=len(base.patients))
    first_P = np.cumsum(count_P) - count_P
    since_PW = np.zeros((len(base.patients), len(WAYS)))
    since_NW = np.zeros((len(base.patient_N), len(WAYS)))
    begun_NW = np.zeros(since_NW.shape, bool)
    for turn in range(int(count_P.max())):
        who = np.flatnonzero(count_P > turn)
        at = first_P[who] + turn
        place = dict(zip(names[who], at, strict=True))
        for way, (_, kind, _, _) in enumerate(WAYS):
            score = -base.anchor_N[at] if kind == "value" else said[kind].middle_NH[at, 0]
            for notice in engine.step(way, who, score, base.time_us_N[at], names):
                patient = notice.alert.patient_id
                raised = notice.event == "raised"
                begun_NW[place[patient], way] |= raised
                since_PW[int(patient), way] = base.time_us_N[place[patient]] if raised else 0.0
        since_NW[at] = since_PW[who]
    return since_NW > 0, begun_NW, since_NW


def _last_of_runs(base: Forecast, chosen_N: np.ndarray, apart_us: int) -> np.ndarray:
    """The last window of each run of chosen windows of a patient, at most so far apart (N, bool)."""
    goes_on = (
        chosen_N[1:] & (base.patient_N[1:] == base.patient_N[:-1]) & (np.diff(base.time_us_N) <= apart_us)
    )
    return np.asarray(chosen_N & ~np.append(goes_on, False))


def _joined(parts: list[Forecast]) -> Forecast:
    names = [f.name for f in fields(Forecast) if f.name not in ("patients", "part_N")]
    whole: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    joined = replace(parts[0], **whole)
    return joined.at(np.argsort(joined.patient_N, kind="stable"))


def _print(judged: Judged) -> None:
    heads = ("told before, %", "precision, %", "lead, min", "false/day", "active, % of time")
    say(f"{'alarm':<24} " + " ".join(f"{head:>20}" for head in heads))
    people = np.flatnonzero(judged.days)
    draws = np.random.default_rng(7)
    weights = draws.multinomial(len(people), np.full(len(people), 1 / len(people)), 1000).astype(np.float64)
    for way, (name, _, _, _) in enumerate(WAYS):
        told, alarms, false = (column[people, way] for column in (judged.told, judged.alarms, judged.false))
        figures = (
            (100 * told, judged.events[people]),
            (100 * (alarms - false), alarms),
            (judged.lead_min[people, way], told),
            (false, judged.days[people]),
            (100 * judged.active_days[people, way], judged.days[people]),
        )
        say(f"{name:<24} " + " ".join(f"{_interval(a, b, weights):>20}" for a, b in figures))
    for what, costs, spent in (
        ("false alarms a day", RATES, judged.false),
        ("percent of time with an alarm", SHARES, 100 * judged.active_days),
    ):
        say(f"told before, %, at so many {what}")
        for cost in costs if judged.days.sum() > LEAST_DAYS else ():
            say(f"{cost:>6}: {_matched(judged, cost, spent[people], people, weights)}")


def _matched(
    judged: Judged, cost: float, spent_PW: np.ndarray, people: np.ndarray, weights: np.ndarray
) -> str:
    """Told before at the same cost: on straight lines between the limits tried."""
    draws = np.concatenate([np.ones((1, len(people))), weights])  # the first is the figure itself
    told_BW = 100 * (draws @ judged.told[people]) / np.maximum(draws @ judged.events[people], 1.0)[:, None]
    spent_BW = (draws @ spent_PW) / (draws @ judged.days[people])[:, None]
    ways = {kind: [w for w, way in enumerate(WAYS) if way[1] == kind] for kind in ("value", *MODELS)}
    found = {
        kind: np.array([_at(cost, told[w], spent[w]) for told, spent in zip(told_BW, spent_BW, strict=True)])
        for kind, w in ways.items()
    }
    found |= {f"{model} - value": found[model] - found["value"] for model in MODELS}
    return "; ".join(f"{name} {_bounds(drawn)}" for name, drawn in found.items())


def _at(cost: float, told_W: np.ndarray, spent_W: np.ndarray) -> float:
    order = np.argsort(spent_W, kind="stable")
    beyond = cost > spent_W[order[-1]]
    return np.nan if beyond else float(np.interp(cost, spent_W[order], told_W[order]))


def _bounds(values_B: np.ndarray) -> str:
    if np.isnan(values_B).mean() > 0.05:
        return "beyond the limits tried"
    low, high = np.nanquantile(values_B[1:], (0.025, 0.975))
    return f"{values_B[0]:.0f} ({low:.0f} to {high:.0f})"


def _interval(above_P: np.ndarray, below_P: np.ndarray, weights_BP: np.ndarray) -> str:
    if below_P.sum() == 0:
        return "-"
    above_B, below_B = weights_BP @ above_P, weights_BP @ below_P
    low, high = np.quantile(above_B[below_B > 0] / below_B[below_B > 0], (0.025, 0.975))
    figure = above_P.sum() / below_P.sum()
    digits = 2 if figure < 10 else 0
    return f"{figure:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def say(text: str) -> None:
    """Prints at once, also into a file."""
    print(text, flush=True)


if __name__ == "__main__":
    main()
