"""What a run leaves for machines: the schema, honest nulls, files that are whole."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulate.files import write_atomically
from simulate.intervals import Judged, judge
from simulate.summary import (
    PrivacyFacts,
    RoundRow,
    RunFacts,
    SiteFacts,
    build_summary,
    write_forecasts,
    write_metrics,
    write_rounds,
    write_summary,
)
from twin.tasks.metrics import glucose_metrics
from twin.tasks.protocol import Forecast

HORIZONS = (30, 60)
METRICS = glucose_metrics(horizons_min=HORIZONS, low_mg_dl=70.0, alarm_mg_dl=80.0, stride_min=15)
FACTS = RunFacts(
    run="first",
    task="glucose",
    strategy="fedavg",
    engine="local",
    seed=0,
    rounds_planned=20,
    rounds_committed=20,
    sites={"north": SiteFacts(patients=6, train_windows=600, epsilon=8.0, delta=1e-4)},
    privacy=PrivacyFacts(neighbouring="add or remove one patient", epsilon=8.0, delta=1e-4, accountant="pld"),
    parameters=1234,
    sha256="ab" * 32,
    timing_s={"training": np.float64(1.5), "evaluation": float("nan")},
)


def forecast(seed: int = 0) -> Forecast:
    generator = np.random.default_rng(seed)
    target_NH = generator.uniform(80.0, 200.0, (60, 2))
    middle_NH = target_NH + generator.normal(0.0, 10.0, target_NH.shape)
    observed_NH = generator.random(target_NH.shape) < 0.7
    return Forecast(
        low_NH=middle_NH - 12.0,
        middle_NH=middle_NH,
        high_NH=middle_NH + 12.0,
        target_NH=np.where(observed_NH, target_NH, 0.0),
        observed_NH=observed_NH,
        anchor_N=target_NH[:, 0],
        patient_N=np.repeat(np.arange(6), 10),
        time_us_N=np.tile(np.arange(10) * 15 * 60_000_000, 6),
        patients=tuple(f"p{i}" for i in range(6)),
    )


@pytest.fixture
def judged() -> Judged:
    models: dict[str, dict[str, Forecast | None]] = {
        "global": {"north": forecast()},
        "local": {"north": None},
    }
    return judge(models, METRICS, samples=100, level=0.95, seed=0)


def test_summary_has_the_published_schema(judged: Judged) -> None:
    summary = build_summary(FACTS, judged)
    assert list(summary) == [
        "run",
        "task",
        "strategy",
        "engine",
        "seed",
        "rounds",
        "sites",
        "metrics",
        "metrics_by_site",
        "privacy",
        "model",
        "timing_s",
    ]
    assert summary["rounds"] == {"planned": 20, "committed": 20}
    assert set(summary["sites"]["north"]) == {"patients", "train_windows", "epsilon", "delta"}
    assert set(summary["metrics"]["global"]["rmse_30_mg_dl"]) == {"value", "low", "high"}
    assert set(summary["metrics_by_site"]["north"]) == {"global", "local"}
    assert set(summary["privacy"]) == {"unit", "neighbouring", "epsilon", "delta", "accountant"}
    assert set(summary["model"]) == {"parameters", "sha256"}


def test_what_is_not_defined_is_null_in_valid_json(tmp_path: Path, judged: Judged) -> None:
    path = tmp_path / "run" / "summary.json"
    write_summary(path, build_summary(FACTS, judged))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads(path.read_text(), parse_constant=refuse)
    nothing = {"value": None, "low": None, "high": None}
    assert read["metrics"]["local"]["rmse_30_mg_dl"] == nothing
    assert read["metrics"]["global"]["hypo_sensitivity_pct"] == nothing
    assert read["timing_s"] == {"training": 1.5, "evaluation": None}


def test_without_privacy_epsilon_is_null(judged: Judged) -> None:
    facts = replace(
        FACTS, privacy=PrivacyFacts(neighbouring="none", epsilon=None, delta=None, accountant=None)
    )
    assert build_summary(facts, judged)["privacy"]["epsilon"] is None


def test_metrics_csv_holds_one_row_per_figure_of_a_patient(tmp_path: Path, judged: Judged) -> None:
    write_metrics(tmp_path / "metrics.csv", judged, {"north": {f"p{i}": i % 2 for i in range(6)}})
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert list(table.columns) == ["model", "fold", "site", "patient", "metric", "value"]
    assert len(table) == len(judged.per_patient)
    assert (table["fold"] == table["patient"].str[1:].astype(int) % 2).all()
    assert table["value"].notna().all()


def test_figures_can_be_recomputed_from_forecasts_parquet(tmp_path: Path, judged: Judged) -> None:
    write_forecasts(
        tmp_path / "f.parquet", {"global": {"north": forecast()}, "local": {"north": None}}, HORIZONS
    )
    table = pd.read_parquet(tmp_path / "f.parquet")
    assert list(table.columns) == [
        "site",
        "patient",
        "time",
        "horizon_min",
        "model",
        "q10",
        "q50",
        "q90",
        "observed",
    ]
    assert str(table["time"].dt.tz) == "UTC"
    at_30 = table[(table["horizon_min"] == 30) & table["observed"].notna()]
    rmse = float(np.sqrt(((at_30["q50"] - at_30["observed"]) ** 2).mean()))
    assert rmse == pytest.approx(judged.metrics["global"]["rmse_30_mg_dl"].value)


def test_rounds_csv_leaves_a_missing_figure_empty(tmp_path: Path) -> None:
    rows = [RoundRow(round=0, site="all", metric="loss", value=1.0)]
    rows.append(RoundRow(round=1, site="a,b", metric="loss", value=None))
    write_rounds(tmp_path / "rounds.csv", rows)
    assert (tmp_path / "rounds.csv").read_text() == 'round,site,metric,value\n0,all,loss,1.0\n1,"a,b",loss,\n'


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_atomically(path, b"old")
    with pytest.raises(ValueError, match="JSON"):
        write_summary(path, {"value": float("inf")})
    with pytest.raises(TypeError):
        write_atomically(path, "text instead of bytes")  # type: ignore[arg-type]  # the fault that is tested
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]
