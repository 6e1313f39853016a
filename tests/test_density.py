"""Density is the share of causal cells; at a million tokens, neither it nor the index is big."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsefill import Dense, SparseIndex, VerticalSlash, estimate
from sparsefill.density import density
from sparsefill.estimate.tiles import largest, merge_slashes
from sparsefill.index import NEVER
from sparsefill.tile import TILE
from tests.support.inputs import causal_mask, random_qkv
from tests.support.strategies import Recipe, estimates, indices

MILLION = 2**20
LIMIT = 2 * 2**20  # bytes of the index of one layer
BUDGET = VerticalSlash(verticals=1000, slashes=6096)


@given(recipe=indices() | estimates(), pairs=st.sampled_from([1, 50, 2**22]))
def test_density_counts_the_cells_of_the_mask(recipe: Recipe, pairs: int):
    index = recipe()
    lengths = zip(index.query_lengths.tolist(), index.key_lengths.tolist(), strict=True)
    causal = torch.tensor([[int(causal_mask(n, m).sum())] for n, m in lengths])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsefill.density.MAX_PAIRS", pairs)
        share = density(index)
    assert torch.equal(share, index.to_mask().sum((-1, -2)) / causal.clamp(min=1))
    assert bool(((share >= 0) & (share <= 1)).all())


def scattered_scores(x: int) -> torch.Tensor:
    return torch.rand(1, x, MILLION)


def clustered_scores(x: int) -> torch.Tensor:
    """Score runs of 512 neighbouring lines alike, as real heads do near the diagonal."""
    return torch.rand(1, x, MILLION // 512).repeat_interleave(512, dim=-1) + torch.rand(1) / 9


@pytest.fixture(params=[scattered_scores, clustered_scores], ids=["scattered", "clustered"])
def layer_index(request: pytest.FixtureRequest) -> SparseIndex:
    """Build the index of 32 heads from line scores, with the functions of the estimate."""
    b, x = 1, 32
    columns = largest(request.param(x), torch.full((b, x), BUDGET.verticals))
    offsets = largest(request.param(x), torch.full((b, x), BUDGET.slashes))
    tiles, tile_counts = merge_slashes(offsets)
    return SparseIndex(
        n=MILLION,
        m=MILLION,
        query_lengths=torch.tensor([MILLION]).int(),
        key_lengths=torch.tensor([MILLION]).int(),
        slash_tiles=tiles.int(),
        slash_counts=tile_counts.int(),
        column_indices=columns.int(),
        column_counts=(columns < NEVER).sum(-1).int(),
    )


def test_a_layer_of_a_million_tokens_takes_two_mebibytes(layer_index: SparseIndex):
    assert layer_index.column_counts.eq(BUDGET.verticals).all()
    assert int(layer_index.slash_counts.max()) <= BUDGET.slashes
    assert layer_index.nbytes < LIMIT


def test_density_of_a_million_tokens_is_counted_from_the_lists(layer_index: SparseIndex):
    lists = ("slash_counts", "slash_tiles", "column_counts", "column_indices")
    four_heads = {name: getattr(layer_index, name)[:, :4] for name in lists}
    index = replace(layer_index, **four_heads)
    causal = MILLION * (MILLION + 1) / 2
    tiles = index.slash_counts.double() * TILE
    # a column or a slash reads at most every query, and half of them or more on average here
    most = (tiles + index.column_counts) * MILLION / causal
    kept = density(index)
    assert bool((kept <= most).all())
    assert bool((kept >= 0.2 * most).all())


def test_an_estimate_of_a_million_keys_is_small():
    q, k, _ = random_qkv(h=2, n=TILE, m=MILLION, d=8, dtype=torch.float32)
    index = estimate(BUDGET, q, k)
    assert index.m == MILLION
    assert index.column_counts.tolist() == [[BUDGET.verticals] * 2]
    assert index.nbytes * 16 < LIMIT  # two heads, of 32


def test_a_dense_index_of_a_million_keys_is_small():
    q = torch.zeros(1, 1, 1, 8)
    index = estimate(Dense(), q, torch.zeros(1, 1, MILLION, 8))
    assert density(index).item() == 1
    assert index.nbytes <= 66 * 2**10
