"""Three small hospitals with a static task, written to disk: a federation of them takes a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from conf.load import load
from conf.schema import Config

SITES = ("alpha", "beta", "gamma")


def write_folder(root: Path, patients: int = 12) -> Path:
    """A federation folder in which disease follows age and blood pressure."""
    for number, site in enumerate(SITES):
        draws = np.random.default_rng(number)
        age, pressure = draws.normal(55, 10, patients), draws.normal(130, 20, patients)
        risk = (age - 55) / 10 + (pressure - 130) / 20 + draws.normal(0, 0.5, patients)
        table = pd.DataFrame(
            {
                "patient_id": [f"{site}-{place:02d}" for place in range(patients)],
                "age": age,
                "sex": draws.integers(0, 2, patients).astype(float),
                "cp": draws.integers(1, 5, patients).astype(float),
                "trestbps": pressure,
                "chol": draws.normal(240, 60, patients),
                "fbs": draws.integers(0, 2, patients).astype(float),
                "restecg": draws.integers(0, 3, patients).astype(float),
                "thalach": draws.normal(140, 20, patients),
                "exang": draws.integers(0, 2, patients).astype(float),
                "oldpeak": draws.uniform(0, 3, patients),
                "diagnosis": (risk > 0).astype(float),
            }
        )
        (root / site).mkdir(parents=True)
        table.to_csv(root / site / "patients.csv", index=False)
    return root


def settings(folder: Path, *overrides: str, rounds: int = 4) -> Config:
    """A configuration of some private rounds over the folder."""
    return load(["data=folder", f"data.path={folder}", "task=heart", f"rounds={rounds}", *overrides])
