"""Tri-shape: an A-shape, and every key for the last queries.

    ■ · · · · ·
    ■ ■ · · · ·
    ■ ■ ■ · · ·
    ■ · ■ ■ · ·
    ■ ■ ■ ■ ■ ·
    ■ ■ ■ ■ ■ ■

Static. The last row blocks get further tiles, from where their window ends down to the
first key.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparsefill.estimate.heads import Heads, estimate_heads
from sparsefill.estimate.tiles import first_keys, further_tiles, window_tiles
from sparsefill.index import SparseIndex
from sparsefill.patterns import TriShape
from sparsefill.tile import TILE


@estimate_heads.register
def estimate_tri_shape(first: TriShape, patterns: Sequence[TriShape], heads: Heads) -> SparseIndex:
    """Keep `sink` columns, a band of `window` offsets and the last rows whole."""
    sink = heads.per_head(patterns, "sink").clamp(max=heads.m)
    window = heads.per_head(patterns, "window").clamp(max=heads.m)
    slash = window_tiles(heads.b, window)

    row_block = torch.arange(-(-heads.n // TILE), device=heads.device)
    first_query = row_block * TILE  # (i,)
    dense_from = heads.query_lengths[:, None] - heads.per_head(patterns, "last")  # (b, x)
    is_last = first_query + TILE > dense_from[..., None]
    is_last &= first_query < heads.query_lengths[:, None, None]

    ends = first_query + TILE + heads.shift[:, None]  # (b, i)
    below = ends[:, None] - TILE * slash[1][..., None]  # keys below the window: (b, x, i)
    counts = torch.where(is_last, -(-below.clamp(min=0) // TILE), 0)
    step = torch.arange(int(counts.max()), device=heads.device)
    starts = below[..., None] - TILE * (counts[..., None] - step)
    further = further_tiles(starts, counts)
    return heads.index(slash=slash, columns=first_keys(heads.b, sink), further=further)
