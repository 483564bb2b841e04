"""The report: it needs nothing but itself, escapes strangers' names, and says what the figures say."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from simulate.intervals import Difference, Interval, judge
from simulate.models import at_most
from simulate.report import (
    CostRow,
    ReportData,
    differences_of,
    examples_of,
    pairs_of,
    write_report,
)
from simulate.report.page import render
from simulate.report.svg import Scale
from simulate.report.words import findings, where_it_loses
from simulate.summary import CurveRow, PrivacyFacts, RoundRow, RunFacts, SiteFacts, build_summary
from twin.site import Quality
from twin.tasks.metrics import binary_metrics, glucose_metrics
from twin.tasks.protocol import Forecast

HORIZONS = (15, 30, 45, 60)
HOSTILE = '<script>alert("x")</script>'
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Reader(HTMLParser):
    """Tags, text and attributes of a page; refuses tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def glucose_forecast(seed: int, error: float, patients: int = 8, windows: int = 96) -> Forecast:
    truth = np.random.default_rng(seed)
    target_NH = truth.uniform(60.0, 250.0, (patients * windows, 4))
    middle_NH = target_NH + truth.normal(0.0, error, target_NH.shape)
    observed_NH = truth.random(target_NH.shape) < 0.9
    return Forecast(
        low_NH=middle_NH - 20.0,
        middle_NH=middle_NH,
        high_NH=middle_NH + 20.0,
        target_NH=np.where(observed_NH, target_NH, 0.0),
        observed_NH=observed_NH,
        anchor_N=target_NH[:, 0],
        patient_N=np.repeat(np.arange(patients), windows),
        time_us_N=np.tile(np.arange(windows) * 15 * 60_000_000, patients),
        patients=tuple(f"secret-pseudonym-{i}" for i in range(patients)),
    )


def glucose_data(sites: tuple[str, ...] = ("north", HOSTILE)) -> ReportData:
    errors = {"persistence": 30.0, "local": 10.0, "global": 20.0, "personal": 8.0}
    forecasts: dict[str, dict[str, Forecast | None]] = {
        model: {site: glucose_forecast(number, error) for number, site in enumerate(sites)}
        for model, error in errors.items()
    }
    metrics = glucose_metrics(horizons_min=HORIZONS, low_mg_dl=70.0, alarm_mg_dl=80.0, stride_min=15)
    judged = judge(forecasts, metrics, samples=100, level=0.95, seed=0)
    facts = RunFacts(
        run=f"run {HOSTILE}",
        task="glucose",
        strategy="fedavg",
        engine="local",
        seed=0,
        rounds_planned=2,
        rounds_committed=2,
        sites={site: SiteFacts(patients=8, train_windows=700, epsilon=7.981, delta=1e-4) for site in sites},
        privacy=PrivacyFacts(neighbouring="add or remove", epsilon=7.981, delta=1e-4, accountant="pld"),
        parameters=99,
        sha256="ab" * 32,
        timing_s={"training": 1.0},
    )
    generator = np.random.default_rng(0)
    return ReportData(
        summary=build_summary(facts, judged),
        rounds=tuple(
            RoundRow(round=r, site=site, metric="rmse_30_mg_dl", value=None if r == 1 else 20.0 - r)
            for site in ("all", *sites)
            for r in range(4)
        ),
        differences=differences_of(judged, ("rmse_30_mg_dl", "rmse_60_mg_dl")),
        examples=examples_of(forecasts["personal"], "personal", HORIZONS, 30, generator=generator),
        pairs=pairs_of(forecasts["personal"], "personal", HORIZONS, 30, generator=generator, most=200),
        curves=tuple(
            CurveRow(curve=HOSTILE, site=HOSTILE, x=x, model=m, metric="rmse_30_mg_dl", value=14.0 + x)
            for m in ("local", HOSTILE)
            for x in (1.0, 3.0, 7.0)
        ),
        privacy_cost=(CostRow(label=HOSTILE, epsilon=8.0, metric="rmse_30_mg_dl", value=14.0),),
        quality={site: Quality(rows_read=10, rows_kept=9, dropped={HOSTILE: 1}) for site in sites},
        config_yaml=f"run: {HOSTILE}",
        notes=(HOSTILE,),
    )


def binary_data() -> ReportData:
    generator = np.random.default_rng(0)
    label_N = (generator.random(80) < 0.5).astype(float)
    probability_N = np.clip(0.5 + 0.3 * (label_N - 0.5) + generator.normal(0, 0.2, 80), 0.0, 1.0)
    columns = dict.fromkeys(("low_NH", "middle_NH", "high_NH"), probability_N[:, None])
    forecast = Forecast(
        **columns,
        target_NH=label_N[:, None],
        observed_NH=np.ones((80, 1), dtype=bool),
        anchor_N=np.zeros(80),
        patient_N=np.arange(80),
        time_us_N=np.zeros(80),
        patients=tuple(map(str, range(80))),
    )
    models: dict[str, dict[str, Forecast | None]] = {"persistence": {"x": None}, "global": {"x": forecast}}
    judged = judge(models, binary_metrics(), samples=100, level=0.95, seed=0)
    data = glucose_data(("x",))
    summary = {**data.summary, "task": "heart"}
    summary["metrics"] = {
        model: {name: {"value": i.value, "low": i.low, "high": i.high} for name, i in figures.items()}
        for model, figures in judged.metrics.items()
    }
    summary["metrics_by_site"] = {"x": summary["metrics"]}
    summary["privacy"] = {**summary["privacy"], "epsilon": None, "delta": None, "accountant": None}
    pairs = pairs_of(models["global"], "global", (0,), 0, generator=generator, is_label=True)
    return ReportData(summary=summary, pairs=pairs)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def page() -> str:
    return render(glucose_data())


def test_every_section_of_a_glucose_run_is_there(page: str) -> None:
    identities = set(re.findall(r'<section id="(\w+)"', page))
    sections = (
        "short",
        "errors",
        "differences",
        "progress",
        "clouds",
        "ribbons",
        "curves",
        "privacy",
        "quality",
    )
    assert identities == {*sections, "reading", "configuration"}


def test_names_of_strangers_are_escaped_everywhere(page: str) -> None:
    reader = read(page)
    assert reader.tags.count("script") == 1
    assert "<script>alert" not in page
    assert 'alert("x")' in reader.text
    assert not [name for name, _ in reader.attributes if name.startswith("on")]


def test_the_page_asks_nothing_of_a_network(page: str) -> None:
    reader = read(page)
    assert not {"link", "img", "iframe", "object", "base"} & set(reader.tags)
    for name, value in reader.attributes:
        if name in ("href", "src", "action", "data"):
            assert value is not None
            assert value.startswith("#")
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest", page)


def test_nobody_is_named(page: str) -> None:
    assert "secret-pseudonym" not in page


def test_every_drawing_is_well_formed_has_a_description_and_no_broken_number(page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) > 10
    for drawing in drawings:
        element = ET.fromstring(drawing)
        assert element.get("role") == "img"
        assert element.get("aria-label")
        assert not re.search(r"\bnan\b|\binf\b", drawing)


def test_the_page_is_light(page: str) -> None:
    assert len(page.encode()) < 2_000_000


def test_figures_of_the_summary_stand_on_the_page_in_both_units() -> None:
    data = glucose_data()
    value = data.summary["metrics"]["personal"]["rmse_30_mg_dl"]["value"]
    assert f">{value:.2f}</span>" in render(data)
    assert f">{value / 18.016:.2f}</span>" in render(replace(data, unit="mmol/L"))


def test_a_model_that_is_worse_is_called_worse_and_the_hospital_named() -> None:
    data = glucose_data()
    verdicts = {str(sentence): verdict for verdict, sentence in findings(data)}
    (against_local,) = [s for s in verdicts if "<b>global</b> against <b>each hospital alone</b>" in s]
    (against_persistence,) = [s for s in verdicts if "<b>personal</b> against <b>last value</b>" in s]
    assert verdicts[against_local] == "worse"
    assert verdicts[against_persistence] == "better"
    losses = [str(sentence) for sentence in where_it_loses(data)]
    assert any("north" in sentence and "each hospital alone" in sentence for sentence in losses)


@pytest.mark.parametrize(
    ("metric", "low", "high", "verdict"),
    [
        ("rmse_30_mg_dl", -2.0, -1.0, "better"),
        ("rmse_30_mg_dl", 1.0, 2.0, "worse"),
        ("rmse_30_mg_dl", -1.0, 2.0, "unclear"),
        ("rmse_30_mg_dl", None, None, "unclear"),
    ],
)
def test_a_verdict_needs_an_interval_that_excludes_zero(
    metric: str, low: float | None, high: float | None, verdict: str
) -> None:
    value = 0.5 if low is None or high is None else (low + high) / 2
    interval = Interval(value=value, low=low, high=high)
    difference = Difference(model="personal", baseline="local", metric=metric, site=None, interval=interval)
    ((found, _),) = findings(replace(glucose_data(), differences=(difference,)))
    assert found == verdict


def test_a_binary_task_shows_roc_and_calibration_and_leaves_out_what_is_not_defined() -> None:
    page = render(binary_data())
    read(page)
    assert "ROC and calibration" in page
    assert "Clarke error grid" not in page
    assert "Not defined for this run: last value." in page
    assert "not private" in page
    assert "Privacy spent" not in page


def test_examples_are_drawn_only_where_half_was_observed() -> None:
    forecast = glucose_forecast(0, 10.0)
    blind = replace(forecast, observed_NH=np.zeros_like(forecast.observed_NH))
    generator = np.random.default_rng(0)
    found = examples_of({"a": forecast, "b": blind, "c": None}, "global", HORIZONS, 30, generator=generator)
    assert [example.site for example in found] == ["a"]
    assert np.all(np.diff(found[0].hours_K) > 0)


def test_the_file_is_written_whole(tmp_path: Path) -> None:
    write_report(glucose_data(), tmp_path / "run" / "report.html")
    assert (tmp_path / "run" / "report.html").read_text().rstrip().endswith("</html>")
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["report.html"]


@pytest.mark.parametrize("epsilon", [7.981, 8.0, 0.004, 12.3456])
def test_an_upper_bound_is_never_rounded_down(epsilon: float) -> None:
    assert epsilon <= float(at_most(epsilon)) <= epsilon + 0.01


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (11.3, 47.9), (-0.02, 0.005), (70.0, 400.0)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    ticks = Scale(low=low, high=high, start=0.0, end=100.0).ticks()
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)


def test_two_models_have_clouds_of_their_own_and_many_hospitals_share_one() -> None:
    data = glucose_data()
    other = tuple(replace(one, model="global") for one in data.pairs)
    both = render(replace(data, pairs=data.pairs + other))
    assert both.count('aria-label="Clarke error grid') == 4
    many = tuple(replace(one, site=f"{one.site} {k}") for one in data.pairs for k in range(5))
    assert render(replace(data, pairs=many)).count('aria-label="Clarke error grid') == 1
