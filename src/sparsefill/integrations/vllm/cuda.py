"""vLLM's FlashAttention backend, with long prompts read sparsely. Not run on a GPU yet."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)

from sparsefill.integrations.vllm.backend import (
    AttendsSparsely,
    PlansSparsely,
    require_served,
)


def gather(kv_cache: Tensor, blocks: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """Gather the first keys and values that some pages hold, each as (g, m, d).

    Args:
        kv_cache: (blocks, g, block, 2 * d) however it lies in memory.
    """
    _, g, block, width = kv_cache.shape
    used = kv_cache[blocks[: -(-keys // block)].long()]
    used = used.transpose(0, 1).reshape(g, -1, width)[:, :keys]
    return used[..., : width // 2], used[..., width // 2 :]


class SparseCUDAImpl(AttendsSparsely, FlashAttentionImpl):
    """Attention on a GPU."""

    def pages(self, kv_cache: Tensor, blocks: Tensor, keys: int) -> tuple[Tensor, Tensor]:
        """Gather a request's keys and values from its pages."""
        return gather(kv_cache, blocks, keys)


class SparseCUDABuilder(PlansSparsely, FlashAttentionMetadataBuilder):
    """Metadata of a step on a GPU."""

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        """Let graphs hold decode steps alone: a replayed prefill would pass us by."""
        own = super().get_cudagraph_support(vllm_config, kv_cache_spec)
        return min(own, AttentionCGSupport.UNIFORM_BATCH, key=lambda support: support.value)


class CUDABackend(FlashAttentionBackend):
    """FlashAttention's backend, chosen as CUSTOM."""

    @staticmethod
    def get_name() -> str:
        """Return the name that vLLM knows the backend by."""
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[FlashAttentionImpl]:
        """Return the class of the layers' attention."""
        require_served(get_current_vllm_config(), "cuda")
        return SparseCUDAImpl

    @staticmethod
    def get_builder_cls() -> type[FlashAttentionMetadataBuilder]:
        """Return the class of what makes a step's metadata."""
        return SparseCUDABuilder
