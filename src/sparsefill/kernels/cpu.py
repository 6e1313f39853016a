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

from sparsefill import abi
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
    out = torch.empty(b, n, h, d, dtype=q.dtype).transpose(1, 2)  # heads last, as models go on
    lse = torch.empty(b, h, n)
    lists = {
        name: tensor.contiguous()
        for name in (
            "query_lengths",
            "key_lengths",
            "slash_counts",
            "slash_tiles",
            "column_counts",
            "column_indices",
            "row_ptr",
            "tile_starts",
        )
        if (tensor := getattr(index, name)) is not None
    }
    layer = abi.layer(
        q,
        k,
        scale=scale,
        softcap=softcap,
        query_lengths=lists.pop("query_lengths"),
        key_lengths=lists.pop("key_lengths"),
        isa=isa,
    )
    sparse = abi.Index(
        x=index.x,
        slash_capacity=index.slash_tiles.shape[-1],
        column_capacity=index.column_indices.shape[-1],
        tile_count=0 if index.tile_starts is None else len(index.tile_starts),
        **{name: abi.pointer(tensor) for name, tensor in lists.items()},
    )
    views = (abi.view(t) for t in (q, k, v, out))
    abi.call("sparsefill_attend", layer, sparse, *views, lse)
    return out, lse
