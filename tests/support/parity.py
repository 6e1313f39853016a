"""What interleaved heads keep, from the rule as it is documented, cell by cell."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefill import Interleaved
from sparsefill.tile import TILE
from tests.support.inputs import Qkv, causal_mask, offsets


def exact_mask(pattern: Interleaved, n: int, m: int) -> Tensor:
    """Keep the distances that the pattern names, nothing rounded."""
    offset = offsets(n, m)
    bound = torch.where(offset % 2 == 0, pattern.even, pattern.odd)
    return causal_mask(n, m) & ((torch.arange(m) < pattern.sink) | (offset < bound))


def rounded_mask(pattern: Interleaved, n: int, m: int) -> Tensor:
    """Keep them as far as tiles reach: 64 keys of one parity, for 64 queries of one parity."""
    offset, query = offsets(n, m), torch.arange(n)[:, None] // 2
    windows = torch.tensor([-(-pattern.even // 2), pattern.odd // 2])
    tiles = -(-(windows + TILE - 1) // TILE) * (windows > 0)
    later = TILE - 1 - query % TILE  # queries of the row block that follow
    kept = offset // 2 + later < TILE * tiles[offset % 2]
    return causal_mask(n, m) & ((torch.arange(m) < pattern.sink) | kept)


def masked_attention(
    qkv: Qkv, mask: Tensor, *, scale: float | None = None, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attend by an explicit mask (b, 1 or h, n, m); rows without keys give zeros."""
    q, k, v = qkv
    k, v = (t.nan_to_num().repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    scores = (q.nan_to_num() @ k.mT).to(torch.promote_types(q.dtype, torch.float32))
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0)[..., None])
    return weights.to(q.dtype) @ v, lse
