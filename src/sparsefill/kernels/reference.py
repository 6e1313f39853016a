"""The readable oracle: attention over the cells of an index, with an explicit mask.

It defines what every backend must compute, causal, ragged and GQA semantics included.
Memory grows with n * m: for tests and drawings, not for long prompts.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparsefill.index import SparseIndex


def attend(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m d"],
    index: SparseIndex,
    *,
    scale: float,
    softcap: float | None,
) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b h n"]]:
    """Attend in the inputs' own dtype, softmax in at least float32 (float64 stays)."""
    h, g = q.shape[1], k.shape[1]
    k, v = (t.repeat_interleave(h // g, dim=1) for t in (k, v))
    mask = index.to_mask().repeat_interleave(h // index.x, dim=1)
    keys = torch.arange(k.shape[2], device=k.device)
    v = v.masked_fill((keys >= index.key_lengths[:, None])[:, None, :, None], 0)
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0)[..., None])
    return weights.to(q.dtype) @ v, lse
