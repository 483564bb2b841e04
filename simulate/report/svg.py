"""A drawing as inline SVG: shapes by class, so that a style sheet colours them, and escaped text.

Numbers of glucose carry their value in mg/dL (`data-mg`), so that the page can show them in mmol/L.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

from markupsafe import Markup, escape

from twin.signals import MG_DL_PER_MMOL_L

Digits: TypeAlias = tuple[int, int]
"""Digits behind the point in mg/dL, or of a number without unit, and in mmol/L."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A straight map from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values inside the scale, some `about` of them."""
        rough = (self.high - self.low) / max(1, about)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if power * factor >= rough)
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first + 1
        return [round((first + number) * step, 10) for number in range(count)]


def spanning(values: list[float], start: float, end: float, *, margin: float = 0.06) -> Scale:
    """A scale on which all finite values have a place; one that has a width even for equal values."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    room = (high - low) * margin or abs(high) * 0.05 or 0.5
    return Scale(low=low - room, high=high + room, start=start, end=end)


@dataclass(slots=True, kw_only=True)
class Drawing:
    """An SVG that is being drawn; `done` gives the finished element.

    Attributes:
        width, height: of the coordinate system; on the page it scales to its box.
        title: what the picture shows, for those who cannot see it.
        unit: in which glucose is written first, "mg/dL" or "mmol/L".
    """

    width: float
    height: float
    title: str
    unit: str = "mg/dL"
    parts: list[Markup] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        """A straight line."""
        self._add('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>', x1, y1, x2, y2, css)

    def circle(self, x: float, y: float, radius: float, css: str, title: str = "") -> None:
        """A dot; `title` appears when the mouse rests on it."""
        inner = Markup("<title>{}</title>").format(title) if title else Markup("")
        self._add('<circle cx="{}" cy="{}" r="{}" class="{}">{}</circle>', x, y, radius, css, inner)

    def rect(self, x: float, y: float, width: float, height: float, css: str) -> None:
        """A box."""
        self._add('<rect x="{}" y="{}" width="{}" height="{}" class="{}"/>', x, y, width, height, css)

    def path(self, points: list[tuple[float, float]], css: str, *, closed: bool = False) -> None:
        """A line through points, or the area inside them."""
        if points:
            steps = "L".join(f"{_short(x)} {_short(y)}" for x, y in points)
            self._add('<path d="M{}{}" class="{}"/>', steps, "Z" if closed else "", css)

    def marks(self, points: list[tuple[float, float]], css: str) -> None:
        """Many small dots as one path: round line caps of no length."""
        if points:
            steps = "".join(f"M{_short(x)} {_short(y)}h0" for x, y in points)
            self._add('<path d="{}" class="{}"/>', steps, css)

    def text(self, x: float, y: float, content: str, css: str = "t", anchor: str = "start") -> None:
        """A piece of text; anchor is "start", "middle" or "end"."""
        self._add('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>', x, y, css, anchor, content)

    def number(
        self, x: float, y: float, value: float, digits: Digits, css: str, anchor: str, *, glucose: bool
    ) -> None:
        """A number; one of glucose (mg/dL) is written in the page's unit and follows it."""
        if not glucose:
            self.text(x, y, number_text(value, digits[0]), css, anchor)
            return
        mark = '<text x="{}" y="{}" class="{}" text-anchor="{}" data-mg="{}" data-digits="{}">{}</text>'
        shown = glucose_text(value, digits, self.unit)
        self._add(mark, x, y, css, anchor, f"{value:.6g}", "{} {}".format(*digits), shown)

    def done(self) -> Markup:
        """The element."""
        frame = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>{}</svg>')
        return frame.format(
            _short(self.width), _short(self.height), self.title, self.title, Markup("").join(self.parts)
        )

    def _add(self, mark: str, *values: object) -> None:
        shown = (_short(value) if isinstance(value, float) else value for value in values)
        self.parts.append(Markup(mark).format(*shown))  # noqa: S704  # every mark is a constant of this file


def glucose_text(value_mg_dl: float, digits: Digits, unit: str) -> str:
    """The value in the unit, with the digits that are meant for it."""
    if unit == "mmol/L":
        return number_text(value_mg_dl / MG_DL_PER_MMOL_L, digits[1])
    return number_text(value_mg_dl, digits[0])


def number_text(value: float, decimals: int) -> str:
    """The number with a minus sign, not a hyphen."""
    return f"{value:.{decimals}f}".replace("-", "−")


def glucose_span(value_mg_dl: float, digits: Digits, unit: str) -> Markup:
    """The value as text of a page that follows the page's unit."""
    mark = Markup('<span data-mg="{:.6g}" data-digits="{}">{}</span>')
    return mark.format(value_mg_dl, "{} {}".format(*digits), glucose_text(value_mg_dl, digits, unit))


def unit_span(unit: str) -> Markup:
    """The name of a unit; a glucose unit follows the page's."""
    if unit in ("mg/dL", "mmol/L"):
        return Markup('<span class="unit">{}</span>').format(unit)
    return escape(unit)


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
