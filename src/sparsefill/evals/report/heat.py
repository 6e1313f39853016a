"""Heat maps: a needle's length and depth, or layers and heads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparsefill.evals.report.colours import Stops, ink, shade
from sparsefill.evals.report.figure import Figure, label, num, title_of, width_of, width_of_title
from sparsefill.evals.report.markup import Markup, element

WIDEST, TALLEST = 720, 380  # of the cells together
WIDE, TALL = 32.0, 26.0  # the largest cell
ROOM_FOR_TEXT = 26  # width of a cell from which its number is written into it
LEFT, TOP, BOTTOM, RIGHT = 62, 40, 76, 20
STEPS = 24  # of the bar that tells what colours mean


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """Values of a grid.

    Args:
        values: by column and row; what is missing stays empty.
        digits: decimals of the numbers in the cells.
    """

    name: str
    title: str
    description: str
    columns: Sequence[str]
    rows: Sequence[str]
    values: Mapping[tuple[int, int], float]
    x_label: str
    y_label: str
    low: float
    high: float
    stops: Stops
    digits: int = 0

    def draw(self) -> Figure:
        """Draw it."""
        width = min(WIDE, WIDEST / len(self.columns))
        height = min(TALL, TALLEST / len(self.rows))
        whole = width * len(self.columns), height * len(self.rows)
        cells = [
            part
            for (column, row), value in sorted(self.values.items())
            for part in self._cell(column, row, value, width, height)
        ]
        frame = element(
            "rect",
            x=LEFT,
            y=TOP,
            width=num(whole[0]),
            height=num(whole[1]),
            fill="none",
            stroke="currentColor",
            stroke_opacity="0.4",
        )
        total = LEFT + max(whole[0], 240.0, width_of_title(self.title)) + RIGHT
        return Figure(
            name=self.name,
            title=self.title,
            description=self.description,
            width=total,
            height=TOP + whole[1] + BOTTOM,
            body=(
                title_of(self.title, x=LEFT),
                *cells,
                frame,
                *self._labels(width, height),
                *self._bar(TOP + whole[1] + 46),
            ),
        )

    def _cell(
        self, column: int, row: int, value: float, width: float, height: float
    ) -> list[Markup]:
        colour = shade(value, self.low, self.high, self.stops)
        x, y = LEFT + column * width, TOP + row * height
        said = f"{self.columns[column]}, {self.rows[row]}: {value:.{self.digits}f}"
        parts = [
            element(
                "rect",
                element("title", said),
                x=num(x),
                y=num(y),
                width=num(width),
                height=num(height),
                fill=colour,
            )
        ]
        if width >= ROOM_FOR_TEXT and height >= 12:
            text = f"{value:.{self.digits}f}"
            parts.append(
                label(x + width / 2, y + height / 2 + 3.5, text, size=10, fill=ink(colour))
            )
        return parts

    def _labels(self, width: float, height: float) -> list[Markup]:
        bottom = TOP + height * len(self.rows)
        longest = max(width_of(text, size=10) for text in self.columns) + 6
        every = math.ceil(longest / width)  # so that labels do not touch
        found = [
            label(LEFT + (place + 0.5) * width, bottom + 14, text, size=10)
            for place, text in enumerate(self.columns)
            if place % every == 0
        ]
        every = math.ceil(12 / height)
        found += [
            label(LEFT - 6, TOP + (place + 0.5) * height + 3.5, text, size=10, anchor="end")
            for place, text in enumerate(self.rows)
            if place % every == 0
        ]
        middle = TOP + height * len(self.rows) / 2
        turned = f"rotate(-90 14 {num(middle)})"
        found.append(label(LEFT, bottom + 30, self.x_label, anchor="start"))
        found.append(label(14, middle, self.y_label, transform=turned))
        return found

    def _bar(self, y: float) -> list[Markup]:
        step = 120 / STEPS
        found = [
            element(
                "rect",
                x=num(LEFT + place * step),
                y=num(y),
                width=num(step + 0.2),  # no seams
                height=10,
                fill=shade((place + 0.5) / STEPS, 0, 1, self.stops),
            )
            for place in range(STEPS)
        ]
        ends = f"{self.low:g}", f"{self.high:g}"
        found.append(label(LEFT, y + 22, ends[0], size=10, anchor="start"))
        found.append(label(LEFT + 120, y + 22, ends[1], size=10, anchor="end"))
        return found
