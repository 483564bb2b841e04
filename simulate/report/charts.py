"""Dots with intervals, lines with bands, and forecast ribbons, as drawings.

Values of glucose come in mg/dL; the drawing writes them in the page's unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from simulate.intervals import Interval
from simulate.report.data import Example
from simulate.report.svg import Digits, Drawing, Scale, spanning
from twin.tasks.metrics.units import Display

ROW = 26.0
COLOURS = 8
TARGET_MG_DL = (70.0, 180.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """One row of a dot plot; `css` gives its colour."""

    label: str
    css: str
    interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a chart, with an interval at each point where low and high are finite."""

    label: str
    css: str
    x_K: np.ndarray
    y_K: np.ndarray
    low_K: np.ndarray
    high_K: np.ndarray


def dot_plot(dots: Sequence[Dot], title: str, shown: Display, unit: str, *, zero: bool = False) -> Markup:
    """A row per dot: its label, its interval as a bar, its value in figures.

    Args:
        dots: from top to bottom; one without a value says so.
        title: what the picture shows.
        shown: how the metric is written.
        unit: of the page.
        zero: draw the line of no difference, and keep it inside.
    """
    glucose = shown.unit in ("mg/dL", "mmol/L")
    drawing = Drawing(width=620.0, height=ROW * len(dots) + 34.0, title=title, unit=unit)
    ends = [
        end
        for dot in dots
        for end in (dot.interval.value, dot.interval.low, dot.interval.high)
        if end is not None
    ]
    scale = spanning(ends + [0.0] * zero, 195.0, 440.0)
    bottom = ROW * len(dots) + 6.0
    _x_axis(drawing, scale, 6.0, bottom, glucose)
    if zero:
        drawing.line(scale(0.0), 6.0, scale(0.0), bottom, "zero")
    for number, dot in enumerate(dots):
        _dot_row(drawing, scale, dot, number * ROW + 6.0 + ROW / 2, shown, glucose)
    return drawing.done()


def _dot_row(drawing: Drawing, scale: Scale, dot: Dot, y: float, shown: Display, glucose: bool) -> None:
    value, low, high = dot.interval.value, dot.interval.low, dot.interval.high
    digits = (shown.decimals, shown.decimals)
    drawing.text(185.0, y + 4.0, dot.label, "t", "end")
    if value is None:
        drawing.text(451.0, y + 4.0, "not defined", "t faint")
        return
    if low is not None and high is not None:
        drawing.line(scale(low), y, scale(high), y, f"bar {dot.css}")
        drawing.number(513.0, y + 4.0, low, digits, "t faint", "start", glucose=glucose)
        drawing.text(568.0, y + 4.0, "–", "t faint", "middle")
        drawing.number(618.0, y + 4.0, high, digits, "t faint", "end", glucose=glucose)
    drawing.circle(scale(value), y, 5.0, f"dot {dot.css}")
    drawing.number(451.0, y + 4.0, value, digits, "t strong", "start", glucose=glucose)


def line_chart(
    lines: Sequence[Line], title: str, x_label: str, shown: Display, unit: str, *, width: float = 420.0
) -> Markup:
    """Lines over a common axis, each named at its end."""
    glucose = shown.unit in ("mg/dL", "mmol/L")
    drawing = Drawing(width=width, height=230.0, title=title, unit=unit)
    values = [float(v) for line in lines for v in (*line.y_K, *line.low_K, *line.high_K)]
    xs = sorted({float(x) for line in lines for x in line.x_K})
    named = any(line.label for line in lines)
    across = spanning(xs, 46.0, width - (150.0 if named else 12.0), margin=0.02)
    up = spanning(values, 188.0, 12.0)
    for tick in up.ticks(4):
        drawing.line(across.start, up(tick), across.end, up(tick), "grid")
        drawing.number(40.0, up(tick) + 4.0, tick, _digits(up.ticks(4)), "t faint", "end", glucose=glucose)
    for tick in xs if len(xs) <= 8 else across.ticks(6):
        drawing.text(across(tick), 204.0, f"{tick:g}", "t faint", "middle")
    drawing.text((across.start + across.end) / 2, 224.0, x_label, "t faint", "middle")
    for number, line in enumerate(lines):
        _line(drawing, line, across, up, aside=4.0 * (number - (len(lines) - 1) / 2))
    for y, line in _apart([(up(_last(line)), line) for line in lines if line.label and _any(line)]):
        drawing.text(across.end + 8.0, y + 4.0, line.label, f"t name {line.css}")
    return drawing.done()


def _line(drawing: Drawing, line: Line, across: Scale, up: Scale, *, aside: float) -> None:
    """The line, its points and their intervals, which stand `aside` so that they do not cover each other."""
    band = [
        (across(x), up(low), up(high))
        for x, low, high in zip(line.x_K, line.low_K, line.high_K, strict=True)
        if math.isfinite(low) and math.isfinite(high)
    ]
    for x, low, high in band:
        drawing.line(x + aside, low, x + aside, high, f"whisker {line.css}")
    points = [(across(x), up(y)) for x, y in zip(line.x_K, line.y_K, strict=True) if math.isfinite(y)]
    drawing.path(points, f"line {line.css}")
    if len(points) <= 12:
        for x, y in points:
            drawing.circle(x, y, 3.0, f"dot {line.css}")


def ribbon(example: Example, title: str, unit: str, low_mg_dl: float) -> Markup:
    """What was measured as dots, over the forecast made `horizon_min` before as a band with its middle."""
    drawing = Drawing(width=900.0, height=210.0, title=title, unit=unit)
    values = [float(v) for part in (example.low_K, example.high_K, example.observed_K) for v in part]
    up = spanning([*values, low_mg_dl, TARGET_MG_DL[1]], 176.0, 8.0, margin=0.04)
    across = Scale(low=0.0, high=max(1.0, float(example.hours_K[-1])), start=46.0, end=892.0)
    top, bottom = up(TARGET_MG_DL[1]), up(TARGET_MG_DL[0])
    drawing.rect(across.start, top, across.end - across.start, bottom - top, "target")
    for tick in up.ticks(4):
        drawing.line(across.start, up(tick), across.end, up(tick), "grid")
        drawing.number(40.0, up(tick) + 4.0, tick, (0, 1), "t faint", "end", glucose=True)
    for hour in across.ticks(8):
        drawing.text(across(hour), 192.0, f"{hour:g} h", "t faint", "middle")
    drawing.line(across.start, up(low_mg_dl), across.end, up(low_mg_dl), "limit")
    for piece in _pieces(example.hours_K):
        x_K = [across(hour) for hour in example.hours_K[piece]]
        above = [(x, up(v)) for x, v in zip(x_K, example.high_K[piece], strict=True)]
        below = [(x, up(v)) for x, v in zip(x_K, example.low_K[piece], strict=True)]
        drawing.path(above + below[::-1], "ribbon", closed=True)
        middle = [(x, up(v)) for x, v in zip(x_K, example.middle_K[piece], strict=True)]
        drawing.path(middle, "line c-federation")
    seen = np.isfinite(example.observed_K)
    dots = zip(example.hours_K[seen], example.observed_K[seen], strict=True)
    drawing.marks([(across(hour), up(value)) for hour, value in dots], "seen")
    return drawing.done()


def _pieces(hours_K: np.ndarray) -> list[np.ndarray]:
    """Indices of stretches without a gap of more than twice the usual step."""
    step = np.diff(hours_K)
    cuts = np.flatnonzero(step > 2.0 * np.median(step)) + 1 if len(step) else np.empty(0, dtype=np.int64)
    return np.split(np.arange(len(hours_K)), cuts)


def _x_axis(drawing: Drawing, scale: Scale, top: float, bottom: float, glucose: bool) -> None:
    ticks = scale.ticks(5)
    for tick in ticks:
        drawing.line(scale(tick), top, scale(tick), bottom, "grid")
        drawing.number(scale(tick), bottom + 16.0, tick, _digits(ticks), "t faint", "middle", glucose=glucose)


def _digits(ticks: list[float]) -> Digits:
    """Digits behind the point that tell neighbouring ticks apart, also in mmol/L, 18 times smaller."""
    step = min((b - a for a, b in pairwise(ticks)), default=1.0)
    plain = next((digits for digits in range(6) if abs(round(step, digits) - step) < 1e-9), 6)
    return plain, 1 if step >= 10.0 else plain + 2


def _apart(named: list[tuple[float, Line]], least: float = 14.0) -> list[tuple[float, Line]]:
    """The same names, moved down where they would lie on each other."""
    placed: list[tuple[float, Line]] = []
    for y, line in sorted(named, key=lambda pair: pair[0]):
        placed.append((max(y, placed[-1][0] + least) if placed else y, line))
    return placed


def _any(line: Line) -> bool:
    return bool(np.isfinite(line.y_K).any())


def _last(line: Line) -> float:
    return float(line.y_K[np.isfinite(line.y_K)][-1])
