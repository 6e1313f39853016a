"""How much filler a prompt has room for: the search that every generator shares."""

from __future__ import annotations

from collections.abc import Callable

from sparsefill.errors import InputError

Point = tuple[int, int]  # units, and their tokens

AHEAD = 16  # no guess is so many times farther than what is known


def fit_units(
    tokens_of: Callable[[int], int], room: int, *, least: int = 0, enough: int = 0
) -> int:
    """Return the largest number of units whose prompt has at most `room` tokens.

    Tokens grow nearly linearly with units: guesses are drawn through what fits and what does not,
    or ahead through what fits. A prompt of a million tokens takes the work of three such prompts,
    where bisection from the first guess would take twenty.

    Args:
        tokens_of: tokens of a prompt with so many units; should not fall as they grow.
        room: tokens that there are.
        least: units below which there is no sample.
        enough: fewer free tokens than these are not worth another try.

    Raises:
        InputError: not even the least fits.

    Example:
        >>> fit_units(lambda units: 20 + 7 * units, 1000)
        140
    """
    first = fits = (least, tokens_of(least))
    if first[1] > room:
        raise InputError(
            f"the smallest prompt of this task has {first[1]} tokens, with room for {room};"
            " pass a larger length"
        )
    over: Point | None = None
    guess = least + 1
    while (over is None or over[0] - fits[0] > 1) and room - fits[1] >= enough:
        tried = (guess, tokens_of(guess))
        if tried[1] > room:
            over = tried
        else:
            fits = tried
        guess = _guess(first, fits, over, room)
    return fits[0]


def _guess(first: Point, fits: Point, over: Point | None, room: int) -> int:
    """Guess where `room` is met, beyond what fits and before what does not."""
    units, tokens = fits
    other = over or first
    slope = max((other[1] - tokens) / (other[0] - units), 1e-9)
    most = over[0] - 1 if over else units + AHEAD * (units - first[0])
    return min(max(units + int((room - tokens) / slope), units + 1), most)
