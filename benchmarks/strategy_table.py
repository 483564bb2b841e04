"""Every strategy with its defaults on one federation folder, without privacy and at epsilon 8.

Trains each strategy in the folds over patients that `twinward simulate` uses, and judges the global model, or
a site's own where a strategy makes one, as it does: later halves of records of patients whom training never
saw, mean over sites, 95 % intervals from resampled patients, and differences to FedAvg over the same
resamples. What `twinward simulate` does besides (baselines, site and personal models, a report) is left out:
it is the same for all of them.

    python -m benchmarks.strategy_table studies
    python -m benchmarks.strategy_table studies scaffold median
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from conf.load import load
from conf.schema import Config
from simulate.federation import run_federation
from simulate.fold import global_forecasts
from simulate.intervals import Judged, judge
from simulate.run import splits_of
from simulate.wards import Ward, open_wards
from twin import models, tasks
from twin.tasks.protocol import Forecast

# In the order of the names, Colas (208 people), D1NAMO, Hall, T1D-UOM: the largest does most, or least.
UNEQUAL = ["strategy.local_steps=10", "strategy.learning_rate=0.3", "engine.most_steps=[10,1,5,2]"]
BUSY = ["strategy.local_steps=10", "strategy.learning_rate=0.3", "engine.most_steps=[1,10,10,10]"]
RUNS: dict[str, list[str]] = {
    "fedavg": [],
    "fedavg, 2 of 4 sites a round": ["strategy.sites_per_round=2"],
    "fedavg, 5 local steps": ["strategy.local_steps=5", "strategy.learning_rate=0.3"],
    "fedprox": ["strategy=fedprox"],
    "scaffold": ["strategy=scaffold"],
    "median": ["strategy=median"],
    "trimmed_mean": ["strategy=trimmed_mean"],
    "fedavgm": ["strategy=fedavgm"],
    "fedadagrad": ["strategy=fedadagrad"],
    "fedadam": ["strategy=fedadam"],
    "fedyogi": ["strategy=fedyogi"],
    "fedavg, 1 to 10 local steps": UNEQUAL,
    "fednova, 1 to 10 local steps": ["strategy=fednova", *UNEQUAL],
    "fedavg, 1 step at the largest site": BUSY,
    "fednova, 1 step at the largest site": ["strategy=fednova", *BUSY],
    "qfedavg, q 0.2": ["strategy=qfedavg", "strategy.q=0.2"],
    "qfedavg, q 1": ["strategy=qfedavg"],
    "qfedavg, q 5": ["strategy=qfedavg", "strategy.q=5"],
    "fedavg, mlp": ["model=mlp"],
    "fedavg, tcn": ["model=tcn"],
    "fedavg, gru": ["model=gru"],
    "fedper, mlp, own heads": ["strategy=fedper", "model=mlp"],
    "fedper, linear, each site alone": ["strategy=fedper"],
}
METRICS = ("rmse_30_mg_dl", "rmse_60_mg_dl")
PRIVACY = ("privacy=none", "privacy.epsilon=8")


def main(words: Sequence[str]) -> int:
    """Prints a row for each strategy and privacy; returns 0."""
    torch.set_num_threads(1)
    base = ["data=folder", f"data.path={words[0]}"]
    names = [name for name in RUNS if name == "fedavg" or len(words) == 1 or name in words[1:]]
    wards: dict[str, Ward] = {}
    for privacy in PRIVACY:
        forecasts: dict[str, dict[str, Forecast | None]] = {}
        for name in names:
            config = load([*base, privacy, *RUNS[name]])
            task = tasks.build(config.task)
            wards = wards or open_wards(config, task)
            forecasts[name] = _forecasts(config, wards)
            chosen = [metric for metric in task.metrics() if metric.name in METRICS]
            judged = judge(forecasts, chosen, samples=1000, level=0.95, seed=0)
            print(f"| {name} | {privacy} | {row(judged, name)}", flush=True)
    return 0


def _forecasts(config: Config, wards: dict[str, Ward]) -> dict[str, Forecast | None]:
    task, splits = tasks.build(config.task), splits_of(config)
    with tempfile.TemporaryDirectory() as folder:
        trained = [
            run_federation(config, directory=Path(folder) / str(split.index), split=split) for split in splits
        ]
    network, shared = models.build(config.model, task), [result.model for result in trained]
    return global_forecasts(network, task, wards, splits, shared, [result.by_site for result in trained])


def row(judged: Judged, name: str, beside: str = "fedavg") -> str:
    """Cells of a table: each metric with its interval, and its difference to another; then sites, +30 min."""
    cells = []
    for metric in METRICS:
        found = judged.metrics[name][metric]
        cells.append(f"{found.value:.2f} ({found.low:.2f}–{found.high:.2f})")
        apart = judged.difference(name, beside, metric)
        cells.append(f"{apart.value:+.2f} ({apart.low:+.2f} to {apart.high:+.2f})")
    by_site = [
        f"{site} {figures[name]['rmse_30_mg_dl'].value:.2f}"
        for site, figures in judged.metrics_by_site.items()
    ]
    return " | ".join([*cells, ", ".join(by_site)]) + " |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
