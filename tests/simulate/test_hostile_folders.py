"""Federation folders that would mislead a federation if nobody looked."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from simulate.baselines import logistic_outputs
from simulate.federation import run_federation
from tests.heart_hospitals import SITES, settings, write_folder
from twin import tasks
from twin.connectors.folder import read_folder
from twin.errors import DataError


def test_patients_without_anything_to_learn_from_do_not_count_towards_the_minimum(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hospitals")
    path = folder / "beta" / "patients.csv"
    table = pd.read_csv(path)
    table.loc[3:, "diagnosis"] = None
    table.to_csv(path, index=False)
    result = run_federation(settings(folder), directory=tmp_path / "run")
    assert result.sites["beta"].refused == "too_few_patients"
    assert result.sites["alpha"].refused is None


def test_declared_patients_are_those_that_train(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hospitals")
    path = folder / "beta" / "patients.csv"
    table = pd.read_csv(path)
    table.loc[6:, "diagnosis"] = None
    table.to_csv(path, index=False)
    beta = run_federation(settings(folder), directory=tmp_path / "run").sites["beta"]
    assert (beta.patients, beta.declared, beta.train_windows) == (6, 5, 6)


def test_a_fold_in_which_a_site_has_nobody_to_judge_is_no_crash(tmp_path: Path) -> None:
    config = settings(write_folder(tmp_path / "hospitals"))
    task = tasks.build(config.task)
    examples = task.examples(read_folder(tmp_path / "hospitals")[0])
    nobody = examples.at((examples.patient_N < 0).nonzero().squeeze(1))
    outputs = logistic_outputs([examples], nobody)
    assert outputs is not None
    assert outputs.shape == (0, 1)


def test_a_site_that_is_called_all_is_refused_for_tables_use_that_name_for_every_site(
    tmp_path: Path,
) -> None:
    folder = write_folder(tmp_path / "hospitals")
    (folder / SITES[0]).rename(folder / "all")
    with pytest.raises(DataError, match="stands for all sites"):
        read_folder(folder)
