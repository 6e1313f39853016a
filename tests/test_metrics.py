"""Recall, dense log-sum-exp and errors against their definitions, in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from sparsefill import BlockTopK, SparseIndex, VerticalSlash, attend, estimate, metrics
from tests.support.inputs import (
    PATTERNS,
    Qkv,
    causal_mask,
    patterns_of,
    random_qkv,
    with_garbage,
)

SHAPES = pytest.mark.parametrize(
    ("n", "m"), [(1, 1), (200, 200), (65, 190), (190, 65)], ids=["one", "whole", "chunk", "n>m"]
)


def naive_scores(qkv: Qkv, *, scale: float = 32**-0.5, softcap: float | None = None) -> Tensor:
    """Score every query against every key, minus infinity in the future."""
    q, k, _ = qkv.to(torch.float64)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return scores.masked_fill(~causal_mask(q.shape[2], k.shape[2]), -torch.inf)


def recall_of(qkv: Qkv, index: SparseIndex) -> Tensor:
    lse = attend(*qkv, index, backend="reference").lse
    return metrics.recall(lse, metrics.dense_lse(qkv.q, qkv.k))


@pytest.mark.parametrize("name", [*PATTERNS, "mixed"])
@SHAPES
def test_recall_is_the_kept_share_of_the_softmax(name: str, n: int, m: int):
    qkv = random_qkv(b=2, h=6, g=2, n=n, m=m)
    index = estimate(patterns_of(name, 6), qkv.q, qkv.k)
    weights = naive_scores(qkv).softmax(-1)
    kept = (weights * index.to_mask()).sum(-1)
    kept[..., ~causal_mask(n, m).any(-1)] = 1  # there was nothing to lose
    torch.testing.assert_close(recall_of(qkv, index), kept)


def test_a_union_recalls_at_least_as_much_as_each():
    qkv = random_qkv(h=2)
    masks = [estimate(PATTERNS[p], qkv.q, qkv.k).to_mask() for p in ("a-shape", "block-topk")]
    each = [recall_of(qkv, SparseIndex.from_mask(mask)) for mask in masks]
    union = recall_of(qkv, SparseIndex.from_mask(masks[0] | masks[1]))
    assert bool((union >= torch.maximum(*each)).all())
    assert float(union.mean()) > max(float(recall.mean()) for recall in each)


@pytest.mark.parametrize(
    "budgets",
    [
        [VerticalSlash(verticals=v, slashes=5, sink=1, window=1) for v in (1, 10, 40, 160)],
        [VerticalSlash(verticals=0, slashes=s, sink=1, window=1) for s in (1, 2, 4, 8)],
        [BlockTopK(blocks=blocks) for blocks in (2, 3, 5, 7)],
    ],
    ids=["verticals", "slashes", "blocks"],
)
def test_recall_grows_with_the_budget(budgets: list[VerticalSlash] | list[BlockTopK]):
    qkv = random_qkv(n=400)
    recalls = [recall_of(qkv, estimate(p, qkv.q, qkv.k)).mean((0, 2)) for p in budgets]
    for less, more in itertools.pairwise(recalls):
        assert bool((more > less).all())


@pytest.mark.parametrize("max_scores", [1, 3000, 2**22])
@pytest.mark.parametrize("softcap", [None, 2.0])
@SHAPES
def test_dense_lse_is_that_of_all_scores(
    monkeypatch: pytest.MonkeyPatch, n: int, m: int, softcap: float | None, max_scores: int
):
    monkeypatch.setattr(metrics, "MAX_SCORES", max_scores)
    qkv = random_qkv(b=2, h=4, g=2, n=n, m=m)
    got = metrics.dense_lse(qkv.q, qkv.k, scale=0.3, softcap=softcap)
    torch.testing.assert_close(got, naive_scores(qkv, scale=0.3, softcap=softcap).logsumexp(-1))


def test_dense_lse_ignores_padding():
    lengths = [(200, 200), (70, 190), (150, 20), (0, 9), (3, 0)]
    queries, keys = torch.tensor(lengths).unbind(1)
    qkv = random_qkv(b=len(lengths), h=4, g=2)
    q, k, _ = with_garbage(qkv, queries, keys)
    got = metrics.dense_lse(q, k, query_lengths=queries, key_lengths=keys)
    for s, (n, m) in enumerate(lengths):
        expected = torch.full((4, 200), -torch.inf, dtype=torch.float64)
        expected[:, :n] = naive_scores(qkv.alone(s, n, m))[0].logsumexp(-1)
        torch.testing.assert_close(got[s], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_scored_in_float32(dtype: torch.dtype):
    qkv = random_qkv(dtype=dtype)
    got = metrics.dense_lse(qkv.q, qkv.k)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), naive_scores(qkv).logsumexp(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_output_error_is_relative_for_each_head(dtype: torch.dtype):
    dense = random_qkv(b=2, h=3, dtype=dtype).q
    out = dense * torch.tensor([1.0, 0.5, -1.0], dtype=dtype)[:, None, None]
    expected = torch.tensor([[0.0, 0.5, 2.0]] * 2, dtype=torch.promote_types(dtype, torch.float32))
    torch.testing.assert_close(metrics.output_error(out, dense), expected)


def test_output_error_of_nothing_is_zero():
    nothing = torch.zeros(1, 1, 4, 8)
    assert metrics.output_error(nothing, nothing).item() == 0


def test_divergence_of_the_next_token_is_that_of_torch():
    dense, sparse = (random_qkv(h=1, n=5, m=5, seed=seed).q[0, 0] for seed in (1, 2))
    expected = torch.nn.functional.kl_div(
        sparse.log_softmax(-1), dense.log_softmax(-1), log_target=True, reduction="none"
    )
    torch.testing.assert_close(metrics.kl_divergence(dense, sparse), expected.sum(-1))
    assert not metrics.kl_divergence(dense, dense).any()


def test_agreement_is_the_share_of_equal_best_tokens():
    dense = torch.eye(4)
    sparse = dense.clone()
    sparse[0] = dense[1]
    assert metrics.top1_agreement(dense, sparse) == 0.75
