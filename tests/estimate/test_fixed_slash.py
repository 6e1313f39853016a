"""Fixed slash: the columns of vertical-slash, and the diagonals that were given."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsefill import FixedSlash, VerticalSlash, estimate
from sparsefill.cost import COSTS, sparse_cost
from sparsefill.tile import TILE
from tests.support.inputs import random_qkv

LENGTHS = [(300, 300), (64, 64), (65, 190), (37, 300), (130, 70), (1, 129), (128, 333)]
OFFSETS = (0, 20, 64, 90, 200, 5000)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize(("n", "m"), LENGTHS)
def test_columns_are_those_of_vertical_slash(n: int, m: int, backend: str):
    q, k, _ = random_qkv(b=2, h=4, g=2, n=n, m=m)
    fixed = FixedSlash(offsets=OFFSETS, verticals=20, probe=30, sink=3)
    lines = VerticalSlash(verticals=20, slashes=70, probe=30, sink=3, window=2)
    one, other = (estimate(own, q, k, backend=backend) for own in (fixed, lines))
    assert torch.equal(one.sorted_columns(), other.sorted_columns())


@pytest.mark.parametrize(("n", "m"), LENGTHS)
def test_given_diagonals_are_kept_whatever_the_input(n: int, m: int):
    q, k, _ = random_qkv(h=1, n=n, m=m)
    mask = estimate(FixedSlash(offsets=OFFSETS, verticals=0, sink=0), q, k).to_mask()[0, 0]
    query = torch.arange(n)
    for offset in OFFSETS:
        key = query + m - n - offset
        there = key >= 0
        assert bool(mask[query[there], key[there]].all())
    assert int(mask.sum(1).max()) <= len(OFFSETS) * TILE


def test_ragged_sequences_keep_only_keys_they_have():
    q, k, _ = random_qkv(b=3, h=2, n=300, m=400)
    queries, keys = torch.tensor([300, 130, 0]), torch.tensor([400, 130, 7])
    fixed = FixedSlash(offsets=OFFSETS, verticals=9, sink=2)
    index = estimate(fixed, q, k, query_lengths=queries, key_lengths=keys)
    tiles = index.sorted_slash_tiles()
    for s, m in enumerate(keys.tolist()):
        own = estimate(fixed, q[s : s + 1, :, : max(1, m)], k[s : s + 1, :, :m])
        assert torch.equal(index.slash_counts[s], own.slash_counts[0])
        assert int(tiles[s][tiles[s] < 2**31 - 1].max()) < m + TILE


@given(offsets=st.sets(st.integers(1, 700), max_size=30))
def test_cost_is_predicted_from_the_tiles_that_are_read(offsets: set[int]):
    pattern = FixedSlash(offsets=(0, *sorted(offsets)), verticals=0, sink=0)
    q = torch.zeros(1, 1, 1024, 8)
    kept = float(estimate(pattern, q, q).keys_read().sum()) / TILE
    costs = COSTS["cpu"]
    fixed = costs.head + costs.row_block * 16 + costs.probe_tile * 16
    assert sparse_cost(pattern, 1024, 1024, costs) - fixed == pytest.approx(costs.tile * kept)
