"""Block top-k: for each block of queries, the key blocks with the best pooled score.

    ■ · · · · ·
    ■ ■ · · · ·
    ■ · ■ · · ·
    ■ ■ · ■ · ·
    ■ · ■ · ■ ·
    ■ · · ■ · ■

Dynamic: Algorithm 3 of Jiang et al. 2024 (arXiv:2407.02490), its "block-sparse".
Queries and keys are averaged over blocks; a block of queries keeps the key blocks that
score best against its mean. The paper takes a softmax first, which ranks the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from sparsefill.estimate.heads import Heads, estimate_heads
from sparsefill.estimate.tiles import first_keys, further_tiles, largest
from sparsefill.index import NEVER, SparseIndex
from sparsefill.patterns import BlockTopK
from sparsefill.tile import TILE

MAX_SCORES = 2**22  # pooled scores held at once: 16 MiB in float32


@estimate_heads.register
def estimate_block_topk(
    first: BlockTopK, patterns: Sequence[BlockTopK], heads: Heads
) -> SparseIndex:
    """Keep the best `blocks` key blocks of each block of queries (one block size)."""
    if heads.kernels is not None:
        return heads.kernels.block_topk(patterns, heads)
    block = heads.useful_block(first.block)
    blocks = choose_blocks(patterns, heads, block)
    per_block = block // TILE
    row_block = torch.arange(-(-heads.n // TILE), device=heads.device)
    chosen = blocks[:, :, row_block // per_block, :, None]  # (b, x, i, kept, 1)
    starts = chosen * block + torch.arange(per_block, device=heads.device) * TILE
    starts = torch.where(chosen < NEVER, starts, NEVER).flatten(-2)
    exists = row_block * TILE < heads.query_lengths[:, None]
    seen = (row_block + 1) * TILE + heads.shift[:, None]
    seen = torch.where(exists, torch.minimum(seen, heads.key_lengths[:, None]), 0)
    counts = (starts < seen[:, None, :, None]).sum(-1)

    none = torch.zeros(heads.x, dtype=torch.long, device=heads.device)
    no_lines = first_keys(heads.b, none)
    return heads.index(slash=no_lines, columns=no_lines, further=further_tiles(starts, counts))


def choose_blocks(
    patterns: Sequence[BlockTopK], heads: Heads, block: int
) -> Int64[Tensor, "b x query_blocks kept"]:
    """List the key blocks that each block of queries keeps, ascending, then `NEVER`."""
    budget = heads.per_head(patterns, "blocks")
    sink = heads.per_head(patterns, "sink")[:, None, None]
    window = heads.per_head(patterns, "window")[:, None, None]
    pooled_q = pool(heads.q[:, heads.members], heads.query_lengths, block)
    pooled_k = pool(heads.k, heads.key_lengths, block)[:, heads.kv_members]
    first_key = torch.arange(pooled_k.shape[2], device=heads.device) * block
    width = max(1, MAX_SCORES // (heads.b * heads.x * pooled_k.shape[2]))
    kept = []
    for start in range(0, pooled_q.shape[2], width):
        q = pooled_q[:, :, start : start + width]
        query = torch.arange(start, start + q.shape[2], device=heads.device) * block
        nearest = (query + heads.shift[:, None])[:, None, :, None]  # first query's position
        last = torch.minimum(query + block, heads.query_lengths[:, None])
        last = (last - 1 + heads.shift[:, None])[:, None, :, None]
        forced = (first_key < sink) | (first_key + block > nearest - window + 1)
        forced &= first_key <= last
        scores = heads.scores(q, pooled_k)
        scores = scores.masked_fill_(forced, torch.inf)
        scores = scores.masked_fill_(first_key > last, -torch.inf)
        kept.append(largest(scores, torch.maximum(budget[:, None], forced.sum(-1))))
    widest = max(part.shape[-1] for part in kept)
    grown = [torch.nn.functional.pad(p, (0, widest - p.shape[-1]), value=NEVER) for p in kept]
    return torch.cat(grown, dim=2)


def pool(
    x: Float[Tensor, "b heads n d"], lengths: Int32[Tensor, " b"], block: int
) -> Float[Tensor, "b heads blocks d"]:
    """Average consecutive blocks of rows, leaving padding out of the last one."""
    n = x.shape[2]
    position = torch.arange(-(-n // block) * block, device=x.device)
    inside = position < lengths[:, None]  # (b, padded n)
    if not bool(inside.all()):
        x = torch.nn.functional.pad(x, (0, 0, 0, len(position) - n))
        x = x.masked_fill(~inside[:, None, :, None], 0)
    dtype = torch.promote_types(x.dtype, torch.float32)
    total = x.unflatten(2, (-1, block)).sum(3, dtype=dtype)
    count = inside.unflatten(1, (-1, block)).sum(-1).clamp(min=1)
    return total / count[:, None, :, None]
