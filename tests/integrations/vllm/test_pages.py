"""Keys and values are found in pages, wherever they lie."""

from __future__ import annotations

import pytest
import torch

from sparsefill.integrations.vllm.pages import from_cpu_pages, from_cuda_pages

G, PAGE, D = 2, 32, 48


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("m", [1, 31, 32, 33, 96, 100])
@pytest.mark.parametrize("layout", ["cpu", "cuda"])
def test_what_was_written_is_read(layout: str, m: int, dtype: torch.dtype):
    k, v = (torch.randn(m, G, D).to(dtype) for _ in range(2))
    own = torch.tensor([5, 2, 7, 1], dtype=torch.int32)[: -(-m // PAGE)]
    cache = torch.full((9, G, PAGE, 2 * D), torch.nan, dtype=dtype)
    for at in range(m):
        page, slot = int(own[at // PAGE]), at % PAGE
        for head in range(G):
            if layout == "cpu":
                flat = cache[page, head].view(-1)
                flat[: PAGE * D].view(D, PAGE)[:, slot] = k[at, head]
                flat[PAGE * D :].view(PAGE, D)[slot] = v[at, head]
            else:
                cache[page, head, slot] = torch.cat([k[at, head], v[at, head]])
    gather = from_cpu_pages if layout == "cpu" else from_cuda_pages
    wide = torch.cat([own, torch.full((3,), 8, dtype=torch.int32)])  # what follows is not ours
    got_k, got_v = gather(cache, wide, m)
    assert torch.equal(got_k, k.transpose(0, 1))
    assert torch.equal(got_v, v.transpose(0, 1))


def test_strides_of_the_cuda_cache_do_not_matter():
    cache = torch.randn(9, PAGE, G, 2 * D)  # as FlashAttention's kernels like it
    seen = cache.transpose(1, 2)
    own = torch.tensor([4, 0])
    for got, expected in zip(
        from_cuda_pages(seen, own, 40), from_cuda_pages(seen.contiguous(), own, 40), strict=True
    ):
        assert torch.equal(got, expected)
