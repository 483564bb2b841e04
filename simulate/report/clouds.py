"""Clouds of observed against forecast values: the Clarke grid, ROC and calibration curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from simulate.report.data import Pairs
from simulate.report.svg import Drawing, Scale
from twin.tasks.metrics.binary import BINS
from twin.tasks.metrics.clarke import ZONES, clarke_zone

_SIDE = 300.0
_FEWEST = 10
# The lines of the grid (Clarke et al. 1987), in mg/dL, up to the edge at 400.
_LINES: tuple[tuple[tuple[float, float], ...], ...] = (
    ((0, 70), (175 / 3, 70), (1000 / 3, 400)),
    ((70, 84), (70, 400)),
    ((0, 180), (70, 180)),
    ((70, 180), (290, 400)),
    ((70, 0), (70, 56), (400, 320)),
    ((180, 0), (180, 70), (400, 70)),
    ((240, 70), (240, 180), (400, 180)),
    ((130, 0), (180, 70)),
)
_LETTERS = (("A", 30, 15), ("B", 370, 260), ("B", 280, 370), ("C", 160, 370), ("C", 165, 12), ("D", 30, 140))
_MORE_LETTERS = (("D", 370, 120), ("E", 30, 370), ("E", 370, 15))


def clarke_grid(pairs: Pairs, title: str, unit: str) -> Markup:
    """The grid with a dot for each pair, coloured by zone; pairs beyond 400 mg/dL lie on the edge."""
    drawing = Drawing(width=_SIDE + 60.0, height=_SIDE + 52.0, title=title, unit=unit)
    across = Scale(low=0.0, high=400.0, start=46.0, end=46.0 + _SIDE)
    up = Scale(low=0.0, high=400.0, start=8.0 + _SIDE, end=8.0)
    for tick in (0.0, 100.0, 200.0, 300.0, 400.0):
        drawing.number(40.0, up(tick) + 4.0, tick, (0, 1), "t faint", "end", glucose=True)
        drawing.number(across(tick), up.start + 16.0, tick, (0, 1), "t faint", "middle", glucose=True)
    zone_K = clarke_zone(pairs.observed_K, pairs.forecast_K)
    for number, letter in enumerate(ZONES):
        inside = zone_K == number
        shown = np.clip(np.stack([pairs.observed_K[inside], pairs.forecast_K[inside]], axis=1), 0.0, 400.0)
        drawing.marks([(across(x), up(y)) for x, y in shown.tolist()], f"cloud zone-{letter}")
    for line in _LINES:
        drawing.path([(across(x), up(y)) for x, y in line], "edge")
    drawing.path([(across(0.0), up(0.0)), (across(400.0), up(400.0))], "diagonal")
    frame = [(0.0, 0.0), (400.0, 0.0), (400.0, 400.0), (0.0, 400.0)]
    drawing.path([(across(x), up(y)) for x, y in frame], "edge", closed=True)
    for letter, x, y in (*_LETTERS, *_MORE_LETTERS):
        drawing.text(across(x), up(y) + 5.0, letter, "t letter", "middle")
    drawing.text(across(200.0), _SIDE + 46.0, "observed →, forecast ↑", "t faint", "middle")
    return drawing.done()


def zone_shares(pairs: Pairs) -> list[tuple[str, float]]:
    """Zone and percent of the pairs in it."""
    counts = np.bincount(clarke_zone(pairs.observed_K, pairs.forecast_K), minlength=len(ZONES))
    return [
        (letter, 100.0 * float(n) / max(1, len(pairs.observed_K)))
        for letter, n in zip(ZONES, counts, strict=True)
    ]


def roc(pairs: Sequence[Pairs], title: str) -> Markup:
    """Share of the affected that are found over share of the others that are called so; a line per site."""
    curves = []
    for one in pairs:
        affected = one.observed_K[np.argsort(-one.forecast_K, kind="stable")] > 0.5
        # A threshold stands behind every value of the probability, not inside a run of equal ones.
        last = np.append(np.diff(np.sort(-one.forecast_K)) != 0, True)
        found, false = np.cumsum(affected)[last], np.cumsum(~affected)[last]
        if len(found) and found[-1] and false[-1]:
            # Steps finer than a third of a pixel are not drawn.
            points = np.round(np.stack([false / false[-1], found / found[-1]], axis=1), 3).tolist()
            curves.append((one.site, list(dict.fromkeys([(0.0, 0.0), *map(tuple, points)]))))
    return _unit_square(curves, title, "false alarms among the unaffected →, found among the affected ↑")


def calibration(pairs: Sequence[Pairs], title: str) -> Markup:
    """How often the label came true in ten bins of the probability; a line per site.

    A bin of fewer than `_FEWEST` is not drawn: its share would be chance.
    """
    curves = []
    for one in pairs:
        bin_K = np.clip((one.forecast_K * BINS).astype(int), 0, BINS - 1)
        filled = [bin_K == number for number in range(BINS) if (bin_K == number).sum() >= _FEWEST]
        points = [
            (float(one.forecast_K[inside].mean()), float(one.observed_K[inside].mean())) for inside in filled
        ]
        curves.append((one.site, points))
    return _unit_square(curves, title, "probability said →, share that came true ↑")


def _unit_square(curves: Sequence[tuple[str, list[tuple[float, float]]]], title: str, axes: str) -> Markup:
    drawing = Drawing(width=_SIDE + 60.0, height=_SIDE + 52.0 + 18.0 * len(curves), title=title)
    across = Scale(low=0.0, high=1.0, start=46.0, end=46.0 + _SIDE)
    up = Scale(low=0.0, high=1.0, start=8.0 + _SIDE, end=8.0)
    for tick in across.ticks(4):
        drawing.line(across.start, up(tick), across.end, up(tick), "grid")
        drawing.text(40.0, up(tick) + 4.0, f"{tick:g}", "t faint", "end")
        drawing.text(across(tick), up.start + 16.0, f"{tick:g}", "t faint", "middle")
    drawing.path([(across(0.0), up(0.0)), (across(1.0), up(1.0))], "diagonal")
    for number, (site, points) in enumerate(curves):
        drawing.path([(across(x), up(y)) for x, y in points], f"line s{number % 8}")
        y = _SIDE + 62.0 + 18.0 * number
        drawing.line(50.0, y - 4.0, 76.0, y - 4.0, f"line s{number % 8}")
        drawing.text(84.0, y, site, "t")
    drawing.text(across(0.5), _SIDE + 42.0, axes, "t faint", "middle")
    return drawing.done()
