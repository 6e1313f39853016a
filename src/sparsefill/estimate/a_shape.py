"""A-shape: the first keys and the nearest keys of every query.

    ■ · · · · ·
    ■ ■ · · · ·
    ■ ■ ■ · · ·
    ■ · ■ ■ · ·
    ■ · · ■ ■ ·
    ■ · · · ■ ■

Static: nothing is estimated.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsefill.estimate.heads import Heads, estimate_heads
from sparsefill.estimate.tiles import first_keys, window_tiles
from sparsefill.index import SparseIndex
from sparsefill.patterns import AShape


@estimate_heads.register
def estimate_a_shape(first: AShape, patterns: Sequence[AShape], heads: Heads) -> SparseIndex:
    """Keep `sink` columns and a band of `window` offsets, rounded up to tiles."""
    sink = heads.per_head(patterns, "sink").clamp(max=heads.m)
    window = heads.per_head(patterns, "window").clamp(max=heads.m)
    return heads.index(slash=window_tiles(heads.b, window), columns=first_keys(heads.b, sink))
