"""Curves over the length of the prompt, one for each method, with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sparsefill.evals.report import words
from sparsefill.evals.report.axis import PROPORTION, Axis
from sparsefill.evals.report.colours import Stroke
from sparsefill.evals.report.figure import (
    Figure,
    Number,
    label,
    num,
    title_of,
    width_of,
    width_of_title,
)
from sparsefill.evals.report.markup import Markup, element

WIDTH, HEIGHT = 420.0, 220.0  # of the plot itself
LEFT, TOP, RIGHT = 62.0, 34.0, 24.0
ASIDE = 4.0  # between methods at the same length, so that intervals do not hide each other


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value at a length, and where it may lie."""

    length: int
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """One method's values."""

    name: str
    points: tuple[Point, ...]
    stroke: Stroke


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Values over length.

    Args:
        span: lowest and highest value shown; fits the values if left out.
        axis: of the values.
    """

    name: str
    title: str
    description: str
    series: Sequence[Series]
    y_label: str
    span: tuple[float, float] | None = None
    axis: Axis = PROPORTION

    def draw(self) -> Figure:
        """Draw them."""
        legend = -(-len(self.series) // self._abreast()) * 18 + 8
        bottom = TOP + HEIGHT
        return Figure(
            name=self.name,
            title=self.title,
            description=self.description,
            width=LEFT + max(WIDTH, width_of_title(self.title)) + RIGHT,
            height=bottom + 44 + legend,
            body=(
                title_of(self.title, x=LEFT),
                *self._axes(),
                *(part for place in range(len(self.series)) for part in self._draw(place)),
                *self._legend(bottom + 56),
            ),
        )

    def _lengths(self) -> list[int]:
        return sorted({point.length for one in self.series for point in one.points})

    def _ends(self) -> tuple[float, float]:
        if self.span is not None:
            return self.span
        points = [point for one in self.series for point in one.points]
        lows = [p.value if p.low is None else min(p.low, p.value) for p in points]
        highs = [p.value if p.high is None else max(p.high, p.value) for p in points]
        return self.axis.around(min(lows), max(highs))

    def _x(self, length: int) -> float:
        lengths = self._lengths()
        low, high = math.log(lengths[0]), math.log(lengths[-1])
        share = 0.5 if low == high else (math.log(length) - low) / (high - low)
        return LEFT + 16 + share * (WIDTH - 32)

    def _y(self, value: float) -> float:
        return TOP + HEIGHT * (1 - self.axis.share(value, *self._ends()))

    def _axes(self) -> Iterator[Markup]:
        for value in self.axis.ticks(*self._ends()):
            y = self._y(value)
            yield _line(LEFT, y, LEFT + WIDTH, y, opacity="0.15")
            text = f"{value:.6g}".replace("-", "\N{MINUS SIGN}")
            yield label(LEFT - 6, y + 3.5, text, size=10, anchor="end")
        last = -math.inf
        for length in self._lengths():
            x = self._x(length)
            yield _line(x, TOP + HEIGHT, x, TOP + HEIGHT + 4, opacity="0.5")
            if x - last >= 38:  # labels do not touch
                yield label(x, TOP + HEIGHT + 16, words.length(length), size=10)
                last = x
        yield _line(LEFT, TOP + HEIGHT, LEFT + WIDTH, TOP + HEIGHT, opacity="0.5")
        middle = TOP + HEIGHT / 2
        yield label(LEFT + WIDTH / 2, TOP + HEIGHT + 34, "prompt length in tokens")
        yield label(14, middle, self.y_label, transform=f"rotate(-90 14 {num(middle)})")

    def _draw(self, place: int) -> Iterator[Markup]:
        one = self.series[place]
        aside = ASIDE * (place - (len(self.series) - 1) / 2)
        places = [(self._x(p.length) + aside, self._y(p.value)) for p in one.points]
        path = " ".join(f"{num(x)},{num(y)}" for x, y in places)
        colour, dash = one.stroke.colour, one.stroke.dash
        yield element(
            "polyline",
            points=path,
            fill="none",
            stroke=colour,
            stroke_width=2,
            stroke_dasharray=dash,
        )
        for point, (x, y) in zip(one.points, places, strict=True):
            if point.low is not None and point.high is not None:
                yield _line(x, self._y(point.low), x, self._y(point.high), colour=colour)
            said = f"{one.name}, {words.length(point.length)}: {point.value:.6g}"
            yield _marker(one.stroke, x, y, said)

    def _abreast(self) -> int:
        """Return how many names stand side by side."""
        widest = max(width_of(one.name, size=11) for one in self.series)
        return 2 if widest + 46 < WIDTH / 2 else 1

    def _legend(self, y: float) -> Iterator[Markup]:
        abreast = self._abreast()
        for place, one in enumerate(self.series):
            x = LEFT + place % abreast * WIDTH / abreast
            row = y + place // abreast * 18
            colour, dash = one.stroke.colour, one.stroke.dash
            yield _line(x, row, x + 30, row, colour=colour, width=2, dash=dash)
            yield _marker(one.stroke, x + 15, row, None)
            yield label(x + 38, row + 4, one.name, anchor="start")


def _line(
    x1: float,
    y1: float,
    x2: float,
    y2: float,
    *,
    colour: str = "currentColor",
    width: Number = 1,
    opacity: str | None = None,
    dash: str | None = None,
) -> Markup:
    ends = {"x1": num(x1), "y1": num(y1), "x2": num(x2), "y2": num(y2)}
    return element(
        "line",
        **ends,
        stroke=colour,
        stroke_width=width,
        stroke_opacity=opacity,
        stroke_dasharray=dash,
    )


def _marker(stroke: Stroke, x: float, y: float, said: str | None) -> Markup:
    inside = None if said is None else element("title", said)
    if stroke.marker == "circle":
        return element("circle", inside, cx=num(x), cy=num(y), r=4, fill=stroke.colour)
    corners = {
        "square": ((-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)),
        "triangle": ((0, -4.8), (4.6, 3.6), (-4.6, 3.6)),
        "diamond": ((0, -5), (5, 0), (0, 5), (-5, 0)),
    }[stroke.marker]
    path = "M" + "L".join(f"{num(x + dx)},{num(y + dy)}" for dx, dy in corners) + "Z"
    return element("path", inside, d=path, fill=stroke.colour)
