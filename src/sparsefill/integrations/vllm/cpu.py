"""vLLM's CPU backend, with long prompts read sparsely."""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

from vllm.config import get_current_vllm_config
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from sparsefill.errors import UnsupportedError
from sparsefill.integrations.vllm.backend import AttendsSparsely, PlansSparsely
from sparsefill.integrations.vllm.pages import from_cpu_pages
from sparsefill.integrations.vllm.start import is_chosen, refuse, require_served


class SparseCPUImpl(AttendsSparsely, CPUAttentionBackendImpl):
    """Attention on a CPU."""

    gather = staticmethod(from_cpu_pages)


class SparseCPUBuilder(PlansSparsely, CPUAttentionMetadataBuilder):
    """Metadata of a step on a CPU."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.isa == "amx":  # whose tiles we do not read
            self.isa = "vec"
            self._set_isa_to_layers(self.layer_names)
        if self.isa != "vec":
            refuse(
                UnsupportedError(
                    f"sparsefill does not read pages as vLLM's {self.isa!r} kernels lay them out;"
                    " it needs x86 with AVX2 or more, and heads whose width 32 divides"
                )
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
