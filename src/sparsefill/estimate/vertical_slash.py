r"""Vertical-slash: key columns and diagonals that the last queries attend to most.

    ■ · · · · ·
    ■ ■ · · · ·
    ■ ■ ■ · · ·
    ■ ■ · ■ · ·
    ■ ■ · · ■ ·
    ■ ■ ■ · · ■

Dynamic: Algorithm 2 of Jiang et al. 2024 (arXiv:2407.02490). The softmax of the last
queries against all keys is summed along columns and along diagonals, and the largest
sums win. Keys are visited in blocks, so memory never grows with probe * m.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsefill.estimate.heads import Heads, estimate_heads
from sparsefill.estimate.tiles import largest, merge_slashes
from sparsefill.index import NEVER, SparseIndex
from sparsefill.patterns import VerticalSlash

MAX_SCORES = 2**22  # scores held at once: 16 MiB in float32


@estimate_heads.register
def estimate_vertical_slash(
    first: VerticalSlash, patterns: Sequence[VerticalSlash], heads: Heads
) -> SparseIndex:
    """Keep the best `verticals` columns and `slashes` diagonals of each head."""
    if heads.kernels is not None:
        return heads.kernels.vertical_slash(patterns, heads)
    columns, diagonals = line_sums(heads, heads.per_head(patterns, "probe"))
    place = torch.arange(heads.m, device=heads.device)
    sink = heads.per_head(patterns, "sink")
    window = heads.per_head(patterns, "window")
    columns.masked_fill_(place < sink[:, None], torch.inf)
    diagonals.masked_fill_(place < window[:, None], torch.inf)
    missing = (place >= heads.key_lengths[:, None])[:, None]  # past a sequence's last key
    columns.masked_fill_(missing, -torch.inf)
    diagonals.masked_fill_(missing, -torch.inf)

    verticals = torch.maximum(heads.per_head(patterns, "verticals"), sink)
    slashes = torch.maximum(heads.per_head(patterns, "slashes"), window)
    kept_columns = largest(columns, verticals.expand(heads.b, -1))
    kept_offsets = largest(diagonals, slashes.expand(heads.b, -1))
    return heads.index(
        slash=merge_slashes(kept_offsets),
        columns=(kept_columns, (kept_columns < NEVER).sum(-1)),
    )


def line_sums(
    heads: Heads, probe: Int[Tensor, " x"]
) -> tuple[Float[Tensor, "b x m"], Float[Tensor, "b x m"]]:
    """Sum the probe queries' attention along every column and every diagonal.

    Two passes over the keys: the first finds each query's log-sum-exp, the second adds
    up the probabilities.

    Args:
        probe: how many trailing queries each head looks at.

    Returns:
        columns: entry `j` is the mass on key `j`.
        diagonals: entry `o` is the mass at distance `o`.
    """
    rows = min(int(probe.max()), heads.n)
    query = heads.query_lengths[:, None].long() - rows + torch.arange(rows, device=heads.device)
    position = query + heads.shift[:, None]  # (b, rows)
    chosen = heads.q[:, heads.members].gather(
        2, query.clamp(min=0)[:, None, :, None].expand(-1, heads.x, -1, heads.q.shape[3])
    )
    lse = torch.full((heads.b, heads.x, rows), -torch.inf, device=heads.device)
    for _, scores in _score_blocks(heads, chosen, position):
        lse = torch.logaddexp(lse, scores.logsumexp(-1))

    counted = query[:, None] >= heads.query_lengths[:, None, None] - probe[:, None]
    counted &= (query >= 0)[:, None] & (lse > -torch.inf)
    lse = lse.masked_fill(~counted, torch.inf)  # exp(score - inf) adds nothing
    columns = lse.new_zeros(heads.b, heads.x, heads.m)
    diagonals = lse.new_zeros(heads.b, heads.x, heads.m)
    for first_key, scores in _score_blocks(heads, chosen, position):
        mass = (scores - lse[..., None]).exp_()
        width = mass.shape[-1]
        columns[..., first_key : first_key + width] = mass.sum(2)
        step = max(width, 64)  # more rows at once would be padded by as many places
        for row in range(0, rows, step):
            by_offset = _sum_diagonals(mass[:, :, row : row + step])
            smallest = position[:, row : row + 1] - first_key - (width - 1)
            offset = smallest + torch.arange(by_offset.shape[-1], device=heads.device)
            inside = offset.clamp(0, heads.m - 1)[:, None].expand_as(by_offset)
            diagonals.scatter_add_(-1, inside, by_offset)  # offsets outside carry no mass
    return columns, diagonals


def _score_blocks(
    heads: Heads, q: Float[Tensor, "b x rows d"], position: Int[Tensor, "b rows"]
) -> Iterator[tuple[int, Float[Tensor, "b x rows keys"]]]:
    """Yield the causal scores of `q` against consecutive blocks of keys."""
    width = max(1, MAX_SCORES // (q.shape[0] * q.shape[1] * q.shape[2]))
    for first_key in range(0, heads.m, width):
        k = heads.k[:, :, first_key : first_key + width]
        key = torch.arange(first_key, first_key + k.shape[2], device=k.device)
        future = key > position[..., None]
        scores = heads.scores(q, k[:, heads.kv_members])
        yield first_key, scores.masked_fill_(future[:, None], -torch.inf)


def _sum_diagonals(mass: Float[Tensor, "b x rows keys"]) -> Float[Tensor, "b x offsets"]:
    """Sum each diagonal of a block: place `u` holds `row - key = u - (keys - 1)`.

    With the keys reversed, padding each row by `rows` places and reading the result
    with rows one shorter moves row `t` right by `t`: diagonals become columns.
    """
    rows, keys = mass.shape[-2:]
    padded = torch.nn.functional.pad(mass.flip(-1), (0, rows)).flatten(-2)
    return padded[..., : rows * (keys + rows - 1)].unflatten(-1, (rows, -1)).sum(-2)
