"""Axes of values: in proportion, by ratio, or by ratio on both sides of nought."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sparsefill.evals.report.figure import Number

ROOM = 0.06  # of the axis, beyond the values at each end
APART = 0.06  # of the axis, between two ticks
FEW = 3  # round values, without which an axis has equal steps
DIGITS = (1, 2, 5)  # the roundest first
ALIKE = 1e-5  # of values: labels do not tell apart those that are nearer to each other
FARTHEST = 709.0  # place on an axis: e to this is still a number
NEAR = 0.1  # what is nearer to nought than this lies in proportion, on an axis for both signs


@dataclass(frozen=True, kw_only=True)
class Axis:
    """How values lie on an axis.

    Args:
        at: where a value lies; grows with it.
        back: the value that lies there.
        round: round values between two ends, the roundest first.
    """

    at: Callable[[float], float]
    back: Callable[[float], float]
    round: Callable[[Number, Number], Iterable[float]]

    def share(self, value: Number, low: Number, high: Number) -> float:
        """Return how far from one end to the other a value lies, 0 to 1; beyond them, the end."""
        value = min(max(value, low), high)
        return (self.at(value) - self.at(low)) / (self.at(high) - self.at(low))

    def around(self, low: Number, high: Number) -> tuple[float, float]:
        """Return ends with some room around values."""
        first, last = self.at(low), self.at(high)
        room = ROOM * (last - first)
        if high - low <= ALIKE * max(abs(low), abs(high)):
            room = max(abs(last) * 0.01, 1e-3)
        return self.back(first - room), self.back(last + room)

    def ticks(self, low: Number, high: Number) -> list[float]:
        """Return round values between two ends that do not lie too close to each other.

        Example:
            >>> RATIO.ticks(0.4, 12)
            [0.5, 1.0, 2.0, 5.0, 10.0]
            >>> RATIO.ticks(41, 56)
            [45.0, 50.0, 55.0]
            >>> SIGNED_RATIO.ticks(-0.3, 40)
            [-0.2, -0.1, 0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
        """
        kept: dict[float, float] = {}
        for value in self.round(low, high):
            share = self.share(value, low, high)
            if all(abs(share - other) > APART for other in kept.values()):
                kept[value] = share
        return sorted(kept)


def steps(low: Number, high: Number) -> list[float]:
    """Return round values between two ends, some five of them, equally far from each other.

    Example:
        >>> steps(0, 100)
        [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    rough = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [count * step for count in range(first, last + 1)]


def ratios(low: Number, high: Number) -> list[float]:
    """Return 1, 5 and 2 times powers of ten between two positive ends; steps, if there are few."""
    values = _of_powers(low, high)
    return values if len(values) >= FEW else steps(low, high)


def signed_ratios(low: Number, high: Number) -> list[float]:
    """Return nought, and ratios on both sides of it; steps, if there are few."""
    far = _of_powers(NEAR, max(-low, high, NEAR))
    values = [value for size in (0.0, *far) for value in (size, -size) if low <= value <= high]
    return values if len({*values}) >= FEW else steps(low, high)


def _of_powers(low: Number, high: Number) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [float(f"{digit}e{power}") for digit in DIGITS for power in powers]
    return [value for value in values if low <= value <= high]


PROPORTION = Axis(at=float, back=float, round=steps)
RATIO = Axis(at=math.log, back=lambda place: math.exp(min(place, FARTHEST)), round=ratios)
SIGNED_RATIO = Axis(
    at=lambda value: math.asinh(value / NEAR),
    back=lambda place: math.sinh(max(-FARTHEST, min(place, FARTHEST))) * NEAR,
    round=signed_ratios,
)
