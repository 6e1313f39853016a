"""The cost model: what it counts exactly, how it orders choices, what it leaves alone."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsefill import (
    AShape,
    BlockTopK,
    Dense,
    FixedSlash,
    InfLLM,
    Interleaved,
    TriShape,
    VerticalSlash,
    estimate,
)
from sparsefill.cost import COSTS, Costs, break_even, dense_cost, dense_where_cheaper, sparse_cost
from sparsefill.estimate import estimate_cells
from sparsefill.patterns import Pattern
from sparsefill.tile import TILE

BACKENDS = [*COSTS]
PATTERNS = [
    AShape(sink=64, window=512),
    TriShape(sink=64, window=512, last=100),
    VerticalSlash(verticals=500, slashes=200),
    FixedSlash(offsets=(0, 50, 300, 400, 1000), verticals=500),
    BlockTopK(blocks=8),
    Interleaved(sink=64, even=512),
    Interleaved(sink=64, even=256, odd=768),
    InfLLM(sink=64, window=512, blocks=4),
]
EACH_TILE = Costs(**{field.name: float(field.name == "tile") for field in fields(Costs)})


@given(n=st.integers(1, 400), more=st.integers(0, 300))
def test_dense_cost_counts_the_tiles_that_the_index_reads(n: int, more: int):
    q, k = torch.zeros(1, 1, n, 8), torch.zeros(1, 1, n + more, 8)
    counts = estimate(Dense(), q, k).key_counts()
    ends = torch.arange(1, counts.shape[-1] + 1) * TILE + more
    inside = torch.minimum(counts[0, 0], ends.clamp(max=-(-(n + more) // TILE) * TILE))
    assert dense_cost(n, n + more) >= float((inside // TILE).sum())
    assert dense_cost(n, n + more) <= float((-(-ends // TILE)).sum())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_dense_below_the_break_even_and_sparse_from_there_on(pattern: Pattern, backend: str):
    length = break_even(pattern, backend)
    assert length is not None
    for n, expected in ((length - TILE, Dense()), (length, pattern), (4 * length, pattern)):
        assert dense_where_cheaper((pattern,), n, n, backend) == (expected,)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_cost_grows_with_the_prompt(pattern: Pattern):
    costs = COSTS["cpu"]
    grown = [sparse_cost(pattern, n, n, costs) for n in (64, 512, 4096, 32768)]
    assert grown == sorted(grown)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_long_prompt_costs_far_less_than_dense(pattern: Pattern):
    n = 131_072
    assert sparse_cost(pattern, n, n, COSTS["cpu"]) < 0.1 * dense_cost(n, n)


@pytest.mark.parametrize("n", [4096, 1024])
@pytest.mark.parametrize("pattern", [PATTERNS[0], *PATTERNS[5:7]], ids=str)
def test_static_patterns_are_predicted_as_they_are_kept(pattern: Pattern, n: int):
    """Without the constants, the prediction is the number of tiles and columns read."""
    q = torch.zeros(1, 1, 4096, 8)
    kept = float(estimate_cells(pattern, q[:, :, :n], q).keys_read().sum()) / TILE
    assert sparse_cost(pattern, n, 4096, EACH_TILE) == pytest.approx(kept, rel=0.05)


def test_each_head_is_chosen_for_itself():
    heads = (Dense(), AShape(sink=1, window=64), AShape(sink=1, window=4096))
    assert dense_where_cheaper(heads, 2048, 2048, "cpu") == (Dense(), heads[1], Dense())


def test_a_chunk_after_cached_keys_pays_earlier_than_a_prompt():
    pattern = VerticalSlash(verticals=256, slashes=64)
    assert dense_where_cheaper((pattern,), 512, 512, "cpu") == (Dense(),)
    assert dense_where_cheaper((pattern,), 512, 32_768, "cpu") == (pattern,)


def test_the_oracle_computes_what_it_is_given():
    assert dense_where_cheaper((AShape(),), 64, 64, "reference") == (AShape(),)


def test_an_instruction_set_costs_what_its_backend_costs():
    pattern = PATTERNS[0]
    assert [dense_where_cheaper((pattern,), n, n, "cpu-avx2") for n in (256, 8192)] == [
        dense_where_cheaper((pattern,), n, n, "cpu") for n in (256, 8192)
    ]
