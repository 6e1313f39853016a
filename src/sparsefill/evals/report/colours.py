"""Colours of figures: of methods, and of scores in heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sparsefill.evals.report.figure import Number

Stops = Sequence[str]  # colours at equal steps from the lowest value to the highest

SAFE: Stops = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")  # by lightness as well
PAPER: Stops = ("#f0496e", "#ebb839", "#0cd79f")  # as MInference draws its needles
CHANGE: Stops = ("#a34a00", "#e9a866", "#f4f4f4", "#7fb2dd", "#0a5aa5")  # worse, equal, better


class Stroke(NamedTuple):
    """How a method's curve is drawn: told apart by dashes and markers too."""

    colour: str
    dash: str | None
    marker: str


STROKES = (  # seen on white as well as on black; full attention is the first
    Stroke("#7f8790", None, "circle"),
    Stroke("#2f81c7", None, "square"),
    Stroke("#dd6b20", "7 3", "triangle"),
    Stroke("#12976c", "2 3", "diamond"),
    Stroke("#c2669d", "9 3 2 3", "circle"),
    Stroke("#b58900", "4 2", "square"),
    Stroke("#5f9fd6", "1 3", "triangle"),
    Stroke("#a05a4a", "12 4", "diamond"),
)


def stroke(place: int) -> Stroke:
    """Return how the method at a place of the report's order is drawn."""
    return STROKES[place % len(STROKES)]


def shade(value: Number, low: Number, high: Number, stops: Stops) -> str:
    """Return a value's colour; beyond the ends, that of the end.

    Example:
        >>> shade(0.5, 0, 1, PAPER)
        '#ebb839'
    """
    share = 0.5 if high <= low else min(max((value - low) / (high - low), 0.0), 1.0)
    place = share * (len(stops) - 1)
    first = min(int(place), len(stops) - 2)
    part = place - first
    mixed = (
        round(one + part * (two - one))
        for one, two in zip(_parts(stops[first]), _parts(stops[first + 1]), strict=True)
    )
    return "#" + "".join(f"{level:02x}" for level in mixed)


def ink(colour: str) -> str:
    """Return black or white, whichever is read better on a colour.

    Example:
        >>> ink("#fde725"), ink("#440154")
        ('#000000', '#ffffff')
    """
    linear = [
        level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4
        for level in (part / 255 for part in _parts(colour))
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.179 else "#ffffff"  # 0.179: both contrast alike (WCAG)


def _parts(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
