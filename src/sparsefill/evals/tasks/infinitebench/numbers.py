"""The largest, smallest or middle one of a long list of numbers: Math.Find."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import median

from sparsefill.evals.task import Making
from sparsefill.evals.tasks.infinitebench.row import Row

TARGETS = (
    "largest number",
    "second largest number",
    "third largest number",
    "smallest number",
    "second smallest number",
    "third smallest number",
    "median number",
)
REPEATS = 50  # samples of one target, one after another
LARGEST = 99
LOW_UPPER, HIGH_LOWER = 79, 19  # how far a sample's own bounds may move inwards


def draw_numbers(making: Making, count: int) -> Row:
    """Draw so many numbers from 0 to 99, one bound redrawn, and ask for one of them."""
    target = TARGETS[making.index // REPEATS % len(TARGETS)]
    draw = making.draw("numbers")
    lower, upper = _bounds(target, draw)
    numbers = [draw.randint(lower, upper) for _ in range(count)]
    return Row(
        context=str(numbers),
        input="You should answer with only one number, no other words."
        f" The {target} of the list is: ",
        answer=(found(target, numbers),),
        recipe={"numbers": count, "target": target, "bounds": [lower, upper]},
    )


def found(target: str, numbers: Sequence[int]) -> str:
    """Return the number asked for. Equal numbers share a rank; a median has a decimal point.

    Example:
        >>> found("second largest number", [4, 9, 9, 7]), found("median number", [1, 2, 3, 8])
        ('7', '2.5')
    """
    if target == "median number":
        middle = median(numbers)
        return str(middle)
    ranked = sorted(set(numbers), reverse="largest" in target)
    rank = ("second" in target) + 2 * ("third" in target)
    return str(ranked[rank])


def _bounds(target: str, draw: random.Random) -> tuple[int, int]:
    """Redraw the bound that the answer lies at; of a median, either."""
    of_median = target == "median number"
    lower = draw.random() > 0.5 if of_median else "smallest" in target
    if lower:
        return draw.randint(0, HIGH_LOWER), LARGEST
    return 0, draw.randint(LOW_UPPER, LARGEST)
