"""Dense attention in blocks of queries against an explicit mask, within the error budget."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsefill.kernels import dense
from tests.support.closeness import assert_within_budget
from tests.support.inputs import Qkv, causal_mask, offsets, random_qkv, with_garbage
from tests.support.strategies import Shape, shapes

SCALE = 0.2


def eager(qkv: Qkv, lengths: list[tuple[int, int]], softcap: float | None, window: int | None):
    """Attend with the whole mask, one sequence at a time, in the inputs' dtype."""
    out = torch.zeros_like(qkv.q)
    r = qkv.q.shape[1] // qkv.k.shape[1]
    for s, (n, m) in enumerate(lengths):
        q, k, v = qkv.alone(s, n, m)
        mask = causal_mask(n, m) & (offsets(n, m) < (m if window is None else window))
        scores = q @ k.repeat_interleave(r, dim=1).transpose(-1, -2)
        scores = scores.to(torch.promote_types(q.dtype, torch.float32)) * SCALE
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0).to(q.dtype)
        out[s, :, :n] = (weights @ v.repeat_interleave(r, dim=1))[0]
    return out


def assert_is_dense(
    qkv: Qkv,
    queries: Tensor,
    keys: Tensor,
    *,
    softcap: float | None = None,
    window: int | None = None,
) -> None:
    lengths = list(zip(queries.tolist(), keys.tolist(), strict=True))
    got = dense.dense_attention(
        *qkv, scale=SCALE, softcap=softcap, window=window, query_lengths=queries, key_lengths=keys
    )
    assert got.dtype == qkv.q.dtype
    assert_within_budget([got], qkv, lambda own: [eager(own, lengths, softcap, window)])


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("window", [None, 1, 40, 1000])
@pytest.mark.parametrize(
    ("n", "m"), [(1, 1), (300, 300), (65, 190), (190, 65)], ids=["one", "whole", "chunk", "n>m"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_is_attention_with_the_whole_mask(
    n: int, m: int, window: int | None, softcap: float | None, dtype: torch.dtype
):
    qkv = random_qkv(b=2, h=6, g=2, n=n, m=m, dtype=dtype)
    queries, keys = torch.tensor([n] * 2), torch.tensor([m] * 2)
    assert_is_dense(qkv, queries, keys, softcap=softcap, window=window)


@given(
    shape=shapes(),
    window=st.none() | st.integers(1, 200),
    softcap=st.sampled_from([None, 3.0]),
    max_scores=st.sampled_from([1, 5000, 2**22]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.float64]),
)
def test_ragged_batches(
    shape: Shape, window: int | None, softcap: float | None, max_scores: int, dtype: torch.dtype
):
    qkv = shape.qkv(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "MAX_SCORES", max_scores)
        assert_is_dense(qkv, shape.query_lengths, shape.key_lengths, softcap=softcap, window=window)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("window", [None, 40])
def test_garbage_in_padding_changes_nothing(window: int | None, softcap: float | None):
    queries, keys = torch.tensor([[200, 70, 0, 1, 200], [200, 70, 9, 150, 77]])
    clean = random_qkv(b=5, h=4, g=2, dtype=torch.float32)
    qkv = with_garbage(clean, queries, keys)
    assert_is_dense(qkv, queries, keys, softcap=softcap, window=window)


def test_a_window_reads_only_the_keys_that_it_reaches(monkeypatch: pytest.MonkeyPatch):
    widths, attend_block = [], dense._attend_block

    def spy(q: Tensor, k: Tensor, *rest: Tensor, **options: float) -> Tensor:
        widths.append(k.shape[2])
        return attend_block(q, k, *rest, **options)

    monkeypatch.setattr(dense, "_attend_block", spy)
    qkv, length = random_qkv(n=1000, dtype=torch.float32), torch.tensor([1000])
    assert_is_dense(qkv, length, length, window=64)
    assert max(widths) == 64 + 63
