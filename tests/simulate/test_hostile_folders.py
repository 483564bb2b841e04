"""Federation folders that would mislead a federation if nobody looked."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from simulate.federation import run_federation
from tests.heart_hospitals import settings, write_folder


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
