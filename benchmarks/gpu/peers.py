"""Other people's attention on a GPU: torch's own kernels, FlashAttention-3, FlexAttention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.peers import sdpa
from benchmarks.problem import Qkv
from sparsefill.errors import UnsupportedError

Attend = Callable[[Qkv], Float[Tensor, "1 h n d"]]

FA3_MODULES = ("flash_attn_interface", "flash_attn_3.flash_attn_interface")  # of its own project
VLLM_MODULES = (  # vLLM's build of it, whole or alone in a folder
    "vllm.vllm_flash_attn.flash_attn_interface",
    "vllm_flash_attn.flash_attn_interface",
)
# Of FlexAttention's kernel: its tiles must divide the blocks of the mask, which are of 64;
# what it would choose itself for 128 rows and 8 warps is halved.
FLEX_OPTIONS = {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 3}


def sdpa_by(kind: SDPBackend, qkv: Qkv) -> Float[Tensor, "1 h n d"]:
    """Attend densely with one of torch's own kernels, or raise."""
    with sdpa_kernel(kind):
        return sdpa(qkv)


def repeat_heads(qkv: Qkv) -> Qkv:
    """Give each query head keys and values of its own, for a kernel that knows no groups."""
    r = qkv.q.shape[1] // qkv.k.shape[1]
    return Qkv(qkv.q, *(t.repeat_interleave(r, dim=1) for t in qkv[1:]))


def find_fa3() -> Attend:
    """Return FlashAttention-3 wherever it is installed.

    Raises:
        UnsupportedError: it is not.
    """
    reasons = []
    for names, attend, function in (
        (FA3_MODULES, _fa3, "flash_attn_func"),
        (VLLM_MODULES, _fa3_of_vllm, "flash_attn_varlen_func"),
    ):
        for name in names:
            try:
                return partial(attend, getattr(import_module(name), function))
            except Exception as error:  # a build for another torch may fail in any way
                reasons.append(f"{name}: {str(error).partition(chr(10))[0]}")
    raise UnsupportedError("FlashAttention-3 is not installed: " + "; ".join(reasons))


def _fa3(function: Any, qkv: Qkv) -> Float[Tensor, "1 h n d"]:
    return _result(function(*(t.transpose(1, 2) for t in qkv), causal=True)).transpose(1, 2)


def _fa3_of_vllm(function: Any, qkv: Qkv) -> Float[Tensor, "1 h n d"]:
    n = qkv.q.shape[2]
    ends = torch.arange(0, n + 1, n, dtype=torch.int32, device=qkv.q.device)  # 0 and n
    q, k, v = (t[0].transpose(0, 1) for t in qkv)
    out = function(
        q, k, v,
        max_seqlen_q=n, cu_seqlens_q=ends, max_seqlen_k=n, cu_seqlens_k=ends,
        causal=True, fa_version=3,
    )  # fmt: skip
    return _result(out).transpose(0, 1)[None]


def _result(returned: Any) -> Tensor:
    """Return the output alone: some versions return the log-sum-exp as well."""
    return returned[0] if isinstance(returned, tuple | list) else returned


DENSE: dict[str, Callable[[], Attend]] = {  # raises where a kernel is not installed
    "sdpa-cudnn": lambda: partial(sdpa_by, SDPBackend.CUDNN_ATTENTION),
    "sdpa-flash": lambda: partial(sdpa_by, SDPBackend.FLASH_ATTENTION),
    "fa3": find_fa3,
}
