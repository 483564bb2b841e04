"""The table at the end of a run."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from simulate.table import show


def summary(site: str = "north", rounds: int = 20) -> dict[str, object]:
    figures: dict[str, dict[str, dict[str, float | None]]] = {
        "personal": {"rmse_30_mg_dl": {"value": 18.016, "low": 9.008, "high": 27.024}},
        "local": {"rmse_30_mg_dl": {"value": None, "low": None, "high": None}},
    }
    for model in figures.values():
        model["rmse_60_mg_dl"] = {"value": 36.032, "low": None, "high": None}
    return {
        "rounds": {"planned": rounds, "committed": rounds},
        "metrics": figures,
        "metrics_by_site": {site: figures},
        "sites": {site: {"patients": 7, "train_windows": 70, "epsilon": 2.001, "delta": 1e-4}},
        "privacy": {
            "unit": "patient",
            "neighbouring": "add or remove one patient",
            "epsilon": 2.001,
            "delta": 1e-4,
            "accountant": "pld",
        },
    }


def printed(unit: str = "mg/dL", width: int = 120, site: str = "north", rounds: int = 20) -> str:
    stream = io.StringIO()
    show(
        summary(site, rounds), Console(file=stream, width=width), unit, report=Path("runs/first/report.html")
    )
    return stream.getvalue()


def test_it_shows_figures_with_intervals_privacy_and_the_path_of_the_report() -> None:
    text = printed()
    assert "18.02 (9.01–27.02)" in text
    assert "36.03" in text
    assert "epsilon at most 2.01 at delta 0.0001 per patient (add or remove one patient)" in text
    assert "runs/first/report.html" in text


def test_a_dash_is_explained_and_patients_are_those_that_trained() -> None:
    assert "–: has no meaning here, or no figure at one of the hospitals" in printed()
    assert "patients trained on" in " ".join(printed().split())
    assert "trained on" not in printed(rounds=0)


def test_it_shows_mmol_per_litre_to_who_asks_for_it() -> None:
    text = printed("mmol/L")
    assert "1.00 (0.50–1.50)" in text
    assert "mmol/L" in text
    assert "mg/dL" not in text


def test_an_evaluation_claims_no_epsilon_for_it_released_nothing() -> None:
    text = printed(rounds=0)
    assert "nothing was released" in text
    assert "epsilon" not in text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_names_that_look_like_markup_are_printed_as_they_are(width: int) -> None:
    assert "[red]x[/]" in printed(width=width, site="[red]x[/]")
