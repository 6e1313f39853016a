"""Block top-k: the key blocks whose mean scores best, and those that are forced."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from sparsefill import BlockTopK, estimate
from sparsefill.estimate import block_topk
from sparsefill.tile import TILE
from tests.support.inputs import Qkv, causal_mask, plant_block, random_qkv


def mask_of(pattern: BlockTopK, qkv: Qkv) -> Tensor:
    return estimate(pattern, qkv.q, qkv.k).to_mask()


def naive_mask(pattern: BlockTopK, q: Tensor, k: Tensor) -> Tensor:
    """Choose the blocks of one head in plain Python, block of queries by block of queries."""
    n, m, block = len(q), len(k), pattern.block
    mask = torch.zeros(n, m, dtype=torch.bool)
    for first in range(0, n, block):
        rows = slice(first, min(n, first + block))
        nearest, last = first + m - n, rows.stop - 1 + m - n
        starts = [j for j in range(0, m, block) if j <= last]
        window_from = nearest - pattern.window + 1
        forced = {j for j in starts if j < pattern.sink or j + block > window_from}
        query = q[rows].mean(0)
        score = {j: float(query @ k[j : j + block].mean(0)) for j in starts}
        best = sorted(starts, key=lambda j: (j in forced, score[j]), reverse=True)
        for j in best[: max(pattern.blocks, len(forced))]:
            mask[rows, j : j + block] = True
    return mask & causal_mask(n, m)


@pytest.mark.parametrize(("n", "m"), [(400, 400), (1, 1), (65, 500), (150, 333), (200, 90)])
@pytest.mark.parametrize(
    "pattern",
    [
        BlockTopK(blocks=1),
        BlockTopK(blocks=3),
        BlockTopK(blocks=2, block=128),
        BlockTopK(blocks=4, sink=0, window=100),
        BlockTopK(blocks=1, sink=70, window=130),
        BlockTopK(blocks=100, block=192),
        BlockTopK(blocks=1, block=2**30),
    ],
    ids=repr,
)
def test_keeps_the_blocks_that_a_plain_loop_chooses(pattern: BlockTopK, n: int, m: int):
    qkv = random_qkv(h=4, g=2, n=n, m=m)
    mask = mask_of(pattern, qkv)
    for head in range(4):
        expected = naive_mask(pattern, qkv.q[0, head], qkv.k[0, head // 2])
        assert torch.equal(mask[0, head], expected)


@pytest.mark.parametrize("scores", [1, 50])
def test_choosing_in_small_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch, scores: int):
    qkv, pattern = random_qkv(n=500), BlockTopK(blocks=3, window=100)
    at_once = mask_of(pattern, qkv)
    monkeypatch.setattr(block_topk, "MAX_SCORES", scores)
    assert torch.equal(mask_of(pattern, qkv), at_once)


@pytest.mark.parametrize(("row_block", "key_block"), [(3, 1), (6, 2), (6, 5)])
def test_finds_a_planted_block(row_block: int, key_block: int):
    queries, keys = (slice(i * TILE, (i + 1) * TILE) for i in (row_block, key_block))
    qkv = plant_block(random_qkv(n=7 * TILE), queries, keys)
    mask = mask_of(BlockTopK(blocks=2, sink=0), qkv)
    assert bool(mask[..., queries, keys].all())
    assert int(mask[0, 0, queries].any(0).sum()) == 2 * TILE  # the planted one and the diagonal


def test_a_larger_budget_keeps_every_cell():
    qkv = random_qkv(n=500)
    masks = [mask_of(BlockTopK(blocks=blocks), qkv) for blocks in (1, 2, 3, 5, 8)]
    for less, more in itertools.pairwise(masks):
        assert bool((more | ~less).all())
    assert torch.equal(masks[-1][0, 0], causal_mask(500, 500))


@pytest.mark.parametrize("block", [64, 128])
def test_a_row_keeps_its_budget_of_blocks_and_no_more(block: int):
    index = estimate(BlockTopK(blocks=3, block=block), *random_qkv(n=640)[:2])
    tiles = index.key_counts()[0, 0] // TILE
    assert int(tiles.max()) == 3 * block // TILE
    assert tiles[0] == 1  # a tile wholly in the future is not listed


def test_padding_does_not_count_in_a_mean():
    x = torch.ones(1, 1, 100, 4).index_fill(2, torch.arange(70, 100), torch.nan)
    pooled = block_topk.pool(x, torch.tensor([70]).int(), TILE)
    assert torch.equal(pooled, torch.ones(1, 1, 2, 4))
