"""Vertical-slash: the lines that the probe queries attend to most, merged into tiles."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsefill import VerticalSlash, estimate
from sparsefill.estimate import tiles, vertical_slash
from sparsefill.estimate.heads import Heads
from sparsefill.index import NEVER
from sparsefill.tile import TILE
from tests.support.inputs import (
    Qkv,
    causal_mask,
    offsets,
    plant_column,
    plant_slash,
    random_qkv,
    with_garbage,
)


def naive_line_sums(
    q: Tensor, k: Tensor, *, probe: int, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Sum the attention of one head's last queries by column and by offset, in float64."""
    n, m = len(q), len(k)
    scores = q.double() @ k.double().T * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~causal_mask(n, m), -torch.inf).softmax(-1).nan_to_num(0)
    weights, offset = weights[-probe:], offsets(n, m)[-probe:]
    diagonals = torch.zeros(m, dtype=torch.float64)
    diagonals.index_add_(0, offset.clamp(min=0).flatten(), weights.flatten())
    return weights.sum(0), diagonals


def heads_of(
    qkv: Qkv, *, softcap: float | None = None, lengths: list[tuple[int, int]] | None = None
) -> Heads:
    b, h, n, _ = qkv.q.shape
    queries, keys = torch.tensor(lengths or [(n, qkv.k.shape[2])] * b).int().unbind(1)
    return Heads(
        q=qkv.q,
        k=qkv.k,
        members=torch.arange(h),
        scale=0.3,
        softcap=softcap,
        query_lengths=queries,
        key_lengths=keys,
    )


def lone_index(qkv: Qkv, **budget: int):
    return estimate(VerticalSlash(**budget), qkv.q, qkv.k)


@pytest.mark.parametrize("max_scores", [1, 999, 2**22])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(
    ("n", "m"), [(1, 1), (90, 90), (30, 211), (128, 65)], ids=["one", "whole", "chunk", "n>m"]
)
def test_line_sums_are_those_of_the_whole_attention_matrix(
    monkeypatch: pytest.MonkeyPatch, n: int, m: int, softcap: float | None, max_scores: int
):
    monkeypatch.setattr(vertical_slash, "MAX_SCORES", max_scores)
    qkv = random_qkv(b=2, h=4, g=2, n=n, m=m, d=16)
    lengths = [(n, m), (n - n // 3, m - m // 4)]
    garbage = with_garbage(qkv, *torch.tensor(lengths).unbind(1))
    probes = [1, 20, 64, 500]
    heads = heads_of(garbage, softcap=softcap, lengths=lengths)
    columns, diagonals = vertical_slash.line_sums(heads, torch.tensor(probes))
    for s, head in itertools.product(range(2), range(4)):
        rows, keys = lengths[s]
        q, k = qkv.q[s, head, :rows], qkv.k[s, head // 2, :keys]
        naive = naive_line_sums(q, k, probe=probes[head], scale=0.3, softcap=softcap)
        for sums, expected in zip((columns, diagonals), naive, strict=True):
            torch.testing.assert_close(sums[s, head, :keys], expected)
            assert not sums[s, head, keys:].any()


@pytest.mark.parametrize("key", [0, 77, 135])
def test_finds_a_planted_column(key: int):
    index = lone_index(
        plant_column(random_qkv(), key), verticals=1, slashes=1, probe=64, sink=0, window=0
    )
    assert index.column_indices.tolist() == [[[key], [key]]]


@pytest.mark.parametrize("offset", [0, 50, 128, 170])
def test_finds_a_planted_slash(offset: int):
    index = lone_index(
        plant_slash(random_qkv(), offset), verticals=0, slashes=1, probe=64, sink=0, window=0
    )
    assert index.slash_tiles[index.slash_tiles < NEVER].tolist() == [offset, offset]
    mask, distance = index.to_mask()[0, 0], offsets(200, 200)
    assert bool(mask[distance == offset].all())


@pytest.mark.parametrize("h", [1, 3])
def test_keeps_the_best_lines_of_each_head(h: int):
    qkv = random_qkv(h=h)
    index = lone_index(qkv, verticals=12, slashes=9, probe=40, sink=0, window=0)
    mask, offset = index.to_mask(), offsets(200, 200)
    for head in range(h):
        columns, diagonals = naive_line_sums(
            qkv.q[0, head], qkv.k[0, 0], probe=40, scale=32**-0.5, softcap=None
        )
        best = columns.topk(12).indices.sort().values
        assert index.column_indices[0, head].tolist() == best.tolist()
        assert bool(mask[0, head][torch.isin(offset, diagonals.topk(9).indices)].all())


@pytest.mark.parametrize(("n", "m"), [(200, 200), (70, 333), (150, 90)])
def test_forced_lines_are_kept_inside_the_budget(n: int, m: int):
    qkv = random_qkv(n=n, m=m)
    index = lone_index(qkv, verticals=5, slashes=7, sink=4, window=6)
    mask, offset = index.to_mask(), offsets(n, m)
    forced = causal_mask(n, m) & ((torch.arange(m) < 4) | (offset < 6))
    assert bool(mask[..., forced].all())
    assert index.column_counts.unique().tolist() == [5]
    sink_alone = lone_index(qkv, verticals=0, slashes=0, sink=4, window=6).column_indices
    assert sink_alone.tolist() == [[[0, 1, 2, 3]] * 2]


def test_more_verticals_keep_every_cell():
    qkv = random_qkv()
    masks = [lone_index(qkv, verticals=v, slashes=5).to_mask() for v in (0, 3, 31, 60, 200)]
    for less, more in itertools.pairwise(masks):
        assert bool((more | ~less).all())
    assert torch.equal(masks[-1][0, 0], causal_mask(200, 200))


def test_more_slashes_keep_every_earlier_line():
    qkv = random_qkv(n=400)
    kept = [lone_index(qkv, verticals=0, slashes=s, window=1).to_mask() for s in (1, 3, 9, 400)]
    whole = [{o for o in range(400) if mask[0, 0].diagonal(-o).all()} for mask in kept]
    for less, more in itertools.pairwise(whole):
        assert less <= more
    assert len(whole[-1]) == 400


@pytest.mark.parametrize("tile", [1, 2, 4])
@given(slashes=st.sets(st.integers(0, 13), max_size=7))
def test_merging_slashes_needs_as_few_disjoint_tiles_as_any(tile: int, slashes: set[int]):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE", tile)
        merged = merge(sorted(slashes))
    needed = cells(slashes, tile)
    assert needed <= cells(merged, tile)
    assert all(later - earlier >= tile for earlier, later in itertools.pairwise(merged))
    fewer = itertools.combinations(range(-tile, 14), max(0, len(merged) - 1))
    assert not merged or not any(needed <= cells(other, tile) for other in fewer)


def test_merging_treats_heads_apart():
    rows = [[0, 1, 64, 65, 300], [5, NEVER, NEVER, NEVER, NEVER], [NEVER] * 5]
    merged, counts = tiles.merge_slashes(torch.tensor([rows]))
    assert counts.tolist() == [[4, 1, 0]]
    assert merged[0, 0, :4].tolist() == [0, TILE, 2 * TILE, 300]
    assert merged[0, 1, 0] == 5


def test_the_largest_scores_are_listed_in_order_and_impossible_ones_never():
    scores = torch.tensor([[3.0, 9.0, torch.inf, 5.0], [1.0, -torch.inf, -torch.inf, 2.0]])
    assert tiles.largest(scores, torch.tensor([2, 4])).tolist() == [
        [1, 2, NEVER, NEVER],
        [0, 3, NEVER, NEVER],
    ]
    assert tiles.largest(scores, torch.tensor([0, 0])).tolist() == [[NEVER], [NEVER]]


def merge(slashes: list[int]) -> list[int]:
    merged, counts = tiles.merge_slashes(torch.tensor([[[*slashes, NEVER]]]))
    return merged[0, 0, : counts.item()].tolist()


def cells(starts, tile: int) -> set[int]:
    return {start + step for start in starts for step in range(tile)}
