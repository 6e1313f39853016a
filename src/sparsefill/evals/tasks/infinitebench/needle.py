"""A number in a line of its own, amid lines of noise: Retrieve.PassKey and Retrieve.Number."""

from __future__ import annotations

import random

from sparsefill.evals.task import Making
from sparsefill.evals.tasks.infinitebench.row import Row
from sparsefill.evals.tasks.noise import NOISE

DEPTHS = 59  # before line 0, 90, 180, ... 5220 of 5220
REPEATS = 10  # samples of one depth, one after another
DRAWN = 5  # digits


def draw_passkey(making: Making, lines: int) -> Row:
    """Hide a pass key of five digits in so many lines of noise."""
    key = _digits(making.draw("key"))
    line = f"The pass key is {key}. Remember it. {key} is the pass key.\n"
    return _hidden(making, lines, line, key, "What is the pass key?")


def draw_digits(making: Making, lines: int) -> Row:
    """Hide a sequence of ten digits, of which at most five differ, in so many lines of noise."""
    draw = making.draw("key")
    digits = list(_digits(draw))
    for _ in range(DRAWN):
        place = draw.randrange(len(digits))
        digits.insert(place, digits[place])
    key = "".join(digits)
    line = f"The sequence of digits is {key}. Remember it. {key} is the sequence of digits.\n"
    return _hidden(making, lines, line, key, "What is the sequence of digits?")


def place_of(index: int, lines: int) -> int:
    """Return the line of noise before which a sample's key stands: the official grid, scaled.

    Example:
        >>> [place_of(index, 5220) for index in (0, 9, 10, 589, 590)]
        [0, 0, 90, 5220, 0]
        >>> place_of(295, 100)
        50
    """
    depth = index // REPEATS % DEPTHS
    return lines * depth // (DEPTHS - 1)


def _digits(draw: random.Random) -> str:
    return "".join(str(draw.randint(0, 9)) for _ in range(DRAWN))


def _hidden(making: Making, lines: int, line: str, key: str, question: str) -> Row:
    place = place_of(making.index, lines)
    noise = NOISE + "\n"
    context = noise * place + line + noise * (lines - place)
    recipe = {"lines": lines, "line": place}
    return Row(context=context, input=question, answer=(key,), recipe=recipe)
