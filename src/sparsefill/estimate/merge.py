"""Put the indices of several pattern families back together, in head order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Int32
from torch import Tensor

from sparsefill.index import SparseIndex

Part = tuple[Tensor, SparseIndex]  # query heads, and their index


def no_cells(
    h: int, *, n: int, m: int, query_lengths: Int32[Tensor, " b"], key_lengths: Int32[Tensor, " b"]
) -> SparseIndex:
    """Return the index of `h` heads that keep nothing."""
    counts = query_lengths.new_zeros(len(query_lengths), h)
    return SparseIndex(
        n=n,
        m=m,
        query_lengths=query_lengths,
        key_lengths=key_lengths,
        slash_counts=counts,
        slash_tiles=counts[..., None],
        column_counts=counts,
        column_indices=counts[..., None],
    )


def merge_heads(parts: Sequence[Part], h: int) -> SparseIndex:
    """Join indices of disjoint heads into one index of `h` heads.

    Args:
        parts: the heads of each index, and the index; heads in none of them keep nothing.
    """
    like = parts[0][1]
    slash = torch.zeros(like.b, h, max(p.slash_tiles.shape[-1] for _, p in parts))
    columns = torch.zeros(like.b, h, max(p.column_indices.shape[-1] for _, p in parts))
    joined = replace(
        like,
        slash_tiles=slash.to(like.slash_tiles),
        slash_counts=like.slash_counts.new_zeros(like.b, h),
        column_indices=columns.to(like.column_indices),
        column_counts=like.column_counts.new_zeros(like.b, h),
        row_ptr=None,
        tile_starts=None,
    )
    for heads, part in parts:
        joined.slash_tiles[:, heads, : part.slash_tiles.shape[-1]] = part.slash_tiles
        joined.slash_counts[:, heads] = part.slash_counts
        joined.column_indices[:, heads, : part.column_indices.shape[-1]] = part.column_indices
        joined.column_counts[:, heads] = part.column_counts
    if all(part.row_ptr is None for _, part in parts):
        return joined
    row_ptr = like.slash_counts.new_zeros(like.b, h, like.row_blocks + 1)
    tile_starts: list[Tensor] = []
    packed = 0
    for heads, part in parts:
        if part.row_ptr is None or part.tile_starts is None:
            continue
        row_ptr[:, heads] = part.row_ptr + packed
        tile_starts.append(part.tile_starts)
        packed += len(part.tile_starts)
    return replace(joined, row_ptr=row_ptr, tile_starts=torch.cat(tile_starts))
