"""The oracle against torch's own attention with an explicit mask, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sparsefill import Attended, SparseIndex, attend, estimate
from tests.support.inputs import PATTERNS, Qkv, patterns_of, random_qkv, with_garbage
from tests.support.strategies import Shape, random_index


def explicit(qkv: Qkv, mask: Tensor, *, scale: float, softcap: float | None = None) -> Attended:
    """Attend with a (b, h, n, m) mask in the plainest way, rows without keys giving zeros."""
    q, k, v = qkv
    r = q.shape[1] // k.shape[1]
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k.repeat_interleave(r, dim=1)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    kept = scores.exp() * mask
    total = kept.sum(-1)
    out = torch.einsum("bhnm,bhmd->bhnd", kept, v.repeat_interleave(r, dim=1))
    return Attended(out / total.clamp(min=1e-300)[..., None], total.log())


@pytest.mark.parametrize("name", [*PATTERNS, "mixed"])
@pytest.mark.parametrize(("h", "g"), [(2, 2), (6, 2), (8, 1)])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (127, 127), (65, 190)])
def test_is_torch_attention_with_the_mask(name: str, h: int, g: int, n: int, m: int):
    qkv = random_qkv(b=2, h=h, g=g, n=n, m=m)
    index = estimate(patterns_of(name, h), qkv.q, qkv.k)
    got = attend(*qkv, index, backend="reference")
    expected = scaled_dot_product_attention(*qkv, attn_mask=index.to_mask(), enable_gqa=True)
    torch.testing.assert_close(got.out, expected)
    torch.testing.assert_close(got.lse, explicit(qkv, index.to_mask(), scale=32**-0.5).lse)


@pytest.mark.parametrize("softcap", [None, 0.5, 30.0])
@pytest.mark.parametrize("scale", [None, 0.0, 0.7])
def test_scales_then_caps_the_scores(scale: float | None, softcap: float | None):
    qkv = random_qkv(h=4, g=2)
    index = estimate(PATTERNS["a-shape"], qkv.q, qkv.k)
    got = attend(*qkv, index, scale=scale, softcap=softcap, backend="reference")
    used = 32**-0.5 if scale is None else scale
    expected = explicit(qkv, index.to_mask(), scale=used, softcap=softcap)
    torch.testing.assert_close(tuple(got), tuple(expected))


def test_query_heads_of_a_group_share_an_index():
    qkv = random_qkv(b=2, h=6, g=2)
    index = estimate(PATTERNS["block-topk"], qkv.q[:, ::3], qkv.k)
    mask = index.to_mask().repeat_interleave(3, dim=1)
    got = attend(*qkv, index, backend="reference")
    torch.testing.assert_close(tuple(got), tuple(explicit(qkv, mask, scale=32**-0.5)))


def test_rows_without_keys_give_zeros_and_minus_infinity():
    qkv = random_qkv(b=1, h=2, n=130, m=130)
    mask = torch.zeros(1, 2, 130, 130, dtype=torch.bool)
    mask[:, 1, 64:128, :10] = True  # a tile cut by key 0, read by the second row block only
    got = attend(*qkv, SparseIndex.from_mask(mask), backend="reference")
    empty = ~mask.any(-1)
    assert bool((got.lse[empty] == -torch.inf).all())
    assert not got.out[empty].any()
    torch.testing.assert_close(tuple(got), tuple(explicit(qkv, mask, scale=32**-0.5)))


@pytest.mark.parametrize("seed", range(5))
def test_padding_is_never_read(seed: int):
    queries, keys = torch.tensor([[130, 70, 0, 1], [150, 60, 9, 150]])
    shape = Shape(4, 4, 2, 130, 150, 32, queries, keys, seed)
    index = random_index(shape)
    qkv = random_qkv(b=4, h=4, g=2, n=130, m=150, seed=seed)
    got = attend(*with_garbage(qkv, queries, keys), index, backend="reference")
    expected = explicit(qkv, index.to_mask(), scale=32**-0.5)
    torch.testing.assert_close(tuple(got), tuple(expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_output_has_the_inputs_dtype_and_the_lse_at_least_float32(dtype: torch.dtype):
    qkv = random_qkv(dtype=dtype)
    got = attend(*qkv, estimate(PATTERNS["dense"], qkv.q, qkv.k), backend="reference")
    assert got.out.dtype == dtype
    assert got.lse.dtype == torch.promote_types(dtype, torch.float32)
