"""Interleaved: the first keys, and even and odd distances up to a bound of their own each.

    ■ · · · · · · ·
    ■ ■ · · · · · ·
    ■ · ■ · · · · ·
    ■ ■ · ■ · · · ·
    ■ · ■ · ■ · · ·
    ■ · · ■ · ■ · ·
    ■ · · · ■ · ■ ·
    ■ · · · · ■ · ■

Static. No tile of neighbouring keys holds such cells. But with a query at position 2 a + s and
a key at 2 c + t, distances of parity (s - t) below a bound are distances a - c below half of it:
among the queries of one parity and the keys of one parity, the cells are an A-shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from sparsefill.errors import UnsupportedError
from sparsefill.estimate.heads import Heads, estimate_heads
from sparsefill.estimate.tiles import first_keys, window_tiles
from sparsefill.index import SparseIndex
from sparsefill.patterns import Interleaved
from sparsefill.tile import TILE


@dataclass(frozen=True, kw_only=True, eq=False)
class ParityPart:
    """Queries of one parity of a sequence, keys of one parity, and what they keep.

    Args:
        sequence: its number in the batch.
        rows: the queries, every second one.
        keys: the keys, every second one, as far as the last of the queries sees.
        index: of these queries and keys, with a list for every query head of the layer; those
            of heads with other patterns are empty.
    """

    sequence: int
    rows: slice
    keys: slice
    index: SparseIndex


def parity_parts(
    patterns: Mapping[int, Interleaved],
    h: int,
    *,
    query_lengths: Int[Tensor, " b"],
    key_lengths: Int[Tensor, " b"],
) -> Iterator[ParityPart]:
    """Yield what interleaved heads keep; the parts of the same queries follow one another.

    Args:
        patterns: by query head.
        h: query heads of the layer.
    """
    lengths = zip(query_lengths.tolist(), key_lengths.tolist(), strict=True)
    for sequence, (n, m) in enumerate(lengths):
        for first in range(min(2, n)):
            rows = slice(first, n, 2)
            count = len(range(first, n, 2))
            position = first + m - n + 2 * (count - 1)  # of the last of the queries
            for parity in (0, 1):
                seen = (position - parity) // 2 + 1  # keys of this parity up to there
                if seen <= 0:
                    continue
                index = _a_shape(
                    patterns, h, n=count, m=seen, apart=(position - parity) % 2, parity=parity
                )
                yield ParityPart(
                    sequence=sequence,
                    rows=rows,
                    keys=slice(parity, 2 * seen, 2),
                    index=index.to(query_lengths.device),
                )


def _a_shape(
    patterns: Mapping[int, Interleaved], h: int, *, n: int, m: int, apart: int, parity: int
) -> SparseIndex:
    """Make the index of the queries of one parity and the keys of one parity.

    The last query stands at the last key: one of the other parity stands behind its nearest key.

    Args:
        apart: 1 if queries and keys are of different parity.
        parity: of the keys.
    """
    sink, window = torch.zeros(2, h, dtype=torch.long)
    for head, own in patterns.items():
        sink[head] = min(m, (own.sink + 1 - parity) // 2)
        window[head] = min(m, own.odd // 2 if apart else (own.even + 1) // 2)
    tiles, counts = window_tiles(1, window)
    columns, column_counts = first_keys(1, sink)
    return SparseIndex(
        n=n,
        m=m,
        query_lengths=torch.tensor([n]).int(),
        key_lengths=torch.tensor([m]).int(),
        slash_tiles=tiles.int(),
        slash_counts=counts.masked_fill(window == 0, 0).int(),
        column_indices=columns.int(),
        column_counts=column_counts.int(),
    ).contiguous()


@estimate_heads.register
def refuse_interleaved(
    first: Interleaved, patterns: Sequence[Interleaved], heads: Heads
) -> SparseIndex:
    """Refuse: the cells of such heads are those of no single index."""
    raise UnsupportedError(
        f"interleaved heads keep cells of single parities, which no index of {TILE}-key tiles"
        " names; use sparse_attention, sparse_prefill or estimate_cells, which split queries"
        " and keys by parity"
    )
