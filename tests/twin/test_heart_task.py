"""Diagnosis from static columns: the table is what its names say, what is missing stands at its centre."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import log_loss

from conf import schema
from twin import tasks
from twin.errors import DataError
from twin.site import Site
from twin.tasks.heart import COLUMNS, HeartTask

NOTHING = pd.DataFrame(columns=["patient_id", "signal", "time", "value", "source", "quality"])


def heart_site(**columns: list[object]) -> Site:
    count = len(next(iter(columns.values())))
    index = pd.Index([f"p{n}" for n in range(count)], name="patient_id")
    return Site(name="clinic", observations=NOTHING, patients=pd.DataFrame(columns, index=index))


def heart_task() -> HeartTask:
    task = tasks.build(schema.Task(name="heart"))
    assert isinstance(task, HeartTask)
    return task


def table_of(**columns: list[object]) -> dict[str, list[float]]:
    examples = heart_task().examples(heart_site(**columns))
    return dict(zip(COLUMNS, examples.table_NF.T.tolist(), strict=True))


def test_a_window_is_a_patient_with_a_diagnosis() -> None:
    examples = heart_task().examples(heart_site(age=[50.0] * 5, diagnosis=[0.0, np.nan, 1.0, 4.0, 0.0]))
    assert examples.target_NH[:, 0].tolist() == [0.0, 1.0, 1.0, 0.0]
    assert [examples.patients[p] for p in examples.patient_N] == ["p0", "p2", "p3", "p4"]
    assert examples.observed_NH.all()
    assert not examples.time_us_N.any()
    assert examples.series_NTC.shape[1] == 0


def test_the_table_is_what_its_names_say() -> None:
    table = table_of(
        age=[65.0, 45.0], chol=[300.0, 0.0], trestbps=[0.0, 150.0], cp=[4, 2], thal=[7, 3], diagnosis=[1, 0]
    )
    assert table["age"] == [1.0, -1.0]
    assert table["chol"] == [1.0, 0.0]
    assert table["chol_missing"] == [0.0, 1.0]
    assert table["trestbps"] == [0.0, 1.0]
    assert table["cp_2"] == [0.0, 1.0]
    assert table["cp_1"] == table["cp_3"] == [0.0, 0.0]
    assert table["thal_7"] == [1.0, 0.0]
    assert table["one"] == [1.0, 1.0]


def test_what_is_missing_stands_at_its_centre_and_a_wild_value_is_held_back() -> None:
    table = table_of(age=[np.nan, 5000.0], diagnosis=[0, 1])
    assert table["age"] == [0.0, 4.0]
    assert all(
        values == [0.0, 0.0] for name, values in table.items() if name not in ("age", "chol_missing", "one")
    )


def test_the_loss_is_the_cross_entropy_and_the_forecast_its_probability() -> None:
    draws = np.random.default_rng(0)
    label = draws.integers(0, 2, 40)
    examples = heart_task().examples(heart_site(age=list(draws.normal(55, 9, 40)), diagnosis=list(label)))
    logit = draws.normal(0, 2, 40)
    outputs = torch.from_numpy(logit)[:, None]
    examples_target = examples.target_NH.double()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(outputs, examples_target)
    chance = 1 / (1 + np.exp(-logit))
    assert heart_task().loss(outputs.float(), examples).mean().item() == pytest.approx(
        log_loss(label, chance), rel=1e-5
    )
    assert loss.item() == pytest.approx(log_loss(label, chance))
    forecast = heart_task().forecast(outputs, examples)
    for quantile in (forecast.low_NH, forecast.middle_NH, forecast.high_NH):
        np.testing.assert_allclose(quantile[:, 0], chance)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"age": [50.0, 60.0]}, "needs a column 'diagnosis'"),
        ({"diagnosis": [0, 7]}, "1 of 2 rows"),
        ({"diagnosis": [0, "ill"]}, "1 of 2 rows"),
        ({"diagnosis": [np.nan, np.nan]}, "no patient has a diagnosis"),
        ({"diagnosis": [0, 1], "age": [50.0, "old"]}, "'age'"),
    ],
)
def test_a_site_that_cannot_be_learnt_from_is_refused_with_its_name(
    columns: dict[str, list[object]], said: str
) -> None:
    with pytest.raises(DataError, match=said) as error:
        heart_task().examples(heart_site(**columns))
    assert "'clinic'" in str(error.value)
    assert "ill" not in str(error.value)
