"""How much filler a prompt has room for: the search that every generator shares."""

from __future__ import annotations

from collections.abc import Callable

from sparsefill.errors import InputError


def fit_units(tokens_of: Callable[[int], int], room: int, *, least: int = 0) -> int:
    """Return the largest number of units whose prompt has at most `room` tokens.

    Tokens grow nearly linearly with units: guesses double until one does not fit, and are then
    drawn through what fits and what does not. A prompt of a million tokens takes the work of
    five such prompts, where bisection from the first guess would take twenty.

    Args:
        tokens_of: tokens of a prompt with so many units; should not fall as they grow.
        room: tokens that there are.
        least: units below which there is no sample.

    Raises:
        InputError: not even the least fits.

    Example:
        >>> fit_units(lambda units: 20 + 7 * units, 1000)
        140
    """
    fits, fitting = least, tokens_of(least)
    if fitting > room:
        raise InputError(
            f"the smallest prompt of this task has {fitting} tokens, with room for {room};"
            " pass a larger length"
        )
    over, beyond = None, 0  # what does not fit, and its tokens
    guess = least + 1
    while over is None or over - fits > 1:
        tokens = tokens_of(guess)
        if tokens > room:
            over, beyond = guess, tokens
        else:
            fits, fitting = guess, tokens
        guess = _between(fits, fitting, over, beyond, room, least)
    return fits


def _between(fits: int, fitting: int, over: int | None, beyond: int, room: int, least: int) -> int:
    """Guess where `room` is met, strictly between what fits and what does not."""
    if over is None:
        return max(2 * fits, least + 2)
    slope = max((beyond - fitting) / (over - fits), 1e-9)
    guess = fits + int((room - fitting) / slope)
    return min(max(guess, fits + 1), over - 1)
