"""Which settings of a strategy are best on windows that no run is scored on.

Trains three of five folds over patients of a federation folder for every setting that is given, and judges
the global model on the *earlier* halves of the left-out patients' records; `twinward simulate` judges on the
later halves. Prints the mean over sites of a metric, without privacy and at epsilon 8.

    python -m benchmarks.strategy_settings studies strategy=fedyogi strategy.server_learning_rate=0.01,0.03
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from conf.load import load_sweep
from conf.schema import Config
from simulate.federation import run_federation
from simulate.fold import global_forecasts, headline
from simulate.wards import Ward, open_wards
from twin import models, tasks
from twin.splits import Split

FOLDS = (0, 1, 2)
METRIC = "rmse_30_mg_dl"


def main(words: Sequence[str]) -> int:
    """Prints a line for each setting; returns 0."""
    torch.set_num_threads(1)
    base = ["data=folder", f"data.path={words[0]}", "evaluation.curves=false"]
    wards: dict[str, Ward] = {}
    for privacy in (["privacy=none"], ["privacy.epsilon=8"]):
        for settings, config in load_sweep([*base, *privacy, *words[1:]]):
            wards = wards or _early(config)
            shown = " ".join([*privacy, *(word for word in settings if word.startswith("strategy"))])
            print(f"{_score(config, wards):8.3f}  {shown}", flush=True)
    return 0


def _early(config: Config) -> dict[str, Ward]:
    """The sites, judged by the halves that adapt elsewhere."""
    wards = open_wards(config, tasks.build(config.task))
    return {name: replace(ward, late_N=ward.early_N) for name, ward in wards.items()}


def _score(config: Config, wards: dict[str, Ward]) -> float:
    task = tasks.build(config.task)
    splits = [Split(kind="folds", count=5, index=index, seed=config.seed) for index in FOLDS]
    with tempfile.TemporaryDirectory() as folder:
        trained = [
            run_federation(config, directory=Path(folder) / str(split.index), split=split).model
            for split in splits
        ]
    forecasts = global_forecasts(models.build(config.model, task), task, wards, splits, trained)
    return float(np.mean([site[METRIC] for site in headline(task, forecasts, (METRIC,)).values()]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
