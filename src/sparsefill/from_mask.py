"""Find the index whose cells are exactly those of a boolean mask.

A companion of `SparseIndex.from_mask`, for tests, drawings and hand-made patterns; the
estimates never go through a mask.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from sparsefill.errors import ShapeError
from sparsefill.index import SparseIndex
from sparsefill.tile import TILE

BoolArray = NDArray[np.bool_]


def index_of_mask(
    mask: Bool[Tensor, "b x n m"],
    *,
    query_lengths: Int[Tensor, " b"] | None,
    key_lengths: Int[Tensor, " b"] | None,
) -> SparseIndex:
    """Build the index of exactly the True cells; see `SparseIndex.from_mask`."""
    b, x, n, m = mask.shape
    full = torch.ones(b, dtype=torch.int32)
    queries = full * n if query_lengths is None else query_lengths.cpu().int()
    keys = full * m if key_lengths is None else key_lengths.cpu().int()
    columns: list[list[int]] = []
    row_ptr, tiles = [], []
    for s in range(b):
        for head in range(x):
            n_s, m_s = int(queries[s]), int(keys[s])
            cells = mask[s, head].cpu().numpy()
            if cells[n_s:].any() or cells[:, m_s:].any():
                raise ShapeError(f"mask keeps cells outside the {n_s} queries and {m_s} keys")
            head_columns, head_tiles = _cover_head(cells[:n_s], shift=m_s - n_s)
            columns.append(head_columns)
            head_tiles += [[] for _ in range(-(-n // TILE) - len(head_tiles))]
            counts = [0, *map(len, head_tiles)]
            row_ptr.append(len(tiles) + np.cumsum(counts))
            tiles += [start for row in head_tiles for start in row]
    widest = max(map(len, columns))
    padded = [row + [0] * (widest - len(row)) for row in columns]
    return SparseIndex(
        n=n,
        m=m,
        query_lengths=queries.to(mask.device),
        key_lengths=keys.to(mask.device),
        slash_counts=torch.zeros(b, x, dtype=torch.int32, device=mask.device),
        slash_tiles=torch.zeros(b, x, 0, dtype=torch.int32, device=mask.device),
        column_counts=_int32([len(row) for row in columns], mask.device).view(b, x),
        column_indices=_int32(padded, mask.device).view(b, x, widest),
        row_ptr=_int32(np.array(row_ptr), mask.device).view(b, x, -1),
        tile_starts=_int32(tiles, mask.device),
    )


def _int32(values: object, device: torch.device) -> Tensor:
    return torch.as_tensor(values, dtype=torch.int32, device=device)


def _cover_head(cells: BoolArray, *, shift: int) -> tuple[list[int], list[list[int]]]:
    """Return the columns of a head and the tile starts of each of its row blocks.

    Args:
        cells: kept cells, shape (queries, m).
        shift: key position of query 0.
    """
    m = cells.shape[1]
    kept_by_block = []
    common = np.ones(m, dtype=bool)  # keys that every row block that sees them keeps
    for first in range(0, len(cells), TILE):
        own = cells[first : first + TILE]
        kept = own[-1]  # the last query of a row block sees the most
        position = shift + first + np.arange(len(own))
        causal = np.arange(m) <= position[:, None]
        if not np.array_equal(own, kept & causal):
            raise ShapeError(
                f"queries {first}..{first + len(own) - 1} keep different keys (beyond causality);"
                f" an index keeps the same keys for each {TILE} queries"
            )
        seen = np.arange(m) <= position[-1]
        common &= kept | ~seen
        kept_by_block.append(kept[: max(0, position[-1] + 1)])
    columns: set[int] = set()
    tiles = []
    for i, kept in enumerate(kept_by_block):
        starts, singles = _cover_row_block(kept, common, i)
        tiles.append(starts)
        columns |= singles
    return sorted(columns), tiles


def _cover_row_block(kept: BoolArray, common: BoolArray, i: int) -> tuple[list[int], set[int]]:
    """Cover each run of kept keys by whole tiles and, where allowed, single columns."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], kept, [False]]).astype(np.int8)))
    starts: list[int] = []
    singles: set[int] = set()
    for first, end in edges.reshape(-1, 2).tolist():
        # A tile may reach below key 0, and beyond what its last query sees: those cells
        # do not exist, so they are free.
        low = first - TILE + 1 if first == 0 else first
        high = end + TILE - 1 if end == len(kept) else end
        may_skip = [key < 0 or key >= end or bool(common[key]) for key in range(low, high)]
        coverable = [False] * (high - low) + [True]  # coverable[k]: can keys from low + k on be?
        for k in range(high - low - 1, -1, -1):
            tile_fits = k + TILE <= high - low and coverable[k + TILE]
            coverable[k] = tile_fits or (may_skip[k] and coverable[k + 1])
        if not coverable[0]:
            raise ShapeError(
                f"row block {i} keeps keys {first}..{end - 1}, which whole {TILE}-key tiles and"
                " columns kept by every row block cannot cover; widen the mask to tiles"
            )
        k = 0
        while k < high - low:
            free = low + k < 0 or low + k >= end
            tile_fits = k + TILE <= high - low and coverable[k + TILE]
            if tile_fits and not (free and coverable[k + 1]):
                starts.append(low + k)
                k += TILE
            else:
                if not free:
                    singles.add(low + k)
                k += 1
    return starts, singles
