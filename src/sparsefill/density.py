"""How much of causal attention an index keeps, counted without expanding it.

Everything is a sum of one quantity: the causal cells of a strip of keys in a row block,
which is a difference of triangular numbers. Slash tiles repeat from row block to row
block, so each is counted in three parts (whole row blocks, the one that key 0 cuts, the
last one) whatever the length; a column meets each slash tile in at most one row block.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsefill import abi, native
from sparsefill.index import NEVER, SparseIndex
from sparsefill.tile import TILE

MAX_PAIRS = 2**22  # (column, slash tile) pairs looked at together: 32 MiB in int64


def density(index: SparseIndex) -> Float[Tensor, "b x"]:
    """Return the cells kept by each head ÷ the causal cells of its sequence.

    Whole tiles count, as the kernels compute them; cells of the future, below key 0 or
    named twice do not.

    Example:
        >>> mask = torch.tensor([[[[True, False], [False, True]]]])
        >>> from sparsefill import AShape, estimate
        >>> density(estimate(AShape(), torch.ones(1, 1, 9, 8), torch.ones(1, 1, 9, 8))).item()
        1.0
    """
    return count_cells(index) / causal_cells(index).clamp(min=1)[:, None]


def causal_cells(index: SparseIndex) -> Int64[Tensor, " b"]:
    """Count the cells that dense attention computes in each sequence."""
    start = (index.key_lengths - index.query_lengths).long()
    return _strip(torch.zeros_like(start), start + index.query_lengths, start, index.query_lengths)


def count_cells(index: SparseIndex) -> Int64[Tensor, "b x"]:
    """Count the cells that each head keeps, by compiled kernels where there are any."""
    index.check_lists()
    if index.device.type == "cpu" and native.library() is not None:
        return _compiled_cells(index.contiguous())
    kept = _slash_cells(index) + _column_cells(index)
    return kept if index.row_ptr is None else kept + _further_cells(index)


def _compiled_cells(index: SparseIndex) -> Int64[Tensor, "b x"]:
    """Walk the row blocks as attention does: faster than the closed form on a CPU."""
    layer = abi.Layer(
        threads=torch.get_num_threads(),
        b=index.b,
        h=index.x,
        g=index.x,
        d=8,  # no head is read
        n=index.n,
        m=index.m,
        query_lengths=abi.pointer(index.query_lengths),
        key_lengths=abi.pointer(index.key_lengths),
    )
    cells = torch.empty(index.b, index.x, dtype=torch.int64, device=index.device)
    abi.call("sparsefill_count_cells", layer, abi.index(**index.lists()), cells)
    return cells


def _strip(low: Tensor, high: Tensor, start: Tensor, rows: Tensor) -> Tensor:
    """Count the causal cells of keys `low..high-1` for `rows` queries from `start` on."""
    return _above(low, start, rows) - _above(high, start, rows)


def _above(key: Tensor, start: Tensor, rows: Tensor) -> Tensor:
    """Count, over the queries, the keys from `key` on that each may see."""
    return _triangle(start + rows - key) - _triangle(start - key)


def _triangle(size: Tensor) -> Tensor:
    size = size.long().clamp(min=0)
    return size * (size + 1) // 2


def _rows(index: SparseIndex, row_block: Tensor, queries: Tensor) -> Tensor:
    """Count the queries of a row block; 0 if the sequence has no such row block."""
    return (queries - row_block * TILE).clamp(0, TILE) * (row_block >= 0)


def _slash_cells(index: SparseIndex) -> Int64[Tensor, "b x"]:
    tile = index.sorted_slash_tiles().long()
    queries = index.query_lengths.long()[:, None, None]
    shift = index.key_lengths.long()[:, None, None] - queries
    last = (queries - 1).div(TILE, rounding_mode="floor")
    exists_from = (tile - shift).div(TILE, rounding_mode="floor").clamp(min=0)
    whole_from = (-(shift - tile).div(TILE, rounding_mode="floor")).clamp(min=0)

    def cells(row_block: Tensor) -> Tensor:
        start = row_block * TILE + shift
        low, high = (start - tile).clamp(min=0), (start + TILE - tile).clamp(min=0)
        return _strip(low, high, start, _rows(index, row_block, queries))

    whole = cells(whole_from.clamp(max=NEVER // TILE)) * (last - whole_from).clamp(min=0)
    cut = cells(exists_from) * ((exists_from < whole_from) & (exists_from < last))
    final = cells(last) * (exists_from <= last)
    kept = torch.where(whole_from < last, whole, 0) + cut + final
    return (kept * (tile < NEVER)).sum(-1)


def _column_cells(index: SparseIndex) -> Int64[Tensor, "b x"]:
    column = index.sorted_columns().long()
    tile = index.sorted_slash_tiles().long()
    queries = index.query_lengths.long()[:, None, None]
    keys = index.key_lengths.long()[:, None, None]
    shift = keys - queries
    kept = (keys - torch.maximum(column, shift)).clamp(min=0).sum(-1)
    width = max(1, MAX_PAIRS // max(1, tile.numel()))
    for first in range(0, column.shape[-1], width):
        own = column[..., first : first + width, None]  # (b, x, c, 1) against (b, x, 1, s)
        row_block = (tile[:, :, None] + own - shift[..., None]).div(TILE, rounding_mode="floor")
        start = row_block * TILE + shift[..., None]
        rows = _rows(index, row_block, queries[..., None])
        covered = (start + rows - torch.maximum(own, start)).clamp(min=0)
        covered *= (own < NEVER) & (tile[:, :, None] < NEVER)
        kept -= covered.sum((-1, -2))
    return kept


def _further_cells(index: SparseIndex) -> Int64[Tensor, "b x"]:
    """Count the per-row-block tiles' cells, less those that a column names as well."""
    assert index.row_ptr is not None
    assert index.tile_starts is not None
    counts = index.row_ptr.diff().long()
    if index.tile_starts.numel() == 0:
        return counts.sum(-1)
    flat = counts.flatten()
    item = torch.repeat_interleave(torch.arange(len(flat), device=flat.device), flat)
    step = torch.arange(len(item), device=flat.device) - (flat.cumsum(0) - flat)[item]
    tile = index.tile_starts[index.row_ptr[..., :-1].flatten()[item] + step].long()
    head = item // index.row_blocks  # over (b, x)
    sequence = head // index.x
    queries = index.query_lengths.long()[sequence]
    start = (item % index.row_blocks) * TILE + index.key_lengths.long()[sequence] - queries
    rows = _rows(index, item % index.row_blocks, queries)
    kept = _strip(tile.clamp(min=0), (tile + TILE).clamp(min=0), start, rows)

    columns = index.sorted_columns().long().flatten(0, 1)
    heads = torch.arange(len(columns), device=flat.device)
    ordered = (columns + heads[:, None] * 2 * NEVER).flatten()
    sums = torch.nn.functional.pad((columns * (columns < NEVER)).flatten().cumsum(0), (1, 0))

    def place(key: Tensor) -> Tensor:
        return torch.searchsorted(ordered, key.clamp(min=0) + head * 2 * NEVER)

    end = start + rows
    low, high = place(tile), place(torch.minimum(tile + TILE, end))
    middle = place(torch.minimum(torch.maximum(tile, start), end)).clamp(max=high).clamp(min=low)
    kept -= (middle - low) * rows + (high - middle) * end - (sums[high] - sums[middle])
    total = flat.new_zeros(index.b * index.x).index_add(0, head, kept)
    return total.view(index.b, index.x)
