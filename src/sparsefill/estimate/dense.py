"""Dense: every causal cell, as touching slash tiles.

    ■ · · ·
    ■ ■ · ·
    ■ ■ ■ ·
    ■ ■ ■ ■

Static. The list of tiles is the same for every row block, so that even a dense head of
a million tokens takes 64 KiB.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparsefill.estimate.heads import Heads, estimate_heads
from sparsefill.estimate.tiles import first_keys, window_tiles
from sparsefill.index import SparseIndex
from sparsefill.patterns import Dense


@estimate_heads.register
def estimate_dense(first: Dense, patterns: Sequence[Dense], heads: Heads) -> SparseIndex:
    """Keep a window as long as the keys."""
    every = torch.full((heads.x,), heads.m, device=heads.device)
    return heads.index(slash=window_tiles(heads.b, every), columns=first_keys(heads.b, every * 0))
