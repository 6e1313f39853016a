"""The candidates of a search: patterns of three families that cost the same in the kernel.

A *target* is what a block top-k head of a whole number of blocks reads, which no input can
change. The other families have lines, whose cost is known only after merging: one slash may
cost a whole tile, or nothing. They are therefore nudged, head by head and on the input
itself, until what the kernel reads is the target: first slashes, which come in tiles, then
verticals, which come in single keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sparsefill.estimate import estimate
from sparsefill.patterns import AShape, BlockTopK, Pattern, VerticalSlash
from sparsefill.tile import TILE

SINK = 16  # columns and distances that a vertical-slash candidate always keeps
WINDOW = 64
LEAST_BLOCKS = 3  # the first keys, the nearest ones, and one block of choice
PER_OCTAVE = 4  # numbers of lines whose cost is measured, between one and its double
STEP = 8  # numbers of verticals are multiples of this: fewer distinct patterns in a profile


@dataclass(frozen=True, kw_only=True)
class Seed:
    """A candidate before it is given a budget.

    Args:
        family: name of the pattern.
        columns: share of the budget that goes to single keys: sinks or verticals.
    """

    family: str
    columns: float = 0.0


# Jiang et al. 2024, Table 7, where a row reads 1,024 + 4,096 keys.
PAPER = (
    Seed(family=AShape.name, columns=1024 / 5120),
    *(Seed(family=VerticalSlash.name, columns=v / 5120) for v in (30, 100, 500, 3000)),
    Seed(family=BlockTopK.name),
)
# A column costs one key, a scattered slash a whole tile: more columns than the paper tries are
# often better. A few sinks do for local heads.
SEEDS = (
    *PAPER,
    Seed(family=AShape.name, columns=0.01),
    *(Seed(family=VerticalSlash.name, columns=share) for share in (0.3, 0.8)),
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What each head may cost.

    Args:
        keys: that all row blocks of a head read together, as `keys_read` counts them.
        tokens: length of the prompt.
    """

    keys: int
    tokens: int

    @classmethod
    def of_cost(cls, cost: float, tokens: int) -> Target:
        """Make a target of a share of what dense attention costs.

        Example:
            >>> Target.of_cost(0.3, 8192).blocks
            21
        """
        return cls(keys=round(cost * dense_keys(tokens)), tokens=tokens)

    def whole(self) -> Target:
        """Lower the target to what whole key blocks cost, so that every family can meet it.

        Example:
            >>> Target.of_cost(0.3, 8192).whole().blocks
            20
        """
        blocks = self.blocks
        if tile_keys(blocks, self.tokens) > self.keys:
            blocks = max(blocks - 1, min(LEAST_BLOCKS, row_blocks(self.tokens)))
        return replace(self, keys=tile_keys(blocks, self.tokens))

    @property
    def blocks(self) -> int:
        """Key blocks for every block of queries that cost the target or a little more."""
        most = row_blocks(self.tokens)
        enough = range(min(LEAST_BLOCKS, most), most + 1)
        return next((b for b in enough if tile_keys(b, self.tokens) >= self.keys), most)


def row_blocks(tokens: int) -> int:
    """Count the row blocks of a prompt."""
    return -(-tokens // TILE)


def dense_keys(tokens: int) -> int:
    """Count the keys that all row blocks of a dense head read."""
    return tile_keys(row_blocks(tokens), tokens)


def tile_keys(tiles: int, tokens: int) -> int:
    """Count the keys of heads whose row blocks read so many tiles, or as many as there are.

    Example:
        >>> tile_keys(2, 192)
        320
    """
    return TILE * int(np.minimum(np.arange(1, row_blocks(tokens) + 1), tiles).sum())


def sink_keys(sink: int, tiles: int, tokens: int) -> int:
    """Count the keys that all row blocks read of the first columns, beside their nearest tiles.

    Example:
        >>> sink_keys(100, 1, 192)
        164
    """
    below = np.arange(1, row_blocks(tokens) + 1) * TILE - TILE * tiles
    return int(np.minimum(below.clip(min=0), min(sink, tokens)).sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class LineCosts:
    """What growing numbers of lines cost heads on one input, after merging.

    Args:
        lines: numbers of verticals, and of slashes from `WINDOW` on.
        tiles: keys that the slashes' tiles cost each head.
        columns: keys that the verticals cost each head beside those tiles: what a tile covers
            is not read again.
    """

    lines: list[int]
    tiles: Float64[Tensor, "slashes h"]
    columns: Float64[Tensor, "slashes verticals h"]

    @classmethod
    def measure(
        cls,
        q: Float[Tensor, "1 h n d"],
        k: Float[Tensor, "1 g n d"],
        *,
        scale: float,
        softcap: float | None = None,
        backend: str = "auto",
    ) -> LineCosts:
        """Estimate vertical-slash indices of growing budgets and count what they read."""
        n = q.shape[2]
        octaves = np.arange(0, np.log2(max(n, SINK) / SINK), 1 / PER_OCTAVE)
        lines = sorted({min(n, STEP * round(SINK * 2**o / STEP)) for o in octaves} | {n})
        tiles, offsets = [], []
        level = torch.full((q.shape[1], n + 1), len(lines), device=q.device)  # of each key
        for place, count in reversed(list(enumerate(lines))):
            pattern = _lines(count, count)
            index = estimate(pattern, q, k, scale=scale, softcap=softcap, backend=backend)
            level.scatter_(1, index.sorted_columns()[0].long().clamp(max=n), place)
            alone = replace(index, column_counts=torch.zeros_like(index.column_counts))
            tiles.append(alone.keys_read()[0].double())
            offsets.append(index.sorted_slash_tiles()[0].long().contiguous())
        key = torch.arange(n, device=q.device).expand(q.shape[1], -1)
        end = TILE * row_blocks(n)
        columns = []
        for own in reversed(offsets):  # as `keys_read` counts: a tile covers a key once
            read = row_blocks(n) - key // TILE - torch.searchsorted(own, end - key)
            sums = torch.zeros(q.shape[1], len(lines) + 1, dtype=torch.float64, device=q.device)
            sums.scatter_add_(1, level[:, :n], read.double())
            columns.append(sums[:, :-1].cumsum(1).T)
        return cls(lines=lines, tiles=torch.stack(tiles[::-1]), columns=torch.stack(columns))

    def align(self, seed: Seed, target: Target) -> tuple[VerticalSlash, ...]:
        """Give each head as many lines as cost the target: slashes, then verticals."""
        wanted = max(float(SINK), seed.columns * TILE * target.blocks)
        heads = zip(self.tiles.T.tolist(), self.columns.permute(2, 0, 1).tolist(), strict=True)
        return tuple(self._align(tiles, columns, wanted, target) for tiles, columns in heads)

    def _align(
        self, tiles: list[float], columns: list[list[float]], wanted: float, target: Target
    ) -> VerticalSlash:
        place = 0
        for slashes, keys in enumerate(tiles):
            if keys + float(np.interp(wanted, self.lines, columns[slashes])) <= target.keys:
                place = slashes
        verticals = float(np.interp(target.keys - tiles[place], columns[place], self.lines))
        verticals = max(SINK, STEP * round(verticals / STEP))
        return _lines(min(verticals, target.tokens), self.lines[place])


def _lines(verticals: int, slashes: int) -> VerticalSlash:
    return VerticalSlash(
        verticals=verticals, slashes=max(slashes, WINDOW), sink=SINK, window=WINDOW
    )


def align_a_shape(seed: Seed, target: Target) -> AShape:
    """Give an A-shape whole tiles of window, and sinks up to the target."""
    n, most = target.tokens, row_blocks(target.tokens)
    sink = max(1, round(seed.columns * TILE * target.blocks))
    tiles = largest_within(
        lambda count: tile_keys(count, n) + sink_keys(sink, count, n), target.keys, 1, most
    )
    left = target.keys - tile_keys(tiles, n)
    sink = largest_within(lambda count: sink_keys(count, tiles, n), left, 0, n)
    return AShape(sink=sink, window=TILE * (tiles - 1) + 1)


def largest_within(cost: Callable[[int], int], bound: int, low: int, high: int) -> int:
    """Return the largest count whose cost is within a bound; the lowest if none is."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= bound else (low, middle - 1)
    return low


def patterns_of(seed: Seed, target: Target, lines: LineCosts) -> tuple[Pattern, ...]:
    """Give a seed the budget that costs the target, one pattern for each head of `lines`."""
    if seed.family == VerticalSlash.name:
        return lines.align(seed, target)
    heads = lines.tiles.shape[1]
    if seed.family == BlockTopK.name:
        return (BlockTopK(blocks=target.blocks),) * heads
    return (align_a_shape(seed, target),) * heads
