"""Dense causal attention in blocks of queries: windows, soft caps, padding, chunks.

What a layer needs when it is not sparse but the stock kernel cannot serve it without an
n * m mask. Each block of queries meets only the keys that it can see, so a sliding
window costs n * window.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

MAX_SCORES = 2**22  # scores of one block of queries, over all heads: 16 MiB in float32


def dense_attention(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m d"],
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    query_lengths: Int[Tensor, " b"],
    key_lengths: Int[Tensor, " b"],
) -> Float[Tensor, "b h n d"]:
    """Attend every query to all keys that it may see.

    Args:
        scale: what scores are multiplied by.
        softcap: scores are bounded to `softcap * tanh(score / softcap)` when given.
        window: how many nearest keys (itself included) a query sees; all when None.
        query_lengths: queries of each sequence; the others give zeros.
        key_lengths: keys of each sequence, the last query standing at the last key.
    """
    if window is not None and len((key_lengths - query_lengths).unique()) > 1:
        # Windows of sequences that stand apart have nothing in common: one at a time.
        parts = [
            dense_attention(
                q[s : s + 1],
                k[s : s + 1],
                v[s : s + 1],
                scale=scale,
                softcap=softcap,
                window=window,
                query_lengths=query_lengths[s : s + 1],
                key_lengths=key_lengths[s : s + 1],
            )
            for s in range(len(q))
        ]
        return torch.cat(parts)
    b, h, n, _ = q.shape
    g, m = k.shape[1], k.shape[2]
    span = m if window is None else min(m, window)
    rows = max(1, min(n, MAX_SCORES // (b * h * span)))
    if window is not None:
        rows = min(rows, max(64, window))  # more rows would only widen what a block reads
    padding = torch.arange(m, device=k.device) >= key_lengths[:, None]
    if bool(padding.any()):  # whatever it holds, it must not reach a product
        k, v = (t.masked_fill(padding[:, None, :, None], 0) for t in (k, v))
    shift = (key_lengths - query_lengths).long()
    nearest, farthest = int(shift.min()), int(shift.max())
    out = torch.zeros_like(q)
    for first in range(0, n, rows):
        last = min(n, first + rows)
        low = 0 if window is None else max(0, first + nearest - window + 1)
        high = min(m, last + farthest)
        if high <= low:
            continue
        query = torch.arange(first, last, device=q.device)
        position = (query + shift[:, None])[..., None]  # (b, rows, 1)
        key = torch.arange(low, high, device=q.device)
        seen = (key <= position) & (query < query_lengths[:, None])[..., None]
        if window is not None:
            seen &= key > position - window
        own_q = q[:, :, first:last].unflatten(1, (g, -1)).flatten(2, 3)  # (b, g, r * rows, d)
        attended = _attend_block(
            own_q, k[:, :, low:high], v[:, :, low:high], seen, scale=scale, softcap=softcap
        )
        empty = ~seen.any(-1)[:, None, :, None]
        own_out = attended.unflatten(2, (h // g, -1)).flatten(1, 2)
        out[:, :, first:last] = own_out.masked_fill(empty, 0)
    return out


def _attend_block(
    q: Float[Tensor, "b g queries d"],
    k: Float[Tensor, "b g keys d"],
    v: Float[Tensor, "b g keys d"],
    seen: Tensor,
    *,
    scale: float,
    softcap: float | None,
) -> Float[Tensor, "b g queries d"]:
    """Attend one block; the `r` query heads of a group stand one after another."""
    seen = seen.repeat(1, q.shape[2] // seen.shape[1], 1)[:, None]
    if softcap is None:
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=scale
        )
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(dtype) * scale) @ k.to(dtype).transpose(-1, -2)
    scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill_(~seen, -torch.inf).softmax(-1)
    return (weights @ v.to(dtype)).to(q.dtype)
