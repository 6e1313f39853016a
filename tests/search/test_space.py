"""Candidates of one target cost the same in the kernel, whatever their family."""

from __future__ import annotations

import pytest
import torch

from sparsefill import AShape, BlockTopK, estimate
from sparsefill.search.space import (
    PAPER,
    SEEDS,
    LineCosts,
    Seed,
    Target,
    align_a_shape,
    dense_keys,
    patterns_of,
    sink_keys,
    tile_keys,
)
from sparsefill.tile import TILE
from tests.support.layers import planted_layer, random_layer

LENGTHS = (256, 1000, 2048)


def keys_read(pattern, layer) -> list[int]:
    """Count the keys that the kernels read: tiles whole, and columns that no tile covers."""
    index = estimate(pattern, layer.q, layer.k, scale=layer.scale)
    ends, columns = index.row_block_ends()[0], index.sorted_columns()[0]
    found = []
    for head, slashes in enumerate(index.sorted_slash_tiles()[0]):
        total = 0
        for row_block, end in enumerate(ends.tolist()):
            starts = [end - TILE - o for o in slashes.tolist() if o < end]
            if index.row_ptr is not None and index.tile_starts is not None:
                first, last = index.row_ptr[0, head, row_block : row_block + 2].tolist()
                starts += index.tile_starts[first:last].tolist()
            inside = {key for start in starts for key in range(start, start + TILE)}
            total += TILE * len(starts)
            total += sum(c < end and c not in inside for c in columns[head].tolist())
        found.append(total)
    return found


@pytest.mark.parametrize("n", LENGTHS)
def test_closed_forms_are_what_the_index_counts(n: int):
    layer = random_layer(n, h=1, g=1)
    assert keys_read(BlockTopK(blocks=5), layer) == [tile_keys(5, n)]
    assert keys_read(AShape(sink=0, window=129), layer) == [tile_keys(3, n)]
    assert keys_read(AShape(sink=77, window=1), layer) == [tile_keys(1, n) + sink_keys(77, 1, n)]
    assert dense_keys(n) == tile_keys(n, n)


def test_the_seeds_of_the_paper_at_its_own_length():
    target = Target(keys=sink_keys(1024, 64, 30_000) + tile_keys(64, 30_000), tokens=30_000)
    found = align_a_shape(PAPER[0], target)
    assert found.sink == pytest.approx(1024, abs=64)
    assert found.window == pytest.approx(4096, abs=128)
    assert target.blocks == 80  # the paper's block-sparse head keeps 100
    assert {seed.family for seed in PAPER} == {"a-shape", "vertical-slash", "block-topk"}


@pytest.mark.parametrize("cost", [0.15, 0.3, 0.6])
@pytest.mark.parametrize("seed", SEEDS, ids=lambda s: f"{s.family}-{s.columns:.2g}")
@pytest.mark.parametrize("kind", ["random", "vertical-slash"])
def test_costs_align(kind: str, seed: Seed, cost: float):
    layer = random_layer(2048) if kind == "random" else planted_layer(kind, 2048)
    target = Target.of_cost(cost, 2048).whole()
    lines = LineCosts.measure(layer.q, layer.k, scale=layer.scale)
    patterns = patterns_of(seed, target, lines)
    assert {pattern.name for pattern in patterns} == {seed.family}
    for keys in keys_read(patterns, layer):
        assert keys == pytest.approx(target.keys, rel=0.02)


def test_heads_are_aligned_one_by_one():
    one, other = random_layer(1024, h=1, g=1), planted_layer("vertical-slash", 1024)
    q, k = (torch.cat([getattr(x, name) for x in (one, other)], dim=1) for name in "qk")
    target = Target.of_cost(0.3, 1024).whole()
    seed = Seed(family="vertical-slash", columns=0.1)
    both = patterns_of(seed, target, LineCosts.measure(q, k, scale=one.scale))
    alone = [
        patterns_of(seed, target, LineCosts.measure(x.q, x.k, scale=x.scale))[0]
        for x in (one, other)
    ]
    assert list(both) == alone
    assert len(set(alone)) == 2


def test_columns_take_the_share_of_their_seed():
    lines = [16, 64, 256, 1024, 4096]
    tiles = torch.tensor([[64.0 * 128 * count / 16] for count in lines]).double()
    columns = torch.tensor([[128.0 * count] for count in lines]).double().expand(5, 5, 1)
    costs = LineCosts(lines=lines, tiles=tiles, columns=columns)
    target = Target(keys=128 * 1100, tokens=8192)
    found = [
        costs.align(Seed(family="vertical-slash", columns=share), target)[0]
        for share in (0.01, 0.5, 0.9)
    ]
    # slashes take what the columns leave: in whole steps, and columns take the rest
    assert [(p.slashes, p.verticals) for p in found] == [(256, 80), (64, 848), (64, 1040)]


def test_a_target_that_no_family_can_undercut_is_the_least():
    assert Target.of_cost(0.0001, 8192).whole().blocks == 3
    assert Target.of_cost(1.0, 8192).whole().blocks == 128
    assert Target.of_cost(0.5, 640).whole().keys <= 0.5 * dense_keys(640)
