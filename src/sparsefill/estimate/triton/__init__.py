"""The dynamic estimates as Triton kernels: the same cells, found in a few launches a layer.

    vertical-slash: probe_weights → line_sums → keep_largest → merge_slashes
    block top-k: pool q, pool k → (score_blocks → keep_largest) a strip at a time → list_tiles

Which cells are kept is defined by `estimate/vertical_slash.py` and `estimate/block_topk.py`;
the kernels rank by the same sums up to rounding.
"""
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from sparsefill.errors import InputError
from sparsefill.estimate.heads import Heads
from sparsefill.estimate.triton import blocks, lines, select
from sparsefill.gpu import cut, launched_on, maths_of, readable, strides_of
from sparsefill.index import NEVER, SparseIndex
from sparsefill.patterns import BlockTopK, VerticalSlash
from sparsefill.tile import TILE

SPANS = 64  # parts that the keys are scored in, at most
LEAST_SPAN = 32  # tiles
MAX_SCORES = 2**24  # pooled scores held at once: 64 MiB in float32


def vertical_slash(patterns: Sequence[VerticalSlash], heads: Heads) -> SparseIndex:
    """Keep the best columns and diagonals of each head."""
    b, x, m = heads.b, heads.x, heads.m
    verticals = [min(max(p.verticals, p.sink), m) for p in patterns]
    slashes = [min(max(p.slashes, p.window), m) for p in patterns]
    with launched_on(heads.device):
        sums = line_sums(patterns, heads)
        budgets = verticals + slashes
        kept = _empty(heads, b, 2 * x, 1, max(1, *budgets))
        counts = _empty(heads, b, 2 * x, 1)
        select.keep_largest[(b * 2 * x,)](
            sums, heads.key_lengths, _list_of(tuple(budgets), heads.device), kept, counts,
            0, 1, 2 * x, 1, m, kept.shape[-1],
            BLOCK=1024, num_warps=8,
        )  # fmt: skip
        tiles = _empty(heads, b, x, max(1, *slashes))
        tile_counts = _empty(heads, b, x)
        lines.merge_slashes[(b * x,)](
            kept, counts, kept.shape[-1],
            tiles, tile_counts, tiles.shape[-1],
            X=x, num_warps=1,
        )  # fmt: skip
    columns = kept[:, :x, 0, : max(1, *verticals)]
    return heads.index(slash=(tiles, tile_counts), columns=(columns, counts[:, :x, 0]))


def line_sums(patterns: Sequence[VerticalSlash], heads: Heads) -> Float[Tensor, "b 2 x m"]:
    """Sum the probe queries' attention along every column and every diagonal.

    Forced lines get infinity. Entries past a sequence's keys are not written.
    """
    b, x, m, d = heads.b, heads.x, heads.m, heads.q.shape[-1]
    q, k = readable(heads.q), readable(heads.k)
    span = max(LEAST_SPAN, -(-m // (TILE * SPANS)))
    spans = -(-m // (TILE * span))
    tops, totals = (_empty(heads, b, x, spans, TILE, dtype=torch.float32) for _ in range(2))
    sums = _empty(heads, b, 2, x, m, dtype=torch.float32)
    members, probe = heads.members.int(), _per_list(patterns, "probe", heads)
    first, second = cut(d)
    shapes = {"X": x, "R": heads.r, "D": d, "D0": first, "D1": second}
    # rows of 256 in three stages would not fit into an AMD GPU's shared memory
    options = {**shapes, "SOFTCAP": heads.softcap is not None, "STAGES": 3 if d <= 128 else 2}
    shared = (
        q, *strides_of(q), k, *strides_of(k),
        heads.query_lengths, heads.key_lengths, members, probe,
    )  # fmt: skip
    maths = maths_of(heads.scale, heads.softcap)
    sink, window = _per_list(patterns, "sink", heads), _per_list(patterns, "window", heads)
    longest = min(max(p.probe for p in patterns), heads.n)
    for strip in range(-(-longest // TILE)):
        sizes = (strip, span, spans)
        lines.probe_weights[(b * x * spans,)](*shared, tops, totals, *sizes, *maths, **options)
        lines.line_sums[(b * x * spans,)](
            *shared, sink, window, tops, totals, sums, *sizes, m, *maths,
            FIRST=strip == 0, **options,
        )  # fmt: skip
    return sums


def block_topk(patterns: Sequence[BlockTopK], heads: Heads) -> SparseIndex:
    """Keep the best key blocks of each block of queries (one block size)."""
    block = heads.useful_block(patterns[0].block)
    with launched_on(heads.device):
        kept, counts = choose_blocks(patterns, heads, block)
        row_ptr = _row_ptr(counts, heads, block)
        total = int(row_ptr[-1, -1, -1])
        if total > NEVER:
            raise InputError(
                f"the blocks of one layer must be at most {NEVER} tiles, got {total};"
                " keep fewer blocks, or make them Dense()"
            )
        row_ptr = row_ptr.int()
        tile_starts = list_tiles(kept, row_ptr, total, block)
    none = torch.zeros_like(counts[..., 0])
    no_lines = none[..., None][..., :0]  # no room for any: attending then does not look
    return heads.index(
        slash=(no_lines, none),
        columns=(no_lines, none),
        further=(row_ptr, tile_starts),
    )


def choose_blocks(
    patterns: Sequence[BlockTopK], heads: Heads, block: int
) -> tuple[Int32[Tensor, "b x query_blocks kept"], Int32[Tensor, "b x query_blocks"]]:
    """List the key blocks that each block of queries keeps, ascending, and count them."""
    b, x, g, d = heads.b, heads.x, heads.k.shape[1], heads.q.shape[-1]
    q_blocks, k_blocks = -(-heads.n // block), -(-heads.m // block)
    members = heads.members.int()
    every = torch.arange(g, dtype=torch.int32, device=heads.device)
    q = pool(heads.q, heads.query_lengths, members, block)
    k = pool(heads.k, heads.key_lengths, every, block)
    query = torch.arange(1, q_blocks + 1, device=heads.device) * block
    last = torch.minimum(query, heads.query_lengths[:, None]) - 1 + heads.shift[:, None]
    exists = query - block < heads.query_lengths[:, None]
    seen = ((last // block + 1).clamp(min=0) * exists).int()  # blocks that are not in the future

    most = max(p.blocks + -(-p.sink // block) + -(-p.window // block) + 2 for p in patterns)
    kept = _empty(heads, b, x, q_blocks, min(k_blocks, most))
    counts = _empty(heads, b, x, q_blocks)
    forced = [_per_list(patterns, name, heads) for name in ("sink", "window")]
    budgets = [min(p.blocks, k_blocks) for p in patterns]
    strip = min(q_blocks, max(TILE, MAX_SCORES // (b * x * k_blocks) // TILE * TILE))
    scores = _empty(heads, b, x, strip, k_blocks, dtype=torch.float32)
    for start in range(0, q_blocks, strip):
        blocks.score_blocks[(-(-k_blocks // TILE), -(-strip // TILE), b * x)](
            q, k, heads.query_lengths, heads.key_lengths, members, *forced, scores,
            start, strip, q_blocks, k_blocks, block, heads.scale,
            X=x, G=g, R=heads.r, D=d, num_warps=8,
        )  # fmt: skip
        select.keep_largest[(b * x * strip,)](
            scores, seen, _list_of(tuple(budgets), heads.device), kept, counts,
            start, strip, x, q_blocks, k_blocks, kept.shape[-1],
            BLOCK=512, num_warps=4,
        )  # fmt: skip
    return kept, counts


def list_tiles(
    kept: Int32[Tensor, "b x query_blocks kept"],
    row_ptr: Int32[Tensor, "b x i_plus_1"],
    total: int,
    block: int,
) -> Int32[Tensor, " total"]:
    """List the tiles of every row block: the first ones of its block of queries."""
    b, x, q_blocks, capacity = kept.shape
    rows = row_ptr.shape[-1] - 1
    starts = torch.empty(total, dtype=torch.int32, device=kept.device)
    if total:
        blocks.list_tiles[(b * x * rows,)](
            kept, row_ptr, starts, rows, q_blocks, capacity, block // TILE,
            BLOCK=128, num_warps=1,
        )  # fmt: skip
    return starts


def pool(
    x: Float[Tensor, "b heads n d"],
    lengths: Int32[Tensor, " b"],
    members: Int32[Tensor, " x"],
    block: int,
) -> Float[Tensor, "b x blocks d"]:
    """Average consecutive blocks of rows of some heads, leaving padding out."""
    x = readable(x)
    b, _, n, d = x.shape
    count = -(-n // block)
    means = torch.empty(b, len(members), count, d, dtype=torch.float32, device=x.device)
    first, second = cut(d)
    blocks.pool[(b * len(members) * count,)](
        x, *strides_of(x), lengths, members, means, block, count,
        X=len(members), D=d, D0=first, D1=second, num_warps=4,
    )  # fmt: skip
    return means


def _row_ptr(
    counts: Int32[Tensor, "b x query_blocks"], heads: Heads, block: int
) -> Int64[Tensor, "b x i_plus_1"]:
    """Count the tiles of each row block, and add them up.

    A row block reads all tiles of its block of queries' key blocks but those after its own
    end, which are forced, hence kept, and the last ones.
    """
    per_block = block // TILE
    i = torch.arange(-(-heads.n // TILE), device=heads.device)
    shift = heads.shift[:, None]
    end = torch.minimum((i + 1) * TILE, heads.query_lengths[:, None]) + shift
    block_end = torch.minimum((i // per_block + 1) * block, heads.query_lengths[:, None]) + shift
    beyond = (-(-block_end // block) * per_block) - -(-end // TILE)  # tiles after this row block
    exists = (i * TILE < heads.query_lengths[:, None]) & (end > 0)
    tiles = counts[:, :, i // per_block] * per_block - beyond[:, None]
    tiles = tiles.clamp(min=0) * exists[:, None]
    ends = tiles.flatten().cumsum(0).view(tiles.shape)
    return torch.cat([(ends - tiles)[..., :1], ends], dim=-1)


def _per_list(
    patterns: Sequence[VerticalSlash] | Sequence[BlockTopK], field: str, heads: Heads
) -> Int32[Tensor, " x"]:
    """Collect one field of the patterns, cut to what 32 bits and the layer hold."""
    longest = max(heads.n, heads.m)
    values = tuple(min(getattr(p, field), longest) for p in patterns)
    return _list_of(values, heads.device)


@functools.lru_cache(maxsize=1024)
def _list_of(values: tuple[int, ...], device: torch.device) -> Int32[Tensor, " values"]:
    """Copy numbers to the device, once: layers and prompts share them."""
    return torch.tensor(values, dtype=torch.int32, device=device)


def _empty(heads: Heads, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=heads.device)
