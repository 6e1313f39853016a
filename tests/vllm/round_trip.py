"""Write keys and values into pages as vLLM does, and gather them as we do.

python -m tests.vllm.round_trip
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import torch
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend

from sparsefill.integrations.vllm.cpu import CPUBackend
from sparsefill.integrations.vllm.cuda import CUDABackend
from sparsefill.integrations.vllm.pages import from_cpu_pages, from_cuda_pages

PAGE, G = 128, 3
OWN = torch.tensor([5, 2, 7], dtype=torch.int32)


def cpu(dtype: torch.dtype, d: int, m: int) -> None:
    k, v = (torch.randn(m, G, d).to(dtype) for _ in range(2))
    cache = torch.zeros(9, G, PAGE, 2 * d, dtype=dtype)
    halves = cache.view(9, G, 2 * PAGE, d).chunk(2, dim=2)
    at = torch.arange(m)
    slots = OWN[at // PAGE].long() * PAGE + at % PAGE
    ops.cpu_attn_reshape_and_cache(
        k, v, *halves, slots, "vec", k_scale=1.0, v_scale=1.0, kv_cache_dtype="auto"
    )
    for got, written in zip(from_cpu_pages(cache, OWN, m), (k, v), strict=True):
        assert torch.equal(got, written.transpose(0, 1)), (dtype, d, m)


def cuda(m: int, *, heads_first: bool) -> None:
    cache = torch.randn(9, G, 16, 2 * 64) if heads_first else torch.randn(9, 16, G, 2 * 64)
    cache = cache if heads_first else cache.transpose(1, 2)
    k, v = cache.transpose(1, 2).split(64, dim=-1)  # as FlashAttention's forward sees them
    for got, seen in zip(from_cuda_pages(cache, OWN, m), (k, v), strict=True):
        rows = torch.cat([seen[page] for page in OWN])[:m]
        assert torch.equal(got, rows.transpose(0, 1)), (m, heads_first)


def main() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for d in (32, 64, 96, 128, 256):
            for m in (1, 127, 128, 129, 300):
                cpu(dtype, d, m)
    for m in (1, 15, 16, 17, 48):
        for heads_first in (True, False):
            cuda(m, heads_first=heads_first)
    assert issubclass(CPUBackend, CPUAttentionBackend)
    assert issubclass(CUDABackend, FlashAttentionBackend)
    assert CPUBackend.get_name() == "CPU_ATTN"
    assert CUDABackend.get_name() == "CUSTOM"
    print("round trip: as written")  # noqa: T201 - what the test waits for


if __name__ == "__main__":
    main()
