"""Static indices: cells found on one prompt and kept for others.

The paper's ablation of its dynamic estimate ("ours with static" in Jiang et al. 2024,
Table 3): what a head keeps no longer depends on what it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from jaxtyping import Int32
from torch import Tensor

from sparsefill.errors import InputError, UnsupportedError
from sparsefill.index import SparseIndex
from sparsefill.tile import TILE


@dataclass(frozen=True, kw_only=True, eq=False)
class StaticIndices:
    """The index of every layer of a model on one prompt.

    Args:
        layers: by layer number, each of one sequence.
    """

    layers: Mapping[int, SparseIndex]

    def index(
        self,
        layer: int,
        *,
        n: int,
        m: int,
        query_lengths: Int32[Tensor, " b"],
        key_lengths: Int32[Tensor, " b"],
    ) -> SparseIndex:
        """Return the index of a layer for sequences that are no longer than the kept one.

        Raises:
            InputError: nothing was kept for the layer, or its prompt was shorter.
            UnsupportedError: tiles per row block, and queries that follow cached keys.
        """
        if layer not in self.layers:
            raise InputError(f"static indices hold no layer {layer}; freeze them on this model")
        kept = self.layers[layer]
        if m > kept.m:
            raise InputError(
                f"static indices were kept from {kept.m} tokens, got {m}; freeze them on the"
                " longest prompt"
            )
        return cut_to(kept, n=n, m=m, query_lengths=query_lengths, key_lengths=key_lengths)


def cut_to(
    index: SparseIndex,
    *,
    n: int,
    m: int,
    query_lengths: Int32[Tensor, " b"],
    key_lengths: Int32[Tensor, " b"],
) -> SparseIndex:
    """Cut the index of one sequence, or of each, to fewer queries and keys.

    Lines stand relative to queries and keys, and serve any; tiles per row block only serve
    whole prompts, from the first query on.

    Raises:
        UnsupportedError: tiles per row block, and queries that follow cached keys.
    """
    b, row_ptr = len(query_lengths), index.row_ptr
    if row_ptr is not None:
        if bool((query_lengths != key_lengths).any()):
            raise UnsupportedError(
                "static block lists need whole prompts, got queries after cached keys; read"
                " each prompt in one piece"
            )
        row_ptr = row_ptr[..., : -(-n // TILE) + 1].expand(b, -1, -1)
    last = key_lengths[:, None, None]
    columns = index.sorted_columns().expand(b, -1, -1)
    return replace(
        index,
        n=n,
        m=m,
        query_lengths=query_lengths,
        key_lengths=key_lengths,
        column_indices=columns,
        column_counts=(columns < last).sum(-1).int(),
        slash_tiles=index.slash_tiles.expand(b, -1, -1),
        slash_counts=index.slash_counts.expand(b, -1),
        row_ptr=row_ptr,
    ).contiguous()
