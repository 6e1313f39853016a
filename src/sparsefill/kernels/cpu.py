"""The fast CPU backend: compiled kernels, one call for a whole layer.

    for each row block of the query heads that read the same keys, on all threads:
        for each tile of 64 keys, in place, contiguous or gathered:
            S = K Q^T; P = 2^(S - top); O^T = O^T + V^T P

Inputs of any stride are read in place as long as d is contiguous; keys and values are
never repeated or copied. Accumulates in float32. The kernels live in `csrc/`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparsefill import abi, memory
from sparsefill.index import SparseIndex


def attend(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m d"],
    index: SparseIndex,
    *,
    scale: float,
    softcap: float | None,
    isa: str | None = None,
) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b h n"]]:
    """Attend over the cells of `index`, on as many threads as torch uses.

    Args:
        isa: instruction set to use; the best that the CPU has when None.
    """
    b, h, n, d = q.shape
    q, k, v = (abi.readable(t) for t in (q, k, v))
    # heads last, as models go on
    out = memory.empty((b, n, h, d), q.dtype).transpose(1, 2)
    lse = torch.empty(b, h, n, dtype=torch.float32, device=q.device)
    index = index.contiguous()
    layer = abi.layer(
        q,
        k,
        scale=scale,
        softcap=softcap,
        query_lengths=index.query_lengths,
        key_lengths=index.key_lengths,
        isa=isa,
    )
    views = (abi.view(t) for t in (q, k, v, out))
    abi.call("sparsefill_attend", layer, abi.index(**index.lists()), *views, lse)
    return out, lse
