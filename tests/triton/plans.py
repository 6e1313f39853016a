"""What the plan of an index holds, found without any kernel."""

from __future__ import annotations

import torch

from sparsefill import SparseIndex
from sparsefill.kernels.triton import Plan

WORD = 32  # distances, one bit each


def plan_of(index: SparseIndex) -> Plan:
    """Make the plan of an index, list by list."""
    b, x, m = index.b, index.x, index.m
    words = (m + 64) // WORD + 1
    rows = torch.zeros(b, x, index.row_blocks, 3, dtype=torch.int32)
    distances = torch.zeros(b, x, words * WORD + m + 256, dtype=torch.int64)
    for s in range(b):
        queries, keys = int(index.query_lengths[s]), int(index.key_lengths[s])
        for head in range(x):
            slashes = index.slash_tiles[s, head, : index.slash_counts[s, head]]
            columns = index.column_indices[s, head, : index.column_counts[s, head]]
            for offset in slashes.tolist():
                distances[s, head, offset : offset + 64] = 1
            for i in range(-(-queries // 64)):
                end = 64 * (i + 1) + keys - queries
                rows[s, head, i, 0] = int((slashes < end).sum())
                rows[s, head, i, 1] = int((columns < min(end, keys)).sum())
                if index.row_ptr is not None and index.tile_starts is not None:
                    first, last = index.row_ptr[s, head, i : i + 2].tolist()
                    whole = index.tile_starts[first:last] + 63 <= end - 64
                    rows[s, head, i, 2] = first + int(whole.sum())
    bits = distances[..., : words * WORD].view(b, x, words, WORD)
    covered = (bits << torch.arange(WORD)).sum(-1)
    covered = torch.where(covered < 2**31, covered, covered - 2**32).int()
    longest = max(index.slash_tiles.shape[-1], index.column_indices.shape[-1])
    further = 0 if index.tile_starts is None else m // 64 + 2
    return Plan(rows, covered, max(longest, further).bit_length())
