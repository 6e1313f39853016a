"""vLLM's CPU backend, with long prompts read sparsely.

Its pages hold, for each KV head, first the keys of 128 tokens, transposed, then their values.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from sparsefill.errors import UnsupportedError
from sparsefill.integrations.vllm.backend import (
    AttendsSparsely,
    PlansSparsely,
    is_chosen,
    require_served,
)


def gather(
    kv_cache: Float[Tensor, "blocks g block two_d"], blocks: Tensor, keys: int
) -> tuple[Float[Tensor, "g m d"], Float[Tensor, "g m d"]]:
    """Gather the first keys and values that some pages hold."""
    _, g, block, width = kv_cache.shape
    used = kv_cache[blocks[: -(-keys // block)].long()].reshape(-1, g, 2, block * width // 2)
    k = used[:, :, 0].reshape(-1, g, width // 2, block).permute(1, 0, 3, 2)
    v = used[:, :, 1].reshape(-1, g, block, width // 2).permute(1, 0, 2, 3)
    return k.reshape(g, -1, width // 2)[:, :keys], v.reshape(g, -1, width // 2)[:, :keys]


class SparseCPUImpl(AttendsSparsely, CPUAttentionBackendImpl):
    """Attention on a CPU."""

    def pages(self, kv_cache: Tensor, blocks: Tensor, keys: int) -> tuple[Tensor, Tensor]:
        """Gather a request's keys and values from its pages."""
        return gather(kv_cache, blocks, keys)


class SparseCPUBuilder(PlansSparsely, CPUAttentionMetadataBuilder):
    """Metadata of a step on a CPU."""

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        if self.isa == "amx":  # whose tiles we do not read
            self.isa = "vec"
            self._set_isa_to_layers(layer_names)
        if self.isa != "vec":
            raise UnsupportedError(
                f"sparsefill does not read pages as this CPU's {self.isa!r} kernels lay them out;"
                " it needs x86 with AVX2 or more, and heads whose width 32 divides"
            )


class CPUBackend(CPUAttentionBackend):
    """Stands in vLLM's place, and is vLLM's own unless it was chosen."""

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        """Return the class of the layers' attention."""
        config = get_current_vllm_config()
        if not is_chosen(config):
            return CPUAttentionBackendImpl
        require_served(config, "cpu")
        return SparseCPUImpl

    @staticmethod
    def get_builder_cls() -> type[CPUAttentionMetadataBuilder]:
        """Return the class of what makes a step's metadata."""
        chosen = is_chosen(get_current_vllm_config())
        return SparseCPUBuilder if chosen else CPUAttentionMetadataBuilder
