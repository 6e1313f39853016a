"""The dynamic estimates by compiled kernels: the same cells, found many times faster.

Which cells are kept is defined by `vertical_slash.py` and `block_topk.py`; here are only
calls of `csrc/`, which rank by the same sums up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sparsefill import abi
from sparsefill.estimate.heads import Heads
from sparsefill.index import SparseIndex
from sparsefill.patterns import BlockTopK, VerticalSlash
from sparsefill.tile import TILE


def vertical_slash(patterns: Sequence[VerticalSlash], heads: Heads) -> SparseIndex:
    """Keep the best columns and diagonals of each head."""
    layer, lines = _layer(heads), _lines(patterns, heads)
    columns, diagonals = line_sums(patterns, heads)
    b, x, m = columns.shape
    most_columns = min(m, max(max(p.verticals, p.sink) for p in patterns))
    most_slashes = min(m, max(max(p.slashes, p.window) for p in patterns))
    counts = _empty(2, b, x)
    kept_columns = _empty(b, x, max(1, most_columns))
    kept_tiles = _empty(b, x, max(1, min(most_slashes, m)))
    abi.call(
        "sparsefill_choose_lines",
        layer,
        lines,
        x,
        columns,
        diagonals,
        kept_columns.shape[-1],
        kept_tiles.shape[-1],
        counts[0],
        kept_columns,
        counts[1],
        kept_tiles,
    )
    widest = max(1, int(counts[1].max()))  # most slashes merge
    return heads.index(
        slash=(kept_tiles[..., :widest].contiguous(), counts[1]),
        columns=(kept_columns, counts[0]),
    )


def line_sums(
    patterns: Sequence[VerticalSlash], heads: Heads
) -> tuple[Float[Tensor, "b x m"], Float[Tensor, "b x m"]]:
    """Sum the probe queries' attention along every column and every diagonal."""
    columns, diagonals = _empty(2, heads.b, heads.x, heads.m, dtype=torch.float32)
    q, k = abi.readable(heads.q), abi.readable(heads.k)
    abi.call(
        "sparsefill_line_sums",
        _layer(heads),
        _lines(patterns, heads),
        heads.x,
        abi.view(q),
        abi.view(k),
        columns,
        diagonals,
    )
    return columns, diagonals


def block_topk(patterns: Sequence[BlockTopK], heads: Heads) -> SparseIndex:
    """Keep the best key blocks of each block of queries (one block size)."""
    block = heads.useful_block(patterns[0].block)
    layer, x = _layer(heads), heads.x
    blocks = (abi.Blocks * x)(
        *(
            abi.Blocks(head, min(p.blocks, heads.m), *(min(f, heads.m) for f in (p.sink, p.window)))
            for head, p in zip(heads.members.tolist(), patterns, strict=True)
        )
    )
    most = max(p.blocks + -(-p.sink // block) + -(-p.window // block) + 2 for p in patterns)
    capacity = min(-(-heads.m // block), most)
    counts = _empty(heads.b, x, -(-heads.n // block))
    kept = _empty(*counts.shape, capacity)
    q, k = abi.readable(heads.q), abi.readable(heads.k)
    abi.call(
        "sparsefill_choose_blocks",
        layer,
        blocks,
        x,
        block,
        abi.view(q),
        abi.view(k),
        capacity,
        counts,
        kept,
    )
    row_ptr = _empty(heads.b, x, -(-heads.n // TILE) + 1)
    listed = (layer, x, block, capacity, counts, kept, row_ptr)
    abi.call("sparsefill_list_blocks", *listed, None)
    tile_starts = _empty(int(row_ptr[-1, -1, -1]))
    abi.call("sparsefill_list_blocks", *listed, tile_starts)
    none = torch.zeros_like(row_ptr[..., 0])
    return heads.index(
        slash=(none[..., None], none),
        columns=(none[..., None], none),
        further=(row_ptr, tile_starts),
    )


def _layer(heads: Heads) -> abi.Layer:
    """Describe the layer that the heads belong to."""
    return abi.layer(
        heads.q,
        heads.k,
        scale=heads.scale,
        softcap=heads.softcap,
        query_lengths=heads.query_lengths,
        key_lengths=heads.key_lengths,
        isa=heads.isa,
    )


def _lines(patterns: Sequence[VerticalSlash], heads: Heads) -> object:
    """Describe the budgets, cut to what the layer has."""

    def cut(value: int) -> int:
        return min(value, max(heads.n, heads.m))

    return (abi.Lines * heads.x)(
        *(
            abi.Lines(
                head, cut(p.probe), cut(p.verticals), cut(p.slashes), cut(p.sink), cut(p.window)
            )
            for head, p in zip(heads.members.tolist(), patterns, strict=True)
        )
    )


def _empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """Make a tensor for the library to fill, whatever torch's defaults are."""
    return torch.empty(shape, dtype=dtype, device="cpu")
