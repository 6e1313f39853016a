"""Long prompts read sparsely in vLLM's engine: a plugin, inert unless it is chosen.

    vllm serve MODEL --attention-backend CUSTOM

__init__.py   what vLLM calls when it loads plugins: it tells where our backends are
options.py    what the user asks for, in vLLM's `--additional-config`
heads.py      which pattern each head of a rank uses
plan.py       which requests of a step are read sparsely; what is left to vLLM's own backend
backend.py    what both platforms share: plan a step, attend to its requests
cpu.py        vLLM's CPU backend with that, and how it lays out keys and values
cuda.py       the same of FlashAttention
requests.py   what is known of a request over its chunks, told when its prompt has been read
metrics.py    counts, from the processes that attend to the one that serves `/metrics`
"""

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
