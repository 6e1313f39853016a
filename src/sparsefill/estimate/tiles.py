"""Lists of lines and tiles, built for all heads at once."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from sparsefill.estimate.heads import Entries, Further
from sparsefill.index import NEVER
from sparsefill.tile import TILE


def first_keys(b: int, sink: Int[Tensor, " x"]) -> Entries:
    """List columns 0..sink-1 of every head."""
    keys = torch.arange(max(1, int(sink.max())), device=sink.device)
    shape = (b, len(sink))
    return keys.expand(*shape, -1), sink.expand(shape)


def window_tiles(b: int, window: Int[Tensor, " x"]) -> Entries:
    """List the touching slash tiles that hold the offsets 0..window-1 of every head.

    The last query of a row block needs `window` keys, its first one 63 keys more.
    """
    counts = -(-(window + TILE - 1) // TILE)
    tiles = torch.arange(int(counts.max()), device=window.device) * TILE
    shape = (b, len(window))
    return tiles.expand(*shape, -1), counts.expand(shape)


def merge_slashes(offsets: Int[Tensor, "b x s"]) -> Entries:
    """Cover ascending slash offsets by as few disjoint tiles as possible.

    A slash needs exactly the tile of its own offset. Walking up from the smallest
    offset, a slash inside the last tile is free, one within 64 of it extends the run
    by a touching tile, and any other starts a run of its own. Starting from the nearest
    slash puts what a run covers in excess on older keys, which exist, rather than
    beyond the diagonal, and aligns the diagonal tile with its row block.

    Args:
        offsets: ascending, `NEVER` past each head's own.
    """
    offsets = offsets.long().contiguous()
    last = offsets[..., :1]
    tiles = [last]
    while bool((last < NEVER).any()):  # one round per tile of the longest list
        place = torch.searchsorted(offsets, last.contiguous(), right=True)
        ended = place == offsets.shape[-1]
        coming = offsets.gather(-1, place.clamp(max=offsets.shape[-1] - 1))
        coming = coming.masked_fill(ended, NEVER)
        touching = (coming <= last + TILE) & (coming < NEVER)
        last = torch.where(touching, last + TILE, coming)
        tiles.append(last)
    merged = torch.cat(tiles, dim=-1)
    return merged, (merged < NEVER).sum(-1)


def further_tiles(starts: Int[Tensor, "b x i k"], counts: Int[Tensor, "b x i"]) -> Further:
    """Pack the tile starts of each row block, `counts` of them, as CSR."""
    there = torch.arange(starts.shape[-1], device=starts.device) < counts[..., None]
    ends = counts.flatten().cumsum(0).view(counts.shape)
    row_ptr = torch.cat([(ends - counts)[..., :1], ends], dim=-1)
    return row_ptr, starts[there]


def largest(
    scores: Float[Tensor, "*lead places"], counts: Int[Tensor, "*lead"]
) -> Int64[Tensor, "*lead k"]:
    """List the places of each row's `counts` largest scores, ascending, then `NEVER`.

    A score of minus infinity is never chosen.
    """
    widest = max(1, min(int(counts.max()), scores.shape[-1]))
    top = scores.topk(widest, dim=-1)
    beyond = torch.arange(widest, device=scores.device) >= counts[..., None]
    beyond |= top.values == -torch.inf
    return top.indices.masked_fill(beyond, NEVER).sort(dim=-1).values
