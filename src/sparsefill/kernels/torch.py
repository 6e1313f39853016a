"""The portable backend: plain torch operations, on any device, without a compiler.

    for row blocks of similar cost, as many as fit the memory bound:
        keys = the keys that each row block reads             # (w, keys)
        scores = q @ k[keys].T                                # (w, rows, keys)
        out, lse = softmax over the keys not in the future

A row block costs what its index names, so time falls with density; sorting row blocks
by cost keeps the padding inside a batch small, whatever the heads' budgets are. Low
precision inputs are computed in float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsefill.index import SparseIndex
from sparsefill.tile import TILE

MAX_SCORES = 2**21  # scores of one batch of row blocks: 8 MiB in float32


def attend(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m d"],
    index: SparseIndex,
    *,
    scale: float,
    softcap: float | None,
) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b h n"]]:
    """Attend over the cells of `index`, a batch of row blocks at a time."""
    b, h, n, d = q.shape
    g, m = k.shape[1], k.shape[2]
    x, rows = index.x, index.row_blocks
    r = h // x
    dtype = torch.promote_types(q.dtype, torch.float32)
    q = torch.nn.functional.pad(q, (0, 0, 0, rows * TILE - n)).view(b, x, r, rows, TILE, d)
    out = torch.zeros_like(q)
    lse = torch.full(q.shape[:-1], -torch.inf, dtype=dtype, device=q.device)
    k_rows, v_rows = k.reshape(-1, d), v.reshape(-1, d)
    position = index.query_positions().view(b, rows, TILE)

    for sequence, head, row_block in _batches(index, queries=r * TILE):
        keys = index.keys_of(sequence, head, row_block)
        if keys.shape[1] == 0:
            continue  # tiles that lie wholly below key 0
        last = (index.key_lengths[sequence, None].long() - 1).clamp(min=0)  # never padding
        place = torch.minimum(keys, last) + ((sequence * g + head * g // x) * m)[:, None]
        own_k, own_v = (
            t.index_select(0, place.flatten()).view(*place.shape, d).to(dtype)
            for t in (k_rows, v_rows)
        )
        own_q = q[sequence, head, :, row_block].to(dtype)  # (w, r, 64, d)
        scores = (own_q.flatten(1, 2) * scale) @ own_k.transpose(1, 2)  # (w, r * 64, keys)
        if softcap is not None:
            scores = scores.div_(softcap).tanh_().mul_(softcap)
        own_position = position[sequence, row_block]
        free = int((keys <= own_position.amin(1, keepdim=True)).sum(1).min())
        future = keys[:, None, free:] > own_position[..., None]  # only these can be unseen
        scores.unflatten(1, (r, TILE))[..., free:].masked_fill_(future[:, None], -torch.inf)
        weights = scores.softmax(-1)
        top = scores.amax(-1)
        # softmax(top) = exp(top - lse), so the fused softmax yields the LSE as well
        own_lse = (top - weights.amax(-1).log_()).view(own_q.shape[:-1])
        empty = (top == -torch.inf).view(own_q.shape[:-1])
        own_out = (weights @ own_v).view(own_q.shape)
        out[sequence, head, :, row_block] = own_out.masked_fill(empty[..., None], 0).to(q.dtype)
        lse[sequence, head, :, row_block] = own_lse.masked_fill(empty, -torch.inf)
    return out.view(b, h, -1, d)[:, :, :n], lse.view(b, h, -1)[:, :, :n]


def _batches(
    index: SparseIndex, *, queries: int
) -> Iterator[tuple[Int64[Tensor, " w"], Int64[Tensor, " w"], Int64[Tensor, " w"]]]:
    """Yield (sequence, head, row block) batches that read similar numbers of keys."""
    counts = index.key_counts()
    cost, order = counts.flatten().sort(descending=True)
    costs = cost.tolist()
    first = 0
    while first < len(costs) and costs[first] > 0:
        width = max(1, MAX_SCORES // (costs[first] * queries))
        end = min(first + width, len(costs))
        sequence, head, row_block = torch.unravel_index(order[first:end], counts.shape)
        yield sequence, head, row_block
        first = end
