"""Tri-shape: an A-shape whose last queries keep every key."""

from __future__ import annotations

import pytest
import torch

from sparsefill import AShape, Pattern, TriShape, estimate
from sparsefill.tile import TILE
from tests.support.inputs import causal_mask, random_qkv

LENGTHS = [(300, 300), (64, 64), (65, 190), (37, 300), (130, 70), (1, 129), (128, 333)]


def mask_of(pattern: Pattern, n: int, m: int) -> torch.Tensor:
    q, k, _ = random_qkv(h=1, n=n, m=m)
    return estimate(pattern, q, k).to_mask()[0, 0]


@pytest.mark.parametrize(("n", "m"), LENGTHS)
@pytest.mark.parametrize("last", [1, 64, 65, 100, 1000])
def test_the_last_queries_keep_every_key_and_the_others_an_a_shape(n: int, m: int, last: int):
    mask = mask_of(TriShape(sink=3, window=20, last=last), n, m)
    first_dense = max(0, n - last) // TILE * TILE  # rounded to whole row blocks
    assert torch.equal(mask[first_dense:], causal_mask(n, m)[first_dense:])
    assert torch.equal(mask[:first_dense], mask_of(AShape(sink=3, window=20), n, m)[:first_dense])


@pytest.mark.parametrize(
    "more",
    [
        TriShape(sink=9, window=30, last=70),
        TriShape(sink=2, window=90, last=70),
        TriShape(sink=2, window=30, last=140),
    ],
    ids=["sink", "window", "last"],
)
def test_a_larger_budget_keeps_every_cell(more: TriShape):
    less = mask_of(TriShape(sink=2, window=30, last=70), 300, 300)
    assert bool((mask_of(more, 300, 300) | ~less).all())


def test_ragged_sequences_have_last_queries_of_their_own():
    q, k, _ = random_qkv(b=3, h=2, n=300, m=400)
    queries, keys = torch.tensor([300, 130, 0]), torch.tensor([400, 130, 7])
    pattern = TriShape(sink=0, window=1, last=1)
    mask = estimate(pattern, q, k, query_lengths=queries, key_lengths=keys).to_mask()
    for s, (n, m) in enumerate(zip(queries.tolist(), keys.tolist(), strict=True)):
        expected = torch.zeros(300, 400, dtype=torch.bool)
        expected[:n, :m] = mask_of(pattern, n, m) if n else False
        assert torch.equal(mask[s], expected.expand(2, -1, -1))


def test_heads_have_budgets_of_their_own():
    q, k, _ = random_qkv(h=2)
    budgets = [TriShape(sink=1, window=1, last=1), TriShape(sink=0, window=99, last=150)]
    together = estimate(budgets, q, k).to_mask()
    for head, pattern in enumerate(budgets):
        assert torch.equal(together[0, head], mask_of(pattern, 200, 200))
