"""What the figures say, in sentences: who was in it, what it brought, what it did not, what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup, escape

from simulate.models import headline_metrics, label
from simulate.report.data import Difference, ReportData
from simulate.report.svg import glucose_span, unit_span
from twin.tasks.metrics.units import Display, display


def quantity(metric: str, value: float | None, unit: str, *, with_unit: bool = True) -> Markup:
    """A stored figure as text of the page: its number and its unit, an en dash where there is none."""
    shown = display(metric)
    if value is None:
        return Markup("–")
    if shown.unit == "mg/dL":
        number = glucose_span(value, shown.decimals, unit)
        return number + " " + unit_span(unit) if with_unit else number
    text = escape(shown.text(value))
    return text + Markup(" ") + escape(shown.unit) if with_unit and shown.unit else text


def unit_of(metric: str, unit: str) -> Markup:
    """The metric's unit, as the page shows it."""
    shown = display(metric)
    return unit_span(unit if shown.unit == "mg/dL" else shown.unit)


def what_was_run(summary: Mapping[str, Any]) -> Markup:
    """One sentence: task, hospitals, patients, rounds."""
    sites = summary["sites"]
    patients = sum(site["patients"] for site in sites.values())
    rounds = summary["rounds"]
    done = f"{rounds['committed']} of {rounds['planned']} rounds"
    tasks = {
        "glucose": "forecast glucose over the next hour",
        "heart": "recognise heart disease",
    }
    return Markup(
        "{} with {} together trained one model to {}, in {} ({}, {} parameters). "
        "It was judged on patients whom its training never saw."
    ).format(
        _count(len(sites), "hospital"),
        _count(patients, "patient"),
        tasks.get(summary["task"], summary["task"]),
        done,
        summary["strategy"],
        summary["model"]["parameters"],
    )


def privacy_sentence(summary: Mapping[str, Any]) -> Markup:
    """What was promised to each patient, with delta, unit and neighbouring relation."""
    privacy = summary["privacy"]
    if privacy["epsilon"] is None:
        return Markup(
            "This run was without differential privacy: what the hospitals released may reveal "
            "single patients. It serves as a comparison."
        )
    return Markup(
        "What left any hospital is differentially private per {}: epsilon at most {} at delta {} "
        "(neighbouring: {}; accountant: {}). The site and personal models stay at the hospitals and have no "
        "such promise."
    ).format(
        privacy["unit"],
        f"{privacy['epsilon']:.3g}",
        f"{privacy['delta']:.1g}" if privacy["delta"] is not None else "–",
        privacy["neighbouring"],
        privacy["accountant"],
    )


def findings(data: ReportData) -> list[tuple[str, Markup]]:
    """The main comparisons over all sites as (verdict, sentence); verdict is better, worse or unclear."""
    names = {metric for model in data.summary["metrics"].values() for metric in model}
    chosen = headline_metrics(names)[:1]
    return [
        (_verdict(difference), _sentence(difference, data.unit, ""))
        for difference in data.differences
        if difference.site is None and difference.metric in chosen and difference.interval.value is not None
    ]


def where_it_loses(data: ReportData) -> list[Markup]:
    """Every site and headline metric at which a model is clearly worse than its comparison."""
    names = {metric for model in data.summary["metrics"].values() for metric in model}
    return [
        _sentence(difference, data.unit, difference.site)
        for difference in data.differences
        if difference.site is not None
        and difference.metric in headline_metrics(names)
        and _verdict(difference) == "worse"
    ]


def _sentence(difference: Difference, unit: str, site: str) -> Markup:
    interval, shown = difference.interval, display(difference.metric)
    verdict = _verdict(difference)
    size = quantity(difference.metric, abs(interval.value or 0.0), unit)
    ends = Markup("no interval")
    if interval.low is not None and interval.high is not None:
        ends = Markup("difference {} to {}").format(
            quantity(difference.metric, interval.low, unit, with_unit=False),
            quantity(difference.metric, interval.high, unit, with_unit=False),
        )
    place = Markup("At {}: ").format(site) if site else Markup("")
    model, baseline = label(difference.model), label(difference.baseline)
    if verdict == "unclear":
        return place + Markup("<b>{}</b> against <b>{}</b>: no clear difference in {} ({}).").format(
            model, baseline, shown.label, ends
        )
    more = "lower" if (interval.value or 0.0) < 0 else "higher"
    return place + Markup("<b>{}</b> against <b>{}</b>: {} is {} by {} ({}), which is {}.").format(
        model, baseline, shown.label, more, size, ends, verdict
    )


def _verdict(difference: Difference) -> str:
    """Better or worse only where the interval excludes zero and the metric has a good direction."""
    shown: Display = display(difference.metric)
    if not difference.interval.excludes_zero or shown.better == "neither":
        return "unclear"
    lower = (difference.interval.value or 0.0) < 0
    return "better" if lower == (shown.better == "lower") else "worse"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
