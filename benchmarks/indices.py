"""Sparse indices of a given density, made directly: what `attend` is timed on.

Nothing here ever grows with n * n: the block index takes one entry per kept tile.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from benchmarks.problem import Problem
from sparsefill import Dense, SparseIndex, estimate
from sparsefill.density import density
from sparsefill.tile import TILE

VERTICALS = 1000  # columns of a vertical-slash index: the default budget of MInference


def dense_index(problem: Problem, target: float = 1.0, seed: int = 0) -> SparseIndex:
    """Keep every causal cell, as the `Dense` pattern does."""
    q = torch.empty(1, problem.shape.h, problem.n, 1)  # a static pattern looks at shapes alone
    return estimate(Dense(), q, q[:, : problem.shape.g])


def block_index(problem: Problem, target: float, seed: int) -> SparseIndex:
    """Keep random aligned tiles per query head and row block, the diagonal one always."""
    return _blocks(problem.n, problem.shape.h, target, seed)


def shared_block_index(problem: Problem, target: float, seed: int) -> SparseIndex:
    """Do the same with one index per KV head, which its query heads share."""
    return _blocks(problem.n, problem.shape.g, target, seed)


def tile_counts(n: int, target: float) -> list[int]:
    """Count the tiles beside the diagonal one that each row block keeps.

    What a row block keeps too many or too few (it must keep its diagonal tile, and only
    whole tiles) the next ones make good, so the whole comes within one tile's cells.
    """
    counts, owed = [], 0.0
    for i in range(-(-n // TILE)):
        queries = min(TILE, n - i * TILE)
        diagonal, tile = queries * (queries + 1) // 2, queries * TILE
        owed += target * (tile * i + diagonal) - diagonal
        counts.append(min(i, max(0, round(owed / tile))))
        owed -= counts[-1] * tile
    return counts


def _blocks(n: int, x: int, target: float, seed: int) -> SparseIndex:
    """Choose tiles by stratified sampling: `c` of `i` tiles are one from each `c`-th part.

    That yields ascending tiles without sorting and without looking at those not chosen.
    """
    counts = torch.tensor(tile_counts(n, target))
    rows = len(counts)
    ends = counts.cumsum(0)
    row = torch.repeat_interleave(torch.arange(rows), counts)
    step = torch.arange(len(row)) - (ends - counts)[row]
    low = step * row // counts[row]
    high = (step + 1) * row // counts[row]
    draw = torch.rand(x, len(row), generator=torch.Generator().manual_seed(seed))
    chosen = torch.minimum(low + (draw * (high - low)).long(), high - 1)
    diagonal = torch.arange(rows)
    total = len(row) + rows  # per head
    starts = torch.empty(x, total, dtype=torch.int32)
    starts[:, torch.arange(len(row)) + row] = (chosen * TILE).int()
    starts[:, ends + diagonal] = (diagonal * TILE).int()
    ptr = torch.nn.functional.pad(ends + diagonal + 1, (1, 0))
    none = torch.zeros(1, x, 1, dtype=torch.int32)  # lists have room for one entry at least
    return _index(
        n,
        slash=none,
        columns=none,
        counts=(0, 0),
        row_ptr=(ptr + torch.arange(x)[:, None] * total).int()[None],
        tile_starts=starts.flatten(),
    )


def vertical_slash_index(problem: Problem, target: float, seed: int) -> SparseIndex:
    """Keep scattered columns and scattered slash tiles, the diagonal one always.

    There are 1,000 columns, or fewer where they would take more than half of the target;
    slash tiles take the rest, and a few more columns what is less than one slash tile.
    """
    n, h = problem.n, problem.shape.h
    generator = torch.Generator().manual_seed(seed)
    slots = max(0, n // TILE - 1)  # after the tile of offset 0, at 64 * slot + a phase per head
    phase = torch.randint(0, TILE, (h, 1), generator=generator)
    slot_order = torch.rand(h, slots, generator=generator).argsort(1)
    column_order = torch.rand(h, n, generator=generator).argsort(1)

    def build(columns: int, slashes: int) -> SparseIndex:
        far = TILE + phase + TILE * slot_order[:, :slashes].sort(1).values
        slash = torch.cat([torch.zeros_like(phase), far], dim=1)
        first = column_order[:, : max(1, columns)].sort(1).values
        return _index(n, slash=slash[None], columns=first[None], counts=(1 + slashes, columns))

    def kept(columns: int, slashes: int) -> float:
        return float(density(build(columns, slashes)).mean())

    columns = min(VERTICALS, int(target * n / 2))  # a column keeps about 1 / n of the cells
    slashes = most(lambda slashes: kept(columns, slashes), 0, slots, target)
    columns = most(
        lambda columns: kept(columns, slashes), columns, min(n, columns + 4 * TILE), target
    )
    return build(columns, slashes)


def slash_index(problem: Problem, tiles: int, seed: int) -> SparseIndex:
    """Keep the nearest slash tile and scattered ones; no two heads of a group share any."""
    n, h = problem.n, problem.shape.h
    generator = torch.Generator().manual_seed(seed)
    slots = -(-n // TILE) - 1  # beside the nearest one
    order = torch.rand(h, slots, generator=generator).argsort(1)
    slot = torch.nn.functional.pad(1 + order[:, : tiles - 1].sort(1).values, (1, 0))
    slash = TILE * slot + torch.arange(h)[:, None] % TILE
    none = torch.zeros(1, h, 1, dtype=torch.int32)
    return _index(n, slash=slash[None], columns=none, counts=(slash.shape[1], 0))


def most(grows: Callable[[int], float], low: int, high: int, limit: float) -> int:
    """Find the largest number whose value is within a limit, or `low` if none is.

    Example:
        >>> most(lambda x: x * x, 0, 100, 50)
        7
    """
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if grows(middle) <= limit else (low, middle - 1)
    return low


def _index(
    n: int,
    *,
    slash: Int[Tensor, "1 x s"],
    columns: Int[Tensor, "1 x c"],
    counts: tuple[int, int],
    row_ptr: Int[Tensor, "1 x i_plus_1"] | None = None,
    tile_starts: Int[Tensor, " t"] | None = None,
) -> SparseIndex:
    """Assemble an index whose heads have the same number of slash tiles and of columns."""
    full = torch.ones(slash.shape[:2], dtype=torch.int32)
    length = torch.full((1,), n, dtype=torch.int32)
    return SparseIndex(
        n=n,
        m=n,
        query_lengths=length,
        key_lengths=length,
        slash_counts=full * counts[0],
        slash_tiles=slash.int(),
        column_counts=full * counts[1],
        column_indices=columns.int(),
        row_ptr=row_ptr,
        tile_starts=tile_starts,
    )


PATTERNS: dict[str, Callable[[Problem, float, int], SparseIndex]] = {
    "block": block_index,
    "shared-block": shared_block_index,
    "vertical-slash": vertical_slash_index,
    "dense": dense_index,
}
