"""What a run says of its cohorts, in summary.json and in the report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from simulate.report.data import ReportData
from simulate.report.page import render
from simulate.run import simulate
from tests.cohort_hospitals import PLANTED, write_kinds
from tests.heart_hospitals import settings

WORDS = (
    "strategy=clustered",
    "strategy.learning_rate=1",
    "strategy.cohort_rounds=3",
    "evaluation.folds=2",
    "evaluation.bootstrap_samples=100",
    "evaluation.curves=false",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = write_kinds(tmp_path_factory.mktemp("kinds"), PLANTED)
    directory = tmp_path_factory.mktemp("runs") / "cohorts"
    result = simulate(settings(folder, *WORDS, f"run.dir={directory}", rounds=6))
    return directory, result.summary


def _text(page: str) -> str:
    section = page[page.index('<section id="cohorts">') :]
    return " ".join(re.sub(r"<[^>]*>", " ", section[: section.index("</section>")]).split())


def test_hospitals_stand_in_their_cohorts_and_the_gain_over_one_model_is_shown(
    run: tuple[Path, dict[str, Any]],
) -> None:
    directory, summary = run
    assert summary["cohorts"]["sites"] == [["alpha", "gamma"], ["beta", "delta"]]
    gain = summary["cohorts"]["gain"]["sites"]["auroc"]
    assert gain["low"] > 0.2  # one model cannot serve two kinds
    figures = summary["metrics"]
    apart = figures["cohort"]["auroc"]["value"] - figures["one_model"]["auroc"]["value"]
    assert gain["value"] == pytest.approx(apart)
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert "together trained 2 models, one for each cohort of hospitals, to recognise" in page
    text = _text(page)
    assert "2 cohorts" in text
    assert "1 alpha, gamma 2 beta, delta" in text
    assert "What cohorts of hospitals bring" in text
    assert re.search(r"AUROC 0\.\d+ 0\.\d+ to 0\.\d+", text)  # as a difference may be below zero, no dash
    assert "alpha-0" not in text  # no patient


def test_cohorts_of_patients_are_numbers_and_one_cohort_is_said_in_words(
    run: tuple[Path, dict[str, Any]],
) -> None:
    _, summary = run
    cohorts = {"sites": [["alpha", "beta"]], "patients": {"alpha": [30, 12], "beta": [42]}, "gain": {}}
    text = _text(render(ReportData(summary=summary | {"cohorts": cohorts})))
    assert "does not tell them apart" in text
    assert "alpha 30, 12" in text
    assert "beta one cohort" in text


def test_layers_of_a_hospitals_own_are_not_called_cohorts(run: tuple[Path, dict[str, Any]]) -> None:
    _, summary = run
    page = render(ReportData(summary=summary | {"strategy": "fedper"}))
    assert "a model with layers of each hospital&#39;s own to recognise" in page
    assert "Some layers of each hospital's model are its own" in _text(page)
    assert "parts them into" not in page


def test_a_run_without_cohorts_says_nothing_of_them(run: tuple[Path, dict[str, Any]]) -> None:
    _, summary = run
    plain = {key: value for key, value in summary.items() if key != "cohorts"}
    assert 'id="cohorts"' not in render(ReportData(summary=plain))
