"""When sparse attention pays: a cost model in units of dense work.

One unit is what the best dense attention of a backend takes for 64 queries of one head
and 64 keys. The constants are ratios of measured times, so that they carry over between
machines far better than times would; `python -m benchmarks.run calibrate` measures them. How
slashes cluster cannot be known beforehand: on inputs without any structure vertical-slash
may take up to 1.2 times as long as dense attention where it is predicted to win.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from sparsefill.patterns import (
    AShape,
    BlockTopK,
    Dense,
    FixedSlash,
    InfLLM,
    Interleaved,
    Pattern,
    TriShape,
    VerticalSlash,
)
from sparsefill.tile import TILE

# Units of a tile that InfLLM scores by torch operations: a probe tile of the torch backend, times
# what torch's dense attention takes of the compiled one. Less where dense is torch's, or on a GPU.
SCORED_TILE = 12.0
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


# cpu, torch: medians of bf16 and fp32, 9 query heads of 64 on 3 KV heads, Zen 5, 2 threads.
# triton: an estimate, for no GPU has run it; 64 rows reach half of the best dense rate, launches
# of a layer of 32 heads take 150 us, a unit is 3.5 ns (H100), means are as fast as memory.
COSTS = {
    "cpu": Costs(
        tile=1.0,
        row_block=1.3,
        probe_tile=0.95,
        pooled_pair=0.0005,
        pooled_row=0.24,
        head=60.0,
    ),
    "triton": Costs(
        tile=2.0,
        row_block=2.0,
        probe_tile=3.0,
        pooled_pair=0.003,
        pooled_row=1.2,
        head=1350.0,
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


@functools.lru_cache(maxsize=4096)
def dense_cost(n: int, m: int) -> float:
    """Count the tiles that `n` queries after `m - n` cached keys meet, one head."""
    return float(_tiles_there(n, m).sum())


def sparse_cost(pattern: Pattern, n: int, m: int, costs: Costs) -> float:
    """Predict what estimating and attending one head costs, before looking at any input."""
    if pattern == Dense():
        return dense_cost(n, m)
    if isinstance(pattern, Interleaved):
        return _interleaved_cost(pattern, n, m, costs)
    there = _tiles_there(n, m)
    tiles = float(np.minimum(_kept_tiles(pattern, there, m), there).sum())
    estimate = 0.0
    if isinstance(pattern, (VerticalSlash, FixedSlash)):
        estimate = costs.probe_tile * -(-m // TILE) * -(-min(pattern.probe, n) // TILE)
    elif isinstance(pattern, BlockTopK):
        rows = -(-n // pattern.block) + -(-m // pattern.block)
        pairs = dense_cost(n, m) * (TILE / pattern.block) ** 2
        estimate = costs.pooled_row * rows * pattern.block / TILE + costs.pooled_pair * pairs
    elif isinstance(pattern, InfLLM):
        scored = float(np.minimum(there, _window_tiles(pattern.window)).sum())
        scored += min(n, pattern.window) * (m - n) / TILE**2 if m > n else 0
        estimate = SCORED_TILE * scored / pattern.every + costs.pooled_row * n / TILE
    return costs.head + costs.row_block * len(there) + costs.tile * tiles + estimate


def _interleaved_cost(pattern: Interleaved, n: int, m: int, costs: Costs) -> float:
    """Predict four A-shapes on half of the queries and half of the keys, and their merging."""
    there = _tiles_there(-(-n // 2), -(-m // 2))
    tiles = 0.0
    for window in ((pattern.even + 1) // 2, pattern.odd // 2):
        kept = pattern.sink / 2 / TILE + (_window_tiles(window) if window else 0)
        tiles += 2 * float(np.minimum(there, kept).sum())
    # merging reads and writes the outputs some six times, as averaging reads rows once
    merging = 6 * costs.pooled_row * n / TILE
    return costs.head + 4 * costs.row_block * len(there) + costs.tile * tiles + merging


def dense_where_cheaper(
    patterns: tuple[Pattern, ...], n: int, m: int, backend: str
) -> tuple[Pattern, ...]:
    """Replace each head's pattern by `Dense` where that is predicted to be faster.

    A backend without measured costs (the oracle) computes what it is given.

    Example:
        >>> dense_where_cheaper((VerticalSlash(verticals=500, slashes=200),), 256, 256, "cpu")
        (Dense(),)
    """
    name = backend.partition("-")[0]
    if name not in COSTS:
        return patterns
    return tuple(p if _pays(p, n, m, name) else Dense() for p in patterns)


@functools.lru_cache(maxsize=65536)
def _pays(pattern: Pattern, n: int, m: int, backend: str) -> bool:
    """Tell whether a pattern is predicted to beat dense attention."""
    return sparse_cost(pattern, n, m, COSTS[backend]) < dense_cost(n, m)


def break_even(pattern: Pattern, backend: str) -> int | None:
    """Return the prompt length from which sparse is predicted to beat dense, to 64 tokens.

    None if that is beyond four million tokens.

    Example:
        >>> break_even(Dense(), "cpu") is None
        True
    """
    low, high = 1, 2**16  # row blocks
    if not _pays(pattern, high * TILE, high * TILE, backend):
        return None
    while low < high:
        middle = (low + high) // 2
        if _pays(pattern, middle * TILE, middle * TILE, backend):
            high = middle
        else:
            low = middle + 1
    return low * TILE


def _tiles_there(n: int, m: int) -> np.ndarray:
    """Count the tiles that each row block could read."""
    ends = np.arange(1, -(-n // TILE) + 1) * TILE + m - n
    return np.maximum(0, -(-np.minimum(ends, m) // TILE))


def _kept_tiles(pattern: Pattern, there: np.ndarray, m: int) -> np.ndarray:
    """Predict the tiles that each row block reads.

    Args:
        there: tiles that each row block could read.
        m: keys of the whole sequence.
    """
    if isinstance(pattern, (AShape, TriShape)):
        kept = np.full(len(there), pattern.sink / TILE + _window_tiles(pattern.window))
        if isinstance(pattern, TriShape):
            kept[-pattern.last // TILE :] = m
        return kept
    if isinstance(pattern, VerticalSlash):
        # Lines spread over all keys; a row block meets those that it has reached, and a
        # column inside a kept tile costs nothing.
        reached = np.minimum(1.0, there * TILE / m)
        window = min(pattern.window, pattern.slashes)
        scattered = (pattern.slashes - window) / SLASHES_PER_TILE * reached
        slashes = np.minimum(there, _window_tiles(window) + scattered)
        return _with_columns(pattern, slashes, there, m)
    if isinstance(pattern, FixedSlash):
        slashes = np.searchsorted(_tiles_of(pattern.offsets), there * TILE)
        return _with_columns(pattern, slashes, there, m)
    if isinstance(pattern, InfLLM):
        keys = pattern.sink + pattern.blocks * pattern.block
        return np.full(len(there), keys / TILE + _window_tiles(pattern.window))
    assert isinstance(pattern, BlockTopK)
    return np.full(len(there), pattern.blocks * pattern.block / TILE)


def _with_columns(
    pattern: VerticalSlash | FixedSlash, slashes: np.ndarray, there: np.ndarray, m: int
) -> np.ndarray:
    """Add the columns that a row block has reached and that no tile covers."""
    columns = max(pattern.verticals, pattern.sink) / TILE * np.minimum(1.0, there * TILE / m)
    return slashes + columns * (1 - slashes / np.maximum(there, 1))


@functools.lru_cache(maxsize=4096)
def _tiles_of(offsets: tuple[int, ...]) -> np.ndarray:
    """List the offsets of the tiles that slashes merge to, as `merge_slashes` merges them."""
    tiles: list[int] = []
    for offset in offsets:
        if not tiles or offset > tiles[-1] + TILE:
            tiles.append(offset)
        elif offset > tiles[-1]:
            tiles.append(tiles[-1] + TILE)
    return np.array(tiles)


def _window_tiles(window: int) -> int:
    return -(-(window + TILE - 1) // TILE)
