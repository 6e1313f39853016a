"""Long prompts read sparsely in vLLM's engine: a plugin, inert unless it is chosen.

    vllm serve MODEL --attention-backend CUSTOM

__init__.py   what vLLM calls when it loads plugins: it tells where our backends are
options.py    what the user asks for, in vLLM's `--additional-config`
start.py      what is settled at the start: whether we were chosen, for which layers and heads
heads.py      which pattern each head of a rank uses
plan.py       a step: the chunks that we read, and the rest, which is left to vLLM's own backend
steps.py      which chunks of a step we read, and whose they are
requests.py   what is known of a request over its chunks, told when its prompt has been read
backend.py    what both platforms share: plan a step, attend to its chunks
pages.py      how keys and values lie in the pages of a cache
cpu.py        vLLM's CPU backend with that
cuda.py       its FlashAttention backend with that
metrics.py    counts, from the processes that attend to the one that serves `/metrics`
"""

# pyright: reportMissingImports=false

from __future__ import annotations


def register() -> None:
    """Tell vLLM where our backends are; called in each of its processes, perhaps twice.

    On a CPU vLLM takes its own backend whatever was chosen, so ours stands in its place too,
    and hands out vLLM's classes unless `--attention-backend CUSTOM` was given.
    """
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from sparsefill.integrations.vllm.metrics import serve

    if current_platform.is_cpu():
        for member in (AttentionBackendEnum.CPU_ATTN, AttentionBackendEnum.CUSTOM):
            register_backend(member, f"{__name__}.cpu.CPUBackend")
    elif current_platform.is_cuda_alike():
        register_backend(AttentionBackendEnum.CUSTOM, f"{__name__}.cuda.CUDABackend")
    serve()
