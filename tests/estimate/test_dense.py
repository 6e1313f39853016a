"""Dense: every causal cell, none other, in a list that stays short."""

from __future__ import annotations

import pytest
import torch

from sparsefill import Dense, estimate
from sparsefill.metrics import density
from sparsefill.tile import TILE
from tests.support.inputs import causal_mask, random_qkv


@pytest.mark.parametrize("n", [1, 63, 64, 65, 127, 1000])
@pytest.mark.parametrize("cached", [-40, 0, 1, 64, 129])
def test_keeps_every_causal_cell(n: int, cached: int):
    m = max(1, n + cached)
    q, k, _ = random_qkv(h=1, n=n, m=m, d=8)
    index = estimate(Dense(), q, k)
    assert torch.equal(index.to_mask()[0, 0], causal_mask(n, m))
    assert density(index).item() == 1


def test_keeps_every_causal_cell_of_ragged_sequences():
    q, k, _ = random_qkv(b=4, h=1, n=150, m=200)
    lengths = [(150, 200), (7, 130), (150, 20), (0, 5)]
    queries, keys = torch.tensor(lengths).unbind(1)
    mask = estimate(Dense(), q, k, query_lengths=queries, key_lengths=keys).to_mask()
    for s, (n, m) in enumerate(lengths):
        expected = torch.zeros(150, 200, dtype=torch.bool)
        expected[:n, :m] = causal_mask(n, m)
        assert torch.equal(mask[s, 0], expected)


def test_lists_one_tile_per_64_keys_and_nothing_else():
    q, k, _ = random_qkv(h=1, n=1000)
    index = estimate(Dense(), q, k)
    assert index.slash_counts.item() == -(-(1000 + TILE - 1) // TILE)
    assert index.column_counts.item() == 0
    assert index.row_ptr is None
