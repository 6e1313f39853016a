"""Laws of every family, alone and mixed: heads, sequences and padding do not interfere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsefill import Dense, ShapeError, SparseIndex, estimate
from tests.support.inputs import PATTERNS, patterns_of, random_qkv, with_garbage

every_pattern = pytest.mark.parametrize("name", [*PATTERNS, "mixed"])
# what a head keeps follows from itself alone, and from the last queries
own_pattern = pytest.mark.parametrize("name", [*(n for n in PATTERNS if n != "infllm"), "mixed"])
LENGTHS = [(300, 300), (70, 130), (300, 129), (1, 1), (0, 50), (65, 65)]


@every_pattern
def test_permuting_the_batch_permutes_the_index(name: str):
    q, k, _ = random_qkv(b=3, h=6, g=2)
    order = torch.tensor([2, 0, 1])
    mask = estimate(patterns_of(name, 6), q, k).to_mask()
    assert torch.equal(estimate(patterns_of(name, 6), q[order], k[order]).to_mask(), mask[order])


@own_pattern
def test_each_head_keeps_what_it_keeps_alone(name: str):
    q, k, _ = random_qkv(h=12, g=3)
    patterns = patterns_of(name, 12)
    together = estimate(patterns, q, k).to_mask()
    for head, pattern in enumerate(patterns):
        own_k = k[:, head // 4, None]
        assert torch.equal(
            together[:, head, None], estimate(pattern, q[:, head, None], own_k).to_mask()
        )


@every_pattern
def test_permuting_the_heads_permutes_the_index(name: str):
    q, k, _ = random_qkv(h=6, g=6)
    order = torch.tensor([5, 3, 0, 1, 4, 2])
    patterns = patterns_of(name, 6)
    mask = estimate(patterns, q, k).to_mask()
    permuted = estimate([patterns[head] for head in order], q[:, order], k[:, order]).to_mask()
    assert torch.equal(permuted, mask[:, order])


@pytest.mark.parametrize("name", PATTERNS)
def test_one_pattern_is_the_same_pattern_for_each_head(name: str):
    q, k, _ = random_qkv(b=2, h=4, g=2)
    one, each = estimate(PATTERNS[name], q, k), estimate([PATTERNS[name]] * 4, q, k)
    assert same_tensors(one, each)


@every_pattern
def test_a_padded_sequence_keeps_what_it_keeps_alone(name: str):
    qkv = random_qkv(b=len(LENGTHS), h=6, g=2, n=300, m=300)
    queries, keys = torch.tensor(LENGTHS).unbind(1)
    q, k, _ = with_garbage(qkv, queries, keys)
    patterns = patterns_of(name, 6)
    padded = estimate(patterns, q, k, query_lengths=queries, key_lengths=keys).to_mask()
    for s, (n, m) in enumerate(LENGTHS):
        expected = torch.zeros(6, 300, 300, dtype=torch.bool)
        if n:
            own_q, own_k, _ = qkv.alone(s, n, m)
            expected[:, :n, :m] = estimate(patterns, own_q, own_k).to_mask()[0]
        assert torch.equal(padded[s], expected)


@own_pattern
@pytest.mark.parametrize("n", [128, 256])  # whole blocks of queries
def test_a_chunk_of_queries_keeps_what_the_whole_prompt_keeps_there(name: str, n: int):
    q, k, _ = random_qkv(h=6, g=2, n=384)
    patterns = patterns_of(name, 6)
    whole = estimate(patterns, q, k).to_mask()
    chunk = estimate(patterns, q[:, :, -n:], k).to_mask()
    assert torch.equal(chunk, whole[:, :, -n:])


@every_pattern
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_scored_in_float32(name: str, dtype: torch.dtype):
    q, k, _ = random_qkv(h=6, g=2, dtype=dtype)
    patterns = patterns_of(name, 6)
    wide = estimate(patterns, q.float(), k.float(), backend="torch")
    assert same_tensors(estimate(patterns, q, k, backend="torch"), wide)


@pytest.mark.parametrize("name", ["dense", "a-shape", "block-topk", "block-topk-128", "infllm"])
def test_later_queries_do_not_change_what_earlier_ones_keep(name: str):
    q, k, _ = random_qkv(h=2, n=256)
    whole = estimate(PATTERNS[name], q, k).to_mask()
    half = estimate(PATTERNS[name], q[:, :, :128], k[:, :, :128]).to_mask()
    assert torch.equal(whole[:, :, :128, :128], half)


def test_static_families_stay_free_of_rows_beside_one_another():
    q, k, _ = random_qkv(h=3)
    names = ("dense", "a-shape", "vertical-slash")
    index = estimate([PATTERNS[name] for name in names], q, k)
    assert index.row_ptr is None
    assert index.tile_starts is None


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_wrong_number_of_patterns_is_refused(count: int):
    q, k, _ = random_qkv(h=2)
    with pytest.raises(ShapeError, match=f"got {count} patterns for h=2; pass one pattern"):
        estimate([Dense()] * count, q, k)


def same_tensors(one: SparseIndex, other: SparseIndex) -> bool:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)
