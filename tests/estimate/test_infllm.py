"""InfLLM: the older blocks whose best keys match, the same for all heads."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from sparsefill import AShape, InfLLM, estimate
from sparsefill.estimate import infllm
from sparsefill.estimate.heads import Heads
from sparsefill.tile import TILE
from tests.support.inputs import Qkv, causal_mask, plant_block, random_qkv, with_garbage

LENGTHS = [(700, 700), (1, 1), (64, 500), (130, 801), (400, 330), (1, 700), (640, 640)]
SMALL = InfLLM(sink=6, window=80, blocks=2, block=64, representatives=3, queries=128, every=3)


def naive_scores(pattern: InfLLM, q: Tensor, k: Tensor) -> Tensor:
    """Sum what each key receives from the queries that score, one query after the other."""
    n, m = len(q), len(k)
    received = torch.zeros(m, dtype=q.dtype)
    for row in range(max(min(pattern.every, n) - 1, n - m), n, pattern.every):
        p = row + m - n
        keys = [j for j in range(p + 1) if p - max(j, m - n) < pattern.window]
        seen = sorted({*range(min(pattern.sink, p + 1)), *keys})
        weights = (k[seen] @ q[row] * q.shape[1] ** -0.5).softmax(0)
        for j, weight in zip(seen, weights.tolist(), strict=True):
            received[j] += weight * (j in keys)
    return received


def naive_mask(pattern: InfLLM, qkv: Qkv) -> Tensor:
    """Choose the blocks of one sequence in plain Python, group by group."""
    q, k = qkv.q[0], qkv.k[0]
    (h, n, _), (g, m, _) = q.shape, k.shape
    shape = AShape(sink=pattern.sink, window=pattern.window)
    mask = estimate(shape, qkv.q, qkv.k).to_mask()[0]
    band = -(-(min(pattern.window, m) + TILE - 1) // TILE) * TILE
    scores = [naive_scores(pattern, q[head], k[head * g // h]) for head in range(h)]
    for first in range(0, n, pattern.queries):
        rows = slice(first, min(n, first + pattern.queries))
        older = first + TILE + m - n - band
        relevance = {}
        for start in range(pattern.sink, m - pattern.block + 1, pattern.block):
            if start + pattern.block > older:
                continue
            relevance[start] = 0.0
            for head in range(h):
                own = scores[head][start : start + pattern.block]
                best = own.argsort(descending=True)[: pattern.representatives] + start
                mean = k[head * g // h, best].mean(0)
                relevance[start] += float(q[head, rows].mean(0) @ mean)
        for start in sorted(relevance, key=relevance.__getitem__)[-pattern.blocks :]:
            mask[:, rows, start : start + pattern.block] = True
    return mask & causal_mask(n, m)


@pytest.mark.parametrize(("n", "m"), LENGTHS)
@pytest.mark.parametrize(
    "pattern",
    [
        SMALL,
        InfLLM(sink=0, window=64, blocks=1, block=128, representatives=1, queries=64, every=1),
        InfLLM(sink=64, window=200, blocks=3, block=64, representatives=99, queries=256),
        InfLLM(sink=1, window=33, blocks=99, block=64, queries=2**30 // TILE * TILE, every=40),
        InfLLM(),
    ],
    ids=repr,
)
def test_keeps_the_blocks_that_a_plain_loop_chooses(pattern: InfLLM, n: int, m: int):
    qkv = random_qkv(h=4, g=2, n=n, m=m)
    mask = estimate(pattern, qkv.q, qkv.k).to_mask()[0]
    assert torch.equal(mask, naive_mask(pattern, qkv))


@pytest.mark.parametrize("scores", [1, 5000])
def test_scoring_in_small_strips_changes_nothing(monkeypatch: pytest.MonkeyPatch, scores: int):
    qkv = random_qkv(h=4, g=2, n=700)
    at_once = estimate(SMALL, qkv.q, qkv.k).to_mask()
    monkeypatch.setattr(infllm, "MAX_SCORES", scores)
    assert torch.equal(estimate(SMALL, qkv.q, qkv.k).to_mask(), at_once)


@pytest.mark.parametrize(
    ("n", "m", "window"), [(6000, 6000, 500), (6000, 6000, 9000), (70, 9000, 64)]
)
def test_memory_of_scores_is_bounded(monkeypatch: pytest.MonkeyPatch, n: int, m: int, window: int):
    sizes: list[int] = []
    real = Heads.scores

    def scores(heads: Heads, q: Tensor, k: Tensor) -> Tensor:
        made = real(heads, q, k)
        sizes.append(made.numel())
        return made

    monkeypatch.setattr(Heads, "scores", scores)
    monkeypatch.setattr(infllm, "MAX_SCORES", 2**16)
    q, k, _ = random_qkv(h=2, n=n, m=m, d=8, dtype=torch.float32)
    estimate(InfLLM(window=window, sink=4, every=2), q, k)
    least = 2 * (min(m, window if n == m else m) + 4)  # one query of each head
    assert not sizes or max(sizes) <= max(2**16, least)
    assert window > m or len(sizes) > 3


def test_finds_a_planted_block():
    queries, keys = slice(5 * 128, 6 * 128), slice(6 + 2 * 64, 6 + 3 * 64)
    qkv = plant_block(random_qkv(n=700, h=4, g=2), queries, keys)
    mask = estimate(SMALL, qkv.q, qkv.k).to_mask()
    assert bool(mask[..., 640:700, keys].all())


def test_one_key_speaks_for_its_block():
    """A mean over the block would drown in the others; its window's queries tell which it is."""
    q, k, v = random_qkv(n=700, h=2)
    k = 0.1 * k
    k[..., 100, 3] = 40.0
    q[..., 100:180, 3] = q[..., 640:, 3] = 4.0  # the window after the key, and much later
    k[..., 6 + 64 * 3 : 6 + 64 * 4, 3] = 1.0  # a block whose mean is above that of the other
    qkv = Qkv(q, k, v)
    one = InfLLM(sink=6, window=80, blocks=1, block=64, representatives=1, queries=128, every=3)
    mask = estimate(one, qkv.q, qkv.k).to_mask()
    assert bool(mask[..., 640:, 100].all())


def test_all_heads_of_the_pattern_share_one_choice():
    qkv = random_qkv(h=6, g=3, n=700)
    mask = estimate(SMALL, qkv.q, qkv.k).to_mask()[0]
    assert bool((mask == mask[:1]).all())
    alone = [
        estimate(SMALL, qkv.q[:, [head]], qkv.k[:, [head // 2]]).to_mask()[0, 0]
        for head in range(6)
    ]
    assert any(not torch.equal(own, mask[0]) for own in alone)


def test_heads_of_another_budget_choose_apart():
    qkv = random_qkv(h=4, g=2, n=700)
    other = InfLLM(sink=6, window=150, blocks=1, block=64, queries=64)
    patterns = [SMALL, other, SMALL, AShape(sink=1, window=9)]
    mask = estimate(patterns, qkv.q, qkv.k).to_mask()[0]
    both = estimate(SMALL, qkv.q[:, [0, 2]], qkv.k).to_mask()[0]
    assert torch.equal(mask[[0, 2]], both)
    assert torch.equal(mask[1], estimate(other, qkv.q[:, [1]], qkv.k[:, [0]]).to_mask()[0, 0])


def test_a_larger_budget_keeps_every_cell():
    qkv = random_qkv(n=900)
    masks = [
        estimate(
            InfLLM(sink=3, window=70, block=64, blocks=blocks, queries=64), qkv.q, qkv.k
        ).to_mask()
        for blocks in (1, 2, 5, 99)
    ]
    for less, more in itertools.pairwise(masks):
        assert bool((more | ~less).all())
        assert not torch.equal(more, less)


def test_later_queries_change_no_earlier_choice():
    qkv = random_qkv(n=1024, h=4, g=2)
    whole = estimate(SMALL, qkv.q, qkv.k).to_mask()
    half = estimate(SMALL, qkv.q[:, :, :640], qkv.k[:, :, :640]).to_mask()
    assert torch.equal(whole[:, :, :640, :640], half)


def test_sequences_of_a_batch_choose_for_themselves():
    lengths = [(700, 700), (330, 640), (640, 500), (0, 64), (64, 0)]
    qkv = random_qkv(b=len(lengths), h=4, g=2, n=700, m=700)
    queries, keys = torch.tensor(lengths).unbind(1)
    q, k, _ = with_garbage(qkv, queries, keys)
    mask = estimate(SMALL, q, k, query_lengths=queries, key_lengths=keys).to_mask()
    for s, (n, m) in enumerate(lengths):
        expected = torch.zeros_like(mask[s])
        if n and m:
            expected[:, :n, :m] = naive_mask(SMALL, qkv.alone(s, n, m))
        assert torch.equal(mask[s], expected)
