"""Which budget gives a pattern the density that was asked for, on given inputs."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.indices import most
from benchmarks.kept import mean_density
from benchmarks.problem import Qkv
from sparsefill import BlockTopK, Pattern, VerticalSlash, estimate
from sparsefill.errors import InputError
from sparsefill.patterns import parse_pattern
from sparsefill.tile import TILE

SEARCHED = ("vertical-slash", "block-topk")  # families whose budget is searched


def pattern_for(text: str, target: float | None, qkv: Qkv) -> Pattern:
    """Return the pattern that was typed, its budget searched if it names none.

    Columns and diagonals first get the same budget. A scattered diagonal costs a whole
    tile per row block, so what then is left of a density goes to columns.
    """
    if target is None:
        return parse_pattern(text)

    def kept(pattern: Pattern) -> float:
        return mean_density(estimate(pattern, qkv.q, qkv.k))

    m = qkv.k.shape[2]
    if text == "block-topk":
        blocks = _largest(lambda budget: kept(BlockTopK(blocks=budget)), 1, -(-m // TILE), target)
        return BlockTopK(blocks=blocks)
    lines = _largest(lambda budget: kept(_lines(budget, budget)), 1, m, target)
    return _lines(_largest(lambda budget: kept(_lines(budget, lines)), lines, m, target), lines)


def _lines(verticals: int, slashes: int) -> VerticalSlash:
    """Let the forced lines stay within the budget."""
    return VerticalSlash(
        verticals=verticals,
        slashes=slashes,
        sink=min(verticals, VerticalSlash.sink),
        window=min(slashes, VerticalSlash.window),
    )


def _largest(kept: Callable[[int], float], low: int, high: int, target: float) -> int:
    """Find the largest budget within a density, never trying one far beyond it."""
    reach = low
    while reach < high and kept(reach) <= target:
        low, reach = reach, min(2 * reach, high)
    return most(kept, low, reach, target)


def targets_of(text: str, densities: list[float]) -> list[float | None]:
    """Return the densities to search for, or None for a pattern with a budget of its own.

    Raises:
        InputError: there is no such pattern.
    """
    if text in SEARCHED:
        return list(densities)
    if type(parse_pattern(text)).name in SEARCHED or ":" in text:
        return [None]
    raise InputError(
        f"--pattern must be {' or '.join(SEARCHED)}, or a pattern with its budget such as"
        f" a-shape:sink=64,window=1024, got {text!r}"
    )
