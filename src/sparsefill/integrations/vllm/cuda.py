"""vLLM's FlashAttention backend, with long prompts read sparsely. Not run on a GPU yet."""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

from vllm.config import get_current_vllm_config
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)

from sparsefill.integrations.vllm.backend import AttendsSparsely, PlansSparsely
from sparsefill.integrations.vllm.pages import from_cuda_pages
from sparsefill.integrations.vllm.start import is_chosen, require_served


class SparseCUDAImpl(AttendsSparsely, FlashAttentionImpl):
    """Attention on a GPU."""

    gather = staticmethod(from_cuda_pages)


class SparseCUDABuilder(PlansSparsely, FlashAttentionMetadataBuilder):
    """Metadata of a step on a GPU."""

    def keep(self, metadata: Any) -> None:
        """Copy what the next build would write over: FlashAttention keeps one buffer for it."""
        if metadata.scheduler_metadata is not None:
            metadata.scheduler_metadata = metadata.scheduler_metadata.clone()

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

    @classmethod
    def supports_device_cpu_query_lens_mismatch(cls) -> bool:
        """Tell that steps are planned by the lengths that the host knows."""
        return False

    @staticmethod
    def get_impl_cls() -> type[FlashAttentionImpl]:
        """Return the class of the layers' attention."""
        config = get_current_vllm_config()
        if not is_chosen(config):
            return FlashAttentionImpl
        require_served(config, "cuda")
        return SparseCUDAImpl

    @staticmethod
    def get_builder_cls() -> type[FlashAttentionMetadataBuilder]:
        """Return the class of what makes a step's metadata."""
        chosen = is_chosen(get_current_vllm_config())
        return SparseCUDABuilder if chosen else FlashAttentionMetadataBuilder
