"""When sparse attention pays: a cost model in units of dense work.

One unit is what the best dense attention of a backend takes for 64 queries of one head
and 64 keys. The constants are ratios of measured times, so that they carry over between
machines far better than times would; `python -m benchmarks.run calibrate` measures them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from sparsefill.patterns import (
    AShape,
    BlockTopK,
    Dense,
    Pattern,
    TriShape,
    VerticalSlash,
)
from sparsefill.tile import TILE

SLASHES_PER_TILE = 21.0  # kept slashes that share a tile: SmolLM2-135M, 8K tokens of a novel


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a backend's stages cost, in units.

    Args:
        tile: attending one tile of a row block.
        row_block: attending a row block, beside its tiles.
        probe_tile: scoring one tile of keys against 64 probe queries.
        pooled_pair: scoring and ranking one pair of pooled blocks.
        pooled_row: averaging one block of rows.
        head: everything that each sparse head costs once a call.
    """

    tile: float
    row_block: float
    probe_tile: float
    pooled_pair: float
    pooled_row: float
    head: float


COSTS = {  # medians of bf16 and fp32, 9 query heads of 64 on 3 KV heads, Zen 5, 2 threads
    "cpu": Costs(
        tile=1.06,
        row_block=2.0,
        probe_tile=1.1,
        pooled_pair=0.0005,
        pooled_row=0.23,
        head=54.0,
    ),
    "torch": Costs(
        tile=2.1,
        row_block=2.2,
        probe_tile=4.0,
        pooled_pair=0.006,
        pooled_row=0.08,
        head=22.0,
    ),
}


def dense_cost(n: int, m: int) -> float:
    """Count the tiles that `n` queries after `m - n` cached keys meet, one head."""
    return float(sum(_tiles(end, m) for end in _row_block_ends(n, m)))


def sparse_cost(pattern: Pattern, n: int, m: int, costs: Costs) -> float:
    """Predict what estimating and attending one head costs, before looking at any input."""
    if pattern == Dense():
        return dense_cost(n, m)
    ends = _row_block_ends(n, m)
    full = [_tiles(end, m) for end in ends]
    kept = (_kept_tiles(pattern, len(ends) - i, there, m) for i, there in enumerate(full))
    tiles = sum(min(own, there) for own, there in zip(kept, full, strict=True))
    estimate = 0.0
    if isinstance(pattern, VerticalSlash):
        estimate = costs.probe_tile * -(-m // TILE) * -(-min(pattern.probe, n) // TILE)
    elif isinstance(pattern, BlockTopK):
        rows = -(-n // pattern.block) + -(-m // pattern.block)
        pairs = sum(-(-min(end, m) // pattern.block) for end in ends) * TILE / pattern.block
        estimate = costs.pooled_row * rows * pattern.block / TILE + costs.pooled_pair * pairs
    return costs.head + costs.row_block * len(ends) + costs.tile * tiles + estimate


@functools.lru_cache(maxsize=1024)
def dense_where_cheaper(
    patterns: tuple[Pattern, ...], n: int, m: int, backend: str
) -> tuple[Pattern, ...]:
    """Replace each head's pattern by `Dense` where that is predicted to be faster.

    A backend without measured costs (the oracle) computes what it is given.

    Example:
        >>> dense_where_cheaper((VerticalSlash(verticals=500, slashes=200),), 256, 256, "cpu")
        (Dense(),)
    """
    costs = COSTS.get(backend.partition("-")[0])
    if costs is None:
        return patterns
    dense = dense_cost(n, m)
    return tuple(p if sparse_cost(p, n, m, costs) < dense else Dense() for p in patterns)


def break_even(pattern: Pattern, backend: str) -> int | None:
    """Return the prompt length from which sparse is predicted to beat dense, to 64 tokens.

    None if that is beyond four million tokens.

    Example:
        >>> break_even(Dense(), "cpu") is None
        True
    """
    low, high = 1, 2**16
    if dense_where_cheaper((pattern,), high * TILE, high * TILE, backend) == (Dense(),):
        return None
    while low < high:  # the first row block count at which sparse is cheaper
        middle = (low + high) // 2
        length = middle * TILE
        if dense_where_cheaper((pattern,), length, length, backend) == (Dense(),):
            low = middle + 1
        else:
            high = middle
    return low * TILE


def _row_block_ends(n: int, m: int) -> range:
    """Return the nominal exclusive end of each row block, in key positions."""
    return range(TILE + m - n, TILE * (-(-n // TILE) + 1) + m - n, TILE)


def _tiles(end: int, m: int) -> int:
    return max(0, -(-min(end, m) // TILE))


def _kept_tiles(pattern: Pattern, to_go: int, there: int, m: int) -> float:
    """Predict the tiles that a row block reads.

    Args:
        to_go: row blocks from this one to the last, itself included.
        there: tiles that this row block could read.
        m: keys of the whole sequence.
    """
    if isinstance(pattern, (AShape, TriShape)):
        if isinstance(pattern, TriShape) and to_go <= -(-pattern.last // TILE):
            return float(there)
        return pattern.sink / TILE + _window_tiles(pattern.window)
    if isinstance(pattern, VerticalSlash):
        # Lines spread over all keys; a row block meets those that it has reached, and a
        # column inside a kept tile costs nothing.
        reached = min(1.0, there * TILE / m)
        window = min(pattern.window, pattern.slashes)
        scattered = (pattern.slashes - window) / SLASHES_PER_TILE * reached
        slashes = min(there, _window_tiles(window) + scattered)
        columns = max(pattern.verticals, pattern.sink) / TILE * reached
        return slashes + columns * (1 - slashes / max(there, 1))
    assert isinstance(pattern, BlockTopK)
    return pattern.blocks * pattern.block / TILE


def _window_tiles(window: int) -> int:
    return -(-(window + TILE - 1) // TILE)
