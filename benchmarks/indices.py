"""Sparse indices of a given density, made directly: what `attend` is timed on.

Nothing here ever grows with n * n: the block index takes one entry per kept tile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from benchmarks.problem import Problem
from sparsefill import AShape, Dense, Pattern, SparseIndex, estimate
from sparsefill.density import density
from sparsefill.tile import TILE

VERTICALS = 1000  # columns of a vertical-slash index: the default budget of MInference
SINK = 1024  # columns of an A-shape index: the budget of MInference's search space


def dense_index(problem: Problem, target: float = 1.0, seed: int = 0) -> SparseIndex:
    """Keep every causal cell, as the `Dense` pattern does."""
    return static_index(problem, Dense())


def static_index(problem: Problem, pattern: Pattern) -> SparseIndex:
    """Keep what a pattern that looks at shapes alone keeps."""
    q = torch.empty(1, problem.shape.h, problem.n, 1, device=problem.device)
    return estimate(pattern, q, q[:, : problem.shape.g], backend="torch")


def a_shape_index(problem: Problem, target: float, seed: int = 0) -> SparseIndex:
    """Keep the first 1,024 keys, or fewer on short prompts, and the nearest ones."""
    keys = keys_per_query(problem.n, target)
    sink = min(SINK, keys // 4)
    return static_index(problem, AShape(sink=sink, window=keys - sink))


def keys_per_query(n: int, target: float) -> int:
    """Return how many keys each query may keep, where it has so many.

    `c` keys of `n` keep `2 f - f^2` of all causal cells, with `f = c / n`.

    Example:
        >>> keys_per_query(131072, 0.05)
        3318
    """
    return max(1, int(n * (1 - (1 - target) ** 0.5)))


def block_index(problem: Problem, target: float, seed: int) -> SparseIndex:
    """Keep random aligned tiles per query head and row block, the diagonal one always."""
    return _blocks(problem, problem.shape.h, tile_counts(problem.n, target), seed)


def shared_block_index(problem: Problem, target: float, seed: int) -> SparseIndex:
    """Do the same with one index per KV head, which its query heads share."""
    return _blocks(problem, problem.shape.g, tile_counts(problem.n, target), seed)


def top_block_index(problem: Problem, blocks: int, seed: int) -> SparseIndex:
    """Keep the same number of random aligned tiles in every row block, where it has so many."""
    counts = [min(i, blocks - 1) for i in range(-(-problem.n // TILE))]
    return _blocks(problem, problem.shape.h, counts, seed)


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


def _blocks(problem: Problem, x: int, others: Sequence[int], seed: int) -> SparseIndex:
    """Choose tiles by stratified sampling: `c` of `i` tiles are one from each `c`-th part.

    That yields ascending tiles without sorting and without looking at those not chosen.

    Args:
        others: how many tiles each row block keeps beside the diagonal one.
    """
    device = problem.device
    generator = torch.Generator(device).manual_seed(seed)
    counts = torch.tensor(others, device=device)
    rows = len(counts)
    ends = counts.cumsum(0)
    diagonal = torch.arange(rows, device=device)
    row = torch.repeat_interleave(diagonal, counts)
    place = torch.arange(len(row), device=device)
    step = place - (ends - counts)[row]
    low = step * row // counts[row]
    high = (step + 1) * row // counts[row]
    total = len(row) + rows  # per head
    starts = torch.empty(x, total, dtype=torch.int32, device=device)
    for head in starts:  # one by one: at a million tokens each has millions of tiles
        draw = torch.rand(len(row), generator=generator, device=device)
        chosen = torch.minimum(low + (draw * (high - low)).long(), high - 1)
        head[place + row] = (chosen * TILE).int()
        head[ends + diagonal] = (diagonal * TILE).int()
    ptr = torch.nn.functional.pad(ends + diagonal + 1, (1, 0))
    first = torch.arange(x, device=device)[:, None] * total
    none = torch.zeros(1, x, 1, dtype=torch.int32, device=device)  # room for one entry at least
    return _index(
        problem,
        slash=none,
        columns=none,
        counts=(0, 0),
        row_ptr=(ptr + first).int()[None],
        tile_starts=starts.flatten(),
    )


def vertical_slash_index(problem: Problem, target: float, seed: int) -> SparseIndex:
    """Keep scattered columns and scattered slash tiles, the diagonal one always.

    There are 1,000 columns, or fewer where they would take more than half of the target;
    slash tiles take the rest, and a few more columns what is less than one slash tile.
    """
    n, h, device = problem.n, problem.shape.h, problem.device
    generator = torch.Generator(device).manual_seed(seed)
    slots = max(0, n // TILE - 1)  # after the tile of offset 0, at 64 * slot + a phase per head
    phase = torch.randint(0, TILE, (h, 1), generator=generator, device=device)
    slot_order = torch.rand(h, slots, generator=generator, device=device).argsort(1)
    column_order = torch.rand(h, n, generator=generator, device=device).argsort(1)

    def build(columns: int, slashes: int) -> SparseIndex:
        far = TILE + phase + TILE * slot_order[:, :slashes].sort(1).values
        slash = torch.cat([torch.zeros_like(phase), far], dim=1)
        first = column_order[:, : max(1, columns)].sort(1).values
        return _index(
            problem, slash=slash[None], columns=first[None], counts=(1 + slashes, columns)
        )

    def kept(columns: int, slashes: int) -> float:
        return float(density(build(columns, slashes)).mean())

    columns = min(VERTICALS, int(target * n / 2))  # a column keeps about 1 / n of the cells
    slashes = most(lambda slashes: kept(columns, slashes), 0, slots, target)
    columns = most(
        lambda columns: kept(columns, slashes), columns, min(n, columns + 4 * TILE), target
    )
    return build(columns, slashes)


def adjacent_index(problem: Problem, verticals: int, slashes: int, seed: int) -> SparseIndex:
    """Keep scattered columns and the nearest diagonals: the fewest tiles of a budget."""
    n, h = problem.n, problem.shape.h
    generator = torch.Generator(problem.device).manual_seed(seed)
    order = torch.rand(h, n, generator=generator, device=problem.device).argsort(1)
    columns = order[:, :verticals].sort(1).values
    tiles = torch.arange(0, min(n, slashes), TILE, device=problem.device).expand(h, -1)
    counts = tiles.shape[1], columns.shape[1]
    return _index(problem, slash=tiles[None], columns=columns[None], counts=counts)


def slash_index(problem: Problem, tiles: int, seed: int) -> SparseIndex:
    """Keep the nearest slash tile and scattered ones; no two heads of a group share any."""
    n, h, device = problem.n, problem.shape.h, problem.device
    generator = torch.Generator(device).manual_seed(seed)
    slots = -(-n // TILE) - 1  # beside the nearest one
    order = torch.rand(h, slots, generator=generator, device=device).argsort(1)
    slot = torch.nn.functional.pad(1 + order[:, : tiles - 1].sort(1).values, (1, 0))
    slash = TILE * slot + torch.arange(h, device=device)[:, None] % TILE
    none = torch.zeros(1, h, 1, dtype=torch.int32, device=device)
    return _index(problem, slash=slash[None], columns=none, counts=(slash.shape[1], 0))


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
    problem: Problem,
    *,
    slash: Int[Tensor, "1 x s"],
    columns: Int[Tensor, "1 x c"],
    counts: tuple[int, int],
    row_ptr: Int[Tensor, "1 x i_plus_1"] | None = None,
    tile_starts: Int[Tensor, " t"] | None = None,
) -> SparseIndex:
    """Assemble an index whose heads have the same number of slash tiles and of columns."""
    full = torch.ones(slash.shape[:2], dtype=torch.int32, device=problem.device)
    length = torch.full((1,), problem.n, dtype=torch.int32, device=problem.device)
    return SparseIndex(
        n=problem.n,
        m=problem.n,
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
    "a-shape": a_shape_index,
    "dense": dense_index,
}
