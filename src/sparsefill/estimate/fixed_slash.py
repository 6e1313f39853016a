r"""Fixed slash: given diagonals, and key columns that the last queries attend to most.

    ■ · · · · ·
    ■ ■ · · · ·
    ■ ■ ■ · · ·
    ■ ■ · ■ · ·
    ■ ■ · · ■ ·
    ■ ■ ■ · · ■

Half dynamic: the columns are those of vertical-slash, the diagonals a property of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from sparsefill.estimate.heads import Heads, estimate_heads
from sparsefill.estimate.tiles import merge_slashes
from sparsefill.index import NEVER, SparseIndex
from sparsefill.patterns import FixedSlash, VerticalSlash
from sparsefill.tile import TILE


@estimate_heads.register
def estimate_fixed_slash(
    first: FixedSlash, patterns: Sequence[FixedSlash], heads: Heads
) -> SparseIndex:
    """Keep the best `verticals` columns and the given diagonals of each head."""
    lines = [
        VerticalSlash(verticals=p.verticals, slashes=1, probe=p.probe, sink=p.sink, window=1)
        for p in patterns
    ]
    index = estimate_heads(lines[0], lines, heads)
    most = max(len(pattern.offsets) for pattern in patterns)
    listed = [[*p.offsets, *[NEVER] * (most - len(p.offsets))] for p in patterns]
    offsets = torch.tensor(listed, device=heads.device).expand(heads.b, -1, -1)
    beyond = offsets >= heads.key_lengths[:, None, None] + TILE - 1  # where no row block ends
    tiles, counts = merge_slashes(offsets.masked_fill(beyond, NEVER))
    return replace(index, slash_tiles=tiles.int().contiguous(), slash_counts=counts.int())
