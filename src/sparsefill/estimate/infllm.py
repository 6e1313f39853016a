"""InfLLM: the first keys, the nearest keys, and older blocks that their best keys speak for.

    ■ · · · · · · ·
    ■ ■ · · · · · ·
    ■ ■ ■ · · · · ·
    ■ · ■ ■ · · · ·
    ■ ■ · ■ ■ · · ·
    ■ ■ · · ■ ■ · ·
    ■ · ■ · · ■ ■ ·
    ■ · ■ · · · ■ ■

Dynamic: Xiao et al. 2024 (arXiv:2402.04617). What `patterns.InfLLM` says of scores and choices
is computed one sequence and one KV head at a time, in strips of queries: memory grows with the
keys, time with queries * window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsefill.estimate.block_topk import pool
from sparsefill.estimate.heads import Heads, estimate_heads
from sparsefill.estimate.tiles import first_keys, further_tiles, largest, window_tiles
from sparsefill.index import NEVER, SparseIndex
from sparsefill.patterns import InfLLM
from sparsefill.tile import TILE

MAX_SCORES = 2**22  # scores held at once: 16 MiB in float32


@estimate_heads.register
def estimate_infllm(first: InfLLM, patterns: Sequence[InfLLM], heads: Heads) -> SparseIndex:
    """Keep `sink` columns, a band of `window` offsets and the blocks that all heads choose."""
    sink = heads.per_head(patterns, "sink").clamp(max=heads.m)
    window = heads.per_head(patterns, "window").clamp(max=heads.m)
    slash = window_tiles(heads.b, window)
    band = TILE * int(slash[1].max())  # keys that the window's tiles cover
    group = heads.useful_block(first.queries)
    rows = torch.arange(-(-heads.n // TILE), device=heads.device)
    starts = []
    for sequence in range(heads.b):
        kept = choose_blocks(first, heads, sequence, group=group, band=band)
        if len(kept) and kept.shape[1]:
            tiles = kept[..., None] + torch.arange(0, first.block, TILE, device=heads.device)
            tiles = torch.where(kept[..., None] < NEVER, tiles, NEVER).flatten(1)
            starts.append(tiles[(rows * TILE // group).clamp(max=len(tiles) - 1)])
        else:
            starts.append(rows.new_zeros(len(rows), 0))
    widest = max(part.shape[1] for part in starts)
    pad = torch.nn.functional.pad
    tiles = torch.stack([pad(part, (0, widest - part.shape[1]), value=NEVER) for part in starts])
    exists = (rows * TILE < heads.query_lengths[:, None])[..., None]
    counts = ((tiles < NEVER) & exists).sum(-1)
    row_ptr, tile_starts = further_tiles(tiles[:, None], counts[:, None])
    shared = row_ptr.expand(-1, heads.x, -1).contiguous()  # every head reads the same list
    return heads.index(
        slash=slash, columns=first_keys(heads.b, sink), further=(shared, tile_starts)
    )


def choose_blocks(
    pattern: InfLLM, heads: Heads, sequence: int, *, group: int, band: int
) -> Int64[Tensor, "groups kept"]:
    """List the first keys of the blocks that each group of queries keeps, then `NEVER`.

    A block counts once it lies before all tiles of the window, for every query of the group.

    Args:
        sequence: its number in the batch.
        group: queries that choose together.
        band: keys from the end of a row block back to the end of what is older.
    """
    n, m = int(heads.query_lengths[sequence]), int(heads.key_lengths[sequence])
    firsts = torch.arange(0, n, group, device=heads.device)
    older = firsts + TILE + (m - n) - band  # keys before the window of each group
    count = max(0, (int(older.max()) - pattern.sink) // pattern.block) if n else 0
    if count == 0:
        return firsts.new_zeros(len(firsts), 0)
    own = slice(sequence, sequence + 1)
    means = pool(heads.q[own, heads.members], heads.query_lengths[own], group)[0]
    means = means[:, : len(firsts)]
    relevance = means.new_zeros(len(firsts), count)
    for kv in heads.kv_members.unique().tolist():
        members = (heads.kv_members == kv).nonzero().flatten()
        best = _representatives(pattern, heads, sequence, members, kv, count=count)
        relevance += torch.einsum("rgd,rjd->gj", means[members] * heads.scale, best)
    place = torch.arange(count, device=heads.device)
    too_young = pattern.sink + (place + 1) * pattern.block > older[:, None]
    relevance.masked_fill_(too_young, -torch.inf)
    kept = largest(relevance, firsts.new_full((len(firsts),), pattern.blocks))
    return torch.where(kept < NEVER, pattern.sink + kept * pattern.block, NEVER)


def _representatives(
    pattern: InfLLM,
    heads: Heads,
    sequence: int,
    members: Int64[Tensor, " r"],
    kv: int,
    *,
    count: int,
) -> Float[Tensor, "r blocks d"]:
    """Average the best keys of each block, as each query head of a KV head scores them.

    Args:
        members: places of these query heads among the members.
        kv: the KV head that they read.
        count: blocks.
    """
    blocks = slice(pattern.sink, pattern.sink + count * pattern.block)
    scores = key_scores(pattern, heads, sequence, members, kv)[:, blocks]
    scores = scores.unflatten(1, (count, pattern.block))
    best = scores.topk(min(pattern.representatives, pattern.block), dim=-1).indices
    k = heads.k[sequence, kv, blocks].unflatten(0, (count, pattern.block))
    block = torch.arange(count, device=heads.device)[:, None]
    dtype = torch.promote_types(k.dtype, torch.float32)
    return torch.stack([k[block, own].to(dtype).mean(-2) for own in best])


def key_scores(
    pattern: InfLLM, heads: Heads, sequence: int, members: Int64[Tensor, " r"], kv: int
) -> Float[Tensor, "r keys"]:
    """Sum the attention that each key receives from the queries of the window after it.

    Each query spreads one over the first keys and its window.

    Args:
        members: places of some query heads among the members.
        kv: the KV head that they read.
    """
    n, m = int(heads.query_lengths[sequence]), int(heads.key_lengths[sequence])
    dtype = torch.promote_types(heads.q.dtype, torch.float32)
    k = heads.k[sequence, kv, :m]
    sums = torch.zeros(len(members), m, dtype=dtype, device=heads.device)
    for rows, low in _strips(pattern, n, m, heads=len(members)):
        query = torch.tensor(rows, device=heads.device)
        position = (query + (m - n))[:, None]
        high = rows[-1] + m - n + 1
        sink = min(low, pattern.sink)
        key = torch.cat(
            [torch.arange(sink, device=k.device), torch.arange(low, high, device=k.device)]
        )
        near = k[low:high] if sink == 0 else torch.cat([k[:sink], k[low:high]])
        # queries before the first one are not at hand: it and those after it stand in for them
        seen = (position - key.clamp(min=m - n) < pattern.window) | (key < pattern.sink)
        seen &= key <= position
        q = heads.q[sequence, heads.members[members][:, None], query]
        scores = heads.scores(q.flatten(0, 1)[None, None], near[None, None])[0, 0]
        scores = scores.unflatten(0, (len(members), -1)).masked_fill_(~seen, -torch.inf)
        sums[:, low:high] += scores.softmax(-1).sum(1)[:, sink:]
    return sums


def _strips(pattern: InfLLM, n: int, m: int, *, heads: int) -> Iterator[tuple[range, int]]:
    """Yield the queries that score, in strips, with the first key in the window of each strip."""
    shift = m - n
    first = max(min(pattern.every, n) - 1, -shift)  # a query with keys
    rows = range(first, n, pattern.every)
    most = m if shift > 0 else min(m, pattern.window)
    width = MAX_SCORES // (2 * heads)
    strip = max(1, min(width // (most + pattern.sink), math.isqrt(width // pattern.every)))
    for start in range(0, len(rows), strip):
        own = rows[start : start + strip]
        oldest = own[0] + shift - pattern.window + 1
        yield own, max(0, oldest) if own[0] >= pattern.window else 0
