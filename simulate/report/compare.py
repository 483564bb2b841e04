"""The page of a comparison: one table, every figure as a dot, and accuracy against what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from simulate.comparison import Comparison
from simulate.files import write_atomically
from simulate.intervals import Interval
from simulate.models import at_most, label
from simulate.report.charts import COLOURS, Dot, dot_plot
from simulate.report.svg import Drawing, spanning
from simulate.report.words import quantity, small, unit_of
from twin.tasks.metrics.units import display


def write_comparison(comparison: Comparison, unit: str, path: Path) -> None:
    """Write the comparison as one self-contained HTML file, whole or not at all."""
    write_atomically(path, render(comparison, unit).encode())


def render(comparison: Comparison, unit: str) -> str:
    """The page as HTML text.

    Args:
        unit: in which glucose is shown first, "mg/dL" or "mmol/L".
    """
    environment = Environment(
        loader=PackageLoader("simulate.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        quantity=quantity, small=small, at_most=at_most, unit_of=unit_of, label=label, display=display
    )
    source: Any = environment.loader
    style, script = (
        Markup(source.get_source(environment, name)[0])  # noqa: S704  our own files
        for name in ("report.css", "report.js")
    )
    return environment.get_template("compare.html.j2").render(
        comparison=comparison,
        unit=unit,
        has_glucose=any(display(metric).unit == "mg/dL" for metric in comparison.metrics),
        dots=[(metric, _dots(comparison, metric, unit)) for metric in comparison.metrics],
        prices=_prices(comparison, unit),
        style=style,
        script=script,
    )


def _dots(comparison: Comparison, metric: str, unit: str) -> Markup:
    dots = [
        Dot(
            label=f"{number}  {row.name}"[:34],
            css="c-reference" if row.epsilon is None else "c-federation",
            interval=row.figures.get(metric, Interval(value=None)),
        )
        for number, row in enumerate(comparison.rows, start=1)
    ]
    shown = display(metric)
    return dot_plot(dots, f"{shown.label} of every run", shown, unit)


def _prices(comparison: Comparison, unit: str) -> list[tuple[str, Markup]]:
    """What the first metric cost: a picture for each price that two runs at least have."""
    prices = {
        "epsilon per patient, at most (runs with privacy)": [row.epsilon for row in comparison.rows],
        "communication, MB": [row.megabytes for row in comparison.rows],
        "training, s": [row.seconds for row in comparison.rows],
    }
    return [
        (name, _scatter(comparison, name, values, unit))
        for name, values in prices.items()
        if sum(value is not None for value in values) > 1
    ]


def _scatter(comparison: Comparison, name: str, prices: Sequence[float | None], unit: str) -> Markup:
    """Numbered dots with their intervals; the numbers are those of the table."""
    metric = comparison.metrics[0]
    shown = display(metric)
    glucose = shown.unit in ("mg/dL", "mmol/L")
    points = [
        (number, price, row.figures[metric], "c-reference" if row.epsilon is None else f"s{number % COLOURS}")
        for number, (row, price) in enumerate(zip(comparison.rows, prices, strict=True), start=1)
        if price is not None and row.figures[metric].value is not None
    ]
    ends = [
        end for _, _, found, _ in points for end in (found.value, found.low, found.high) if end is not None
    ]
    drawing = Drawing(width=420.0, height=260.0, title=f"{shown.label} against {name}", unit=unit)
    across = spanning([price for _, price, _, _ in points], 46.0, 408.0)
    up = spanning(ends, 214.0, 12.0)
    for tick in up.ticks(4):
        drawing.line(across.start, up(tick), across.end, up(tick), "grid")
        drawing.number(40.0, up(tick) + 4.0, tick, (shown.decimals, 1), "t faint", "end", glucose=glucose)
    for tick in across.ticks(5):
        drawing.text(across(tick), 230.0, f"{tick:g}", "t faint", "middle")
    drawing.text((across.start + across.end) / 2, 250.0, name, "t faint", "middle")
    for number, price, found, css in points:
        x = across(price)
        if found.low is not None and found.high is not None:
            drawing.line(x, up(found.low), x, up(found.high), f"whisker {css}")
        drawing.circle(x, up(float(found.value or 0.0)), 4.5, f"dot {css}", comparison.rows[number - 1].name)
        drawing.text(x + 7.0, up(float(found.value or 0.0)) + 4.0, str(number), "t")
    return drawing.done()
