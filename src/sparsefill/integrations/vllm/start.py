"""What is settled when a server starts: whether we were chosen, for which layers and heads."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn

import torch

from sparsefill.architecture import Architecture
from sparsefill.errors import SparsefillError, UnsupportedError
from sparsefill.integrations.transformers.run import architecture_of
from sparsefill.integrations.vllm.heads import RankHeads, profile_of
from sparsefill.integrations.vllm.options import Options
from sparsefill.integrations.vllm.steps import log
from sparsefill.kernels import choose_backend

NO_WINDOW = (None, -1, (-1, -1))
BACKENDS = {"cpu": "cpu", "cuda": "triton"}  # by device; a slower one must be asked for


def is_chosen(vllm_config: Any) -> bool:
    """Tell whether the user chose this plugin for the model, or for some of its layers.

    A draft model, which guesses what the model would say, stays vLLM's own.
    """
    attention = vllm_config.attention_config
    chosen = (attention.backend, *(getattr(attention, "backend_per_kind", None) or {}).values())
    drafts = getattr(vllm_config.speculative_config, "draft_model_config", None)
    if drafts is not None and vllm_config.model_config is drafts:
        return False
    return any(getattr(backend, "name", None) == "CUSTOM" for backend in chosen)


def refuse(error: SparsefillError) -> NoReturn:
    """Keep the server from starting, and say why in one line: vLLM itself does so in many."""
    log.error("sparsefill cannot start: %s", error)
    raise error


def require_served(vllm_config: Any, device: str) -> None:
    """Refuse to start with what cannot be served, before weights are loaded."""
    try:
        heads_of(vllm_config, device)
        parallel = vllm_config.parallel_config
        for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
            if getattr(parallel, name, 1) > 1:
                flag = f"--{name.replace('_', '-')}"
                raise UnsupportedError(
                    f"sparsefill does not read prompts whose keys are spread over ranks; leave"
                    f" out {flag}, or --attention-backend CUSTOM"
                )
    except SparsefillError as error:
        refuse(error)


def heads_of(vllm_config: Any, device: str) -> RankHeads:
    """Settle which pattern each head of this rank uses.

    Raises:
        InputError, ProfileError, UnsupportedError: the options cannot be served.
    """
    from vllm.distributed import get_tensor_model_parallel_rank

    options = Options.parse(vllm_config.additional_config)
    model = vllm_config.model_config
    architecture = _architecture_of(model.hf_text_config)
    count = model.get_num_attention_heads(vllm_config.parallel_config)
    backend = BACKENDS.get(device, "auto") if options.backend == "auto" else options.backend
    like = torch.empty(1, 1, 1, architecture.head_dim, dtype=model.dtype, device=device)
    return RankHeads(
        profile=profile_of(options, architecture),
        first=get_tensor_model_parallel_rank() * count,
        count=count,
        min_length=options.min_length,
        backend=choose_backend(backend, like),
    )


def _architecture_of(config: Any) -> Architecture:
    """Read what profiles fit by.

    Raises:
        UnsupportedError: the config does not say it, or says it of each layer apart.
    """
    try:
        return architecture_of(config)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise UnsupportedError(
            f"sparsefill cannot read the heads of this model from its {type(config).__name__}"
            f" ({error}); leave out --attention-backend CUSTOM"
        ) from error


def number_layers(layers: Mapping[str, Any], heads: RankHeads, vllm_config: Any) -> dict[str, int]:
    """Number those layers that can be read sparsely, as the profile does.

    Others are left to vLLM: sliding windows and whatever else is not plain causal attention over
    keys as the model makes them, and layers that the profile does not know, as of a draft.

    Args:
        layers: vLLM's attention layers by name.

    Raises:
        UnsupportedError: there are layers, and none can be read.
    """
    dtype = str(vllm_config.model_config.dtype).removeprefix("torch.")
    numbers, reasons = {}, Counter()
    for name, layer in layers.items():
        number = number_of(name)
        reason = why_left(layer, number, heads, dtype)
        if reason is None:
            numbers[name] = number
        else:
            reasons[reason] += 1
    if layers and not numbers:
        found = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
        raise UnsupportedError(
            f"sparsefill can read none of the {len(layers)} attention layers: {found}; change"
            " that, or leave out --attention-backend CUSTOM"
        )
    return numbers


def why_left(layer: Any, number: int | None, heads: RankHeads, dtype: str) -> str | None:
    """Say why a layer is left to vLLM; None if it can be read sparsely.

    Args:
        number: of the layer.
        dtype: of the model, as `bfloat16`.
    """
    own, known = layer.impl, heads.profile.architecture
    is_chunked = getattr(layer, "attention_chunk_size", None) is not None
    if is_chunked or not getattr(own, "is_plain", False):
        return "attend otherwise than causally to all of their own keys"
    if own.kv_cache_dtype not in ("auto", dtype):
        return f"keep keys and values as {own.kv_cache_dtype}, not as {dtype}"
    widths = (own.head_size, getattr(layer, "head_size_v", own.head_size))
    if number is None:
        return "have no number in their names"
    if number >= known.layers:
        return f"are not among the {known.layers} layers of the profile"
    if own.num_heads != heads.count or widths != (known.head_dim, known.head_dim):
        return f"have other heads than {heads.count} of {known.head_dim}"
    return None


def number_of(name: str) -> int | None:
    """Read a layer's number out of its name; None if that is not clear.

    Example:
        >>> number_of("model.layers.3.self_attn.attn")
        3
    """
    numbers = [int(part) for part in name.split(".") if part.isdecimal()]
    return numbers[0] if len(numbers) == 1 else None


def is_plain(attention: Any) -> bool:
    """Tell whether a layer is a decoder's causal attention to all of its own keys."""
    return (
        attention.attn_type == "decoder"
        and attention.sliding_window in NO_WINDOW
        and attention.alibi_slopes is None
        and getattr(attention, "sinks", None) is None
        and getattr(attention, "kv_sharing_target_layer_name", None) is None
    )
