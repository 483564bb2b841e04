"""Whole runs, small: what they leave can be recomputed, and they continue to the identical model."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from conf.errors import ConfigError
from conf.load import load
from conf.schema import Config
from simulate.models import MODELS as KNOWN
from simulate.run import RunResult, resume, simulate
from tests.heart_hospitals import SITES, write_folder
from tests.records import virtual, write_sites

SMALL = {
    "sites": 3,
    "data.patients_per_site": 10,
    "data.days": 3,
    "rounds": 3,
    "evaluation.folds": 2,
    "evaluation.bootstrap_samples": 100,
    "run.forecasts": "true",
}
BARE = SMALL | {"evaluation.curves": "false", "sites": 2, "data.days": 2}
# Of a run without cohorts.
MODELS = set(KNOWN) - {"cohort", "one_model", "personal_alone"}
VIRTUAL_ONLY = ("sites", "data.patients_per_site", "data.days")


FILES = (
    "config.yaml",
    "rounds.csv",
    "metrics.csv",
    "model.safetensors",
    "report.html",
    "summary.json",
    "forecasts.parquet",
)


def configured(directory: Path, **changed: object) -> Config:
    """A small run with curves; `__` in a name stands for a dot."""
    return of(SMALL, directory, **changed)


def of(settings: Mapping[str, object], directory: Path, **changed: object) -> Config:
    words = dict(settings) | {key.replace("__", "."): value for key, value in changed.items()}
    return load([f"{key}={value}" for key, value in words.items()] + [f"run.dir={directory}"])


def in_folder(folder: Path, directory: Path, **changed: object) -> Config:
    settings = {key: value for key, value in SMALL.items() if key not in VIRTUAL_ONLY}
    return of({"data": "folder", "data.path": folder} | settings, directory, **changed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished") / "run"
    simulate(configured(directory))
    return directory


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run without learning curves."""
    return simulate(of(BARE, tmp_path_factory.mktemp("bare") / "run"))


@pytest.fixture(scope="module")
def summary(finished: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def forecasts(finished: Path) -> pd.DataFrame:
    return pd.read_parquet(finished / "forecasts.parquet")


def test_a_run_leaves_all_its_files(finished: Path) -> None:
    assert all((finished / name).stat().st_size > 0 for name in FILES)


def test_the_summary_has_the_keys_that_were_promised(summary: dict[str, Any]) -> None:
    assert set(summary) == {
        "run", "task", "strategy", "engine", "seed", "rounds", "sites", "metrics", "metrics_by_site",
        "privacy", "model", "timing_s",
    }  # fmt: skip
    assert summary["rounds"] == {"planned": 3, "committed": 3}
    sites = {site.name for site in virtual()}
    assert set(summary["sites"]) == set(summary["metrics_by_site"]) == sites
    for site in summary["sites"].values():
        assert set(site) == {"patients", "train_windows", "epsilon", "delta"}
        assert site["patients"] == 10
        assert 0 < site["epsilon"] <= 8.0
    for by_model in (summary["metrics"], *summary["metrics_by_site"].values()):
        assert set(by_model) == MODELS
        for metrics in by_model.values():
            assert {
                "rmse_30_mg_dl",
                "rmse_60_mg_dl",
                "mae_30_mg_dl",
                "mard_30_pct",
                "clarke_ab_30_pct",
            } <= set(metrics)
            assert all(set(interval) == {"value", "low", "high"} for interval in metrics.values())
    assert set(summary["privacy"]) == {"unit", "neighbouring", "epsilon", "delta", "accountant"}
    assert summary["privacy"]["unit"] == "patient"
    assert summary["privacy"]["epsilon"] == max(site["epsilon"] for site in summary["sites"].values())
    assert all(seconds >= 0 for seconds in summary["timing_s"].values())


def test_the_summary_names_the_model_that_lies_beside_it(finished: Path, summary: dict[str, Any]) -> None:
    content = (finished / "model.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == summary["model"]["sha256"]
    arrays = load_file(finished / "model.safetensors")
    assert arrays["head.weight"].size == summary["model"]["parameters"]
    assert all(np.isfinite(value).all() for value in arrays.values())


def test_every_error_can_be_recomputed_from_the_forecasts(
    summary: dict[str, Any], forecasts: pd.DataFrame
) -> None:
    seen = forecasts.dropna(subset=["observed"])
    for minutes in (30, 60):
        at = seen[seen["horizon_min"] == minutes]
        for model in sorted(MODELS):
            errors = {
                site: np.sqrt(np.mean((rows["q50"] - rows["observed"]) ** 2))
                for site, rows in at[at["model"] == model].groupby("site")
            }
            for site, by_model in summary["metrics_by_site"].items():
                assert by_model[model][f"rmse_{minutes}_mg_dl"]["value"] == pytest.approx(errors[site])
            everywhere = summary["metrics"][model][f"rmse_{minutes}_mg_dl"]
            assert everywhere["value"] == pytest.approx(np.mean(list(errors.values())))
            assert everywhere["low"] <= everywhere["value"] <= everywhere["high"]
    inside = (seen["observed"] >= seen["q10"]) & (seen["observed"] <= seen["q90"])
    rows = (seen["model"] == "global") & (seen["horizon_min"] == 30) & (seen["site"] == "hospital_1")
    coverage = summary["metrics_by_site"]["hospital_1"]["global"]["coverage_80_30_pct"]["value"]
    assert coverage == pytest.approx(100 * inside[rows].mean())


def test_every_patients_figure_can_be_recomputed_and_names_the_fold_that_left_the_patient_out(
    finished: Path, forecasts: pd.DataFrame
) -> None:
    metrics = pd.read_csv(finished / "metrics.csv")
    assert list(metrics.columns) == ["model", "fold", "site", "patient", "metric", "value"]
    chosen = metrics[(metrics["model"] == "personal") & (metrics["metric"] == "rmse_30_mg_dl")]
    at = forecasts[(forecasts["model"] == "personal") & (forecasts["horizon_min"] == 30)].dropna()
    square = (at["q50"] - at["observed"]) ** 2
    expected = square.groupby([at["site"], at["patient"]]).mean() ** 0.5
    found = chosen.set_index(["site", "patient"])["value"]
    pd.testing.assert_series_equal(found.sort_index(), expected.sort_index(), check_names=False)
    assert set(chosen["fold"]) == {0, 1}
    assert metrics.groupby(["site", "patient"])["fold"].nunique().max() == 1


def test_all_models_are_judged_on_the_same_windows_of_the_later_halves(forecasts: pd.DataFrame) -> None:
    keys = ["site", "patient", "time", "horizon_min"]
    assert not forecasts.duplicated([*keys, "model"]).any()
    windows = {
        model: rows[[*keys, "observed"]].sort_values(keys, ignore_index=True)
        for model, rows in forecasts.groupby("model")
    }
    assert set(windows) == MODELS
    assert all(found.equals(windows["persistence"]) for found in windows.values())
    for site in virtual():
        glucose = site.observations[site.observations["signal"] == "glucose"]
        middle = glucose.groupby("patient_id")["time"].agg(lambda t: t.min() + (t.max() - t.min()) / 2)
        first = forecasts[forecasts["site"] == site.name].groupby("patient")["time"].min()
        assert (abs(first - middle) < pd.Timedelta(hours=8)).all()


def test_what_was_observed_is_what_the_sites_hold(forecasts: pd.DataFrame) -> None:
    rows = forecasts[(forecasts["model"] == "global") & (forecasts["horizon_min"] == 30)].dropna()
    for site in virtual():
        frame = site.observations[site.observations["signal"] == "glucose"]
        values = {name: set(v.astype(np.float32)) for name, v in frame.groupby("patient_id")["value"]}
        own = rows[rows["site"] == site.name]
        assert len(own) > 100
        assert all(np.float32(v) in values[p] for p, v in zip(own["patient"], own["observed"], strict=True))


def test_progress_by_round_starts_at_the_public_start_and_ends_at_a_federation_of_all_rounds(
    finished: Path, summary: dict[str, Any]
) -> None:
    rounds = pd.read_csv(finished / "rounds.csv")
    at = rounds[rounds["metric"] == "rmse_30_mg_dl"].set_index(["site", "round"])["value"]
    assert sorted(set(rounds["round"])) == [0, 1, 2, 3]
    for site, by_model in summary["metrics_by_site"].items():
        assert at[site, 0] == pytest.approx(by_model["virtual"]["rmse_30_mg_dl"]["value"])


def test_the_report_holds_everything_in_one_file(finished: Path) -> None:
    text = (finished / "report.html").read_text(encoding="utf-8")
    assert "hospital_1" in text
    assert "epsilon" in text
    assert 'src="http' not in text
    assert 'href="http' not in text.replace('href="https://doi', "")


def test_a_second_call_computes_and_writes_nothing(finished: Path, summary: dict[str, Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    forbidden = Stopping(at="")
    assert simulate(configured(finished), progress=forbidden).summary == summary
    assert resume(finished, progress=forbidden).summary == summary
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before
    assert forbidden.steps == []


def test_a_folder_of_another_configuration_is_refused_and_stays_as_it_is(finished: Path) -> None:
    before = (finished / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match="another configuration: seed=0 there, seed=5 here"):
        simulate(configured(finished, seed=5))
    assert (finished / "config.yaml").read_bytes() == before
    with pytest.raises(ConfigError, match="no run"):
        resume(finished.parent)


class Interrupted(Exception):
    """Stands for whatever stops a process."""


class Stopping:
    """Progress that stops the work when a step begins."""

    def __init__(self, at: str) -> None:
        self.at, self.steps = at, list[str]()

    def step(self, name: str, total: int | None = None) -> None:
        self.steps.append(name)
        if name == self.at:
            raise Interrupted

    def advance(self, note: str = "") -> None:
        if self.at == "round" and "round 2" in note:
            raise Interrupted

    def done(self) -> None:
        """Nothing to do."""


@pytest.mark.parametrize("at", ["comparisons", "round", "report"])
def test_a_run_that_was_interrupted_goes_on_to_the_identical_model(
    at: str, bare: RunResult, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        simulate(of(BARE, tmp_path / "run"), progress=Stopping(at))
    assert not (tmp_path / "run" / "summary.json").exists()
    again = resume(tmp_path / "run").summary
    assert {key: again[key] for key in again if key != "timing_s"} == {
        key: bare.summary[key] for key in again if key != "timing_s"
    }
    for name in ("metrics.csv", "rounds.csv", "model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (bare.directory / name).read_bytes()


def test_a_run_follows_from_its_seed_and_from_no_unit_of_display(bare: RunResult, tmp_path: Path) -> None:
    same = simulate(of(BARE, tmp_path / "same", task__unit="mmol/L"))
    other = simulate(of(BARE, tmp_path / "other", seed=2))
    assert same.summary["model"] == bare.summary["model"]
    assert same.summary["metrics"] == bare.summary["metrics"]
    assert other.summary["model"]["sha256"] != bare.summary["model"]["sha256"]
    units = [
        (run.directory / "report.html").read_text(encoding="utf-8").count("mmol/L") for run in (same, bare)
    ]
    assert units[0] > units[1] + 10


def test_without_privacy_epsilon_is_null_and_only_what_is_released_differs(
    bare: RunResult, tmp_path: Path
) -> None:
    found = simulate(of(BARE, tmp_path / "run", privacy="none")).summary
    assert found["privacy"]["epsilon"] is None
    assert found["privacy"]["delta"] is None
    assert all(site["epsilon"] is None and site["delta"] is None for site in found["sites"].values())
    assert found["model"]["sha256"] != bare.summary["model"]["sha256"]
    for model in (
        "persistence",
        "linear_pooled",
        "linear_site",
        "linear_patient",
        "virtual",
        "local",
        "pooled",
    ):
        assert found["metrics"][model] == bare.summary["metrics"][model]


def test_a_site_below_the_minimum_is_judged_does_not_train_and_is_named(tmp_path: Path) -> None:
    folder = write_sites(tmp_path / "folder", {"big": 10, "mid": 7, "one": 1})
    found = simulate(in_folder(folder, tmp_path / "run", privacy__minimum_patients=3))
    sites = found.summary["sites"]
    assert sites["one"] == {"patients": 0, "train_windows": 0, "epsilon": 0.0, "delta": 1e-4}
    assert sites["big"]["patients"] == 10
    here = found.summary["metrics_by_site"]["one"]
    assert here["global"]["rmse_30_mg_dl"]["value"] > 0
    assert here["personal"]["rmse_30_mg_dl"]["value"] > 0
    assert here["linear_site"]["rmse_30_mg_dl"]["value"] is None
    assert "Site one did not take part" in (found.directory / "report.html").read_text(encoding="utf-8")


def test_a_federation_in_which_one_site_is_left_to_train_still_ends(tmp_path: Path) -> None:
    folder = write_sites(tmp_path / "folder", {"big": 10, "few": 3})
    found = simulate(in_folder(folder, tmp_path / "run", privacy__minimum_patients=4)).summary
    assert found["sites"]["few"]["patients"] == 0
    assert found["rounds"]["committed"] == 3
    assert found["metrics"]["global"]["rmse_30_mg_dl"]["value"] > 0


@pytest.mark.parametrize("evaluation", ["folds", "splits"])
def test_a_task_without_time_has_no_persistence_and_no_personal_models(
    evaluation: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "folder", patients=24)
    changed = {"evaluation.folds": 3} if evaluation == "folds" else {"evaluation.repeats": 4}
    settings = {"data": "folder", "data.path": folder, "task": "heart", "rounds": 3, "evaluation": evaluation}
    settings |= {"evaluation.bootstrap_samples": 100, "run.forecasts": "true"} | changed
    settings |= {"evaluation.curves": str(evaluation == "folds").lower()}
    found = simulate(of(settings, tmp_path / "run"))
    metrics = found.summary["metrics"]
    assert {"auroc", "auprc", "brier", "accuracy"} <= set(metrics["global"])
    for model in ("persistence", "linear_patient", "personal"):
        assert all(interval["value"] is None for interval in metrics[model].values())
    for model in ("linear_pooled", "linear_site", "virtual", "local", "pooled", "global", "site"):
        assert 0 <= metrics[model]["accuracy"]["value"] <= 1
    rows = pd.read_parquet(found.directory / "forecasts.parquet")
    assert rows["time"].isna().all()
    rows = rows[rows["model"] == "pooled"]
    if evaluation == "folds":
        assert sorted(rows["patient"]) == sorted(
            f"{site}-{place:02d}" for site in SITES for place in range(24)
        )
        for site, own in rows.groupby("site"):
            right = ((own["q50"] > 0.5) == (own["observed"] > 0.5)).mean()
            here = found.summary["metrics_by_site"][site]["pooled"]["accuracy"]["value"]
            assert here == pytest.approx(right)
    else:
        assert rows.groupby("site").size().eq(4 * round(0.34 * 24)).all()


def test_no_model_of_a_fold_saw_the_patients_whom_it_judges(tmp_path: Path) -> None:
    """Another record of one patient changes what other folds forecast, and nobody else in the own fold."""
    folder = write_sites(tmp_path / "folder", {"big": 10, "mid": 10})
    first = simulate(in_folder(folder, tmp_path / "a", evaluation__curves="false"))
    metrics = pd.read_csv(first.directory / "metrics.csv")
    fold_of = metrics.groupby(["site", "patient"])["fold"].first()
    changed = fold_of["big"].index[0]
    other = shutil.copytree(folder, tmp_path / "other")
    table = pd.read_csv(other / "big" / "observations.csv")
    own = (table["patient_id"] == changed) & (table["signal"] == "glucose")
    table.loc[own, "value"] = 60.0 + 3.0 * (table.loc[own, "value"] % 37)
    table.to_csv(other / "big" / "observations.csv", index=False)
    second = simulate(in_folder(other, tmp_path / "b", evaluation__curves="false"))
    one, two = (pd.read_parquet(run.directory / "forecasts.parquet") for run in (first, second))
    same_fold = fold_of[fold_of == fold_of["big", changed]].index
    beside = pd.MultiIndex.from_frame(one[["site", "patient"]]).isin(same_fold) & (one["patient"] != changed)
    for model in (
        "linear_pooled",
        "linear_site",
        "linear_patient",
        "local",
        "pooled",
        "global",
        "site",
        "personal",
    ):
        rows, here = one["model"] == model, one["site"] == "big"
        assert one.loc[rows & beside, "q50"].equals(two.loc[rows & beside, "q50"])
        assert not one.loc[rows & here & ~beside, "q50"].equals(two.loc[rows & here & ~beside, "q50"])
        elsewhere = rows & here & ~beside & (one["patient"] != changed)
        assert not one.loc[elsewhere, "q50"].equals(two.loc[elsewhere, "q50"])
