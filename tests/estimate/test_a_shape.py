"""A-shape: sink and window are kept exactly, and little more."""

from __future__ import annotations

import pytest
import torch

from sparsefill import AShape, estimate
from sparsefill.tile import TILE
from tests.support.inputs import causal_mask, offsets, random_qkv

LENGTHS = [(200, 200), (1, 1), (64, 64), (65, 190), (37, 300), (130, 70), (1, 129)]


def mask_of(pattern: AShape, n: int, m: int) -> torch.Tensor:
    q, k, _ = random_qkv(h=1, n=n, m=m)
    return estimate(pattern, q, k).to_mask()[0, 0]


@pytest.mark.parametrize(("n", "m"), LENGTHS)
@pytest.mark.parametrize("sink", [0, 1, 70, 500])
@pytest.mark.parametrize("window", [1, 64, 65, 100, 500])
def test_keeps_sink_and_window_and_less_than_two_tiles_more(n: int, m: int, sink: int, window: int):
    mask = mask_of(AShape(sink=sink, window=window), n, m)
    offset, causal, in_sink = offsets(n, m), causal_mask(n, m), torch.arange(m) < sink
    assert not mask[~causal].any()
    assert bool(mask[causal & (in_sink | (offset < window))].all())
    assert not mask[~in_sink & (offset >= window + 2 * TILE - 2)].any()


@pytest.mark.parametrize(("n", "m"), LENGTHS)
def test_a_window_ends_where_its_row_block_says(n: int, m: int):
    window, causal = 70, causal_mask(n, m)
    row_block_end = (torch.arange(n) // TILE + 1) * TILE + m - n
    tiles = -(-(window + TILE - 1) // TILE)
    expected = causal & (torch.arange(m) >= (row_block_end - tiles * TILE)[:, None])
    assert torch.equal(mask_of(AShape(sink=0, window=window), n, m), expected)


@pytest.mark.parametrize("more", [AShape(sink=9, window=70), AShape(sink=3, window=140)])
def test_a_larger_budget_keeps_every_cell(more: AShape):
    less = mask_of(AShape(sink=3, window=70), 300, 300)
    assert bool((mask_of(more, 300, 300) | ~less).all())


def test_a_budget_beyond_the_prompt_keeps_everything():
    assert torch.equal(mask_of(AShape(), 200, 200), causal_mask(200, 200))


def test_heads_have_budgets_of_their_own():
    q, k, _ = random_qkv(h=3)
    budgets = [AShape(sink=1, window=1), AShape(sink=0, window=150), AShape(sink=90, window=64)]
    together = estimate(budgets, q, k).to_mask()
    for head, pattern in enumerate(budgets):
        assert torch.equal(together[0, head], mask_of(pattern, 200, 200))


def test_memory_does_not_grow_with_the_prompt():
    pattern = AShape(sink=10, window=100)
    sizes = set()
    for n in (200, 2000):
        q, k, _ = random_qkv(h=2, n=n)
        sizes.add(estimate(pattern, q, k).nbytes)
    assert len(sizes) == 1
