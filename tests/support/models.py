"""Tiny random models of the families that the hook must serve, and how to judge them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

VOCABULARY = 128
WINDOW = 48  # of the sliding-window families: shorter than a row block, and not a power of 2

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,  # ten times the usual: attention is peaked, mistakes are visible
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + i for i in range(8)],
}
MIXED = {"layer_types": ["sliding_attention", "full_attention"]}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {  # class of the config, its options
    "llama-3": ("LlamaConfig", {"rope_theta": 500_000.0}),
    "llama-3.1": ("LlamaConfig", {"rope_theta": 500_000.0, "rope_scaling": LLAMA3_ROPE}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "phi3": ("Phi3Config", {}),
    "glm": ("GlmConfig", {}),
    "glm4": ("Glm4Config", {"head_dim": 32}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "mistral-window": ("MistralConfig", {"sliding_window": WINDOW}),
    "gemma2": (
        "Gemma2Config",
        {
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 30,
            "attn_logit_softcapping": 2.0,
            **MIXED,
        },
    ),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": WINDOW, "query_pre_attn_scalar": 30} | MIXED),
}
LATE_ROPE: dict[str, tuple[str, dict[str, Any]]] = {  # frequencies follow the longest position
    "longrope": (
        "Phi3Config",
        {
            "max_position_embeddings": 512,
            "original_max_position_embeddings": 64,
            "rope_scaling": LONGROPE,
        },
    ),
    "dynamic-ntk": (
        "LlamaConfig",
        {"max_position_embeddings": 64, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    ),
}
WINDOWED = ("mistral-window", "gemma2", "gemma3")
FULL = tuple(name for name in FAMILIES if name not in WINDOWED)


def tiny_model(family: str, attention: str = "sdpa", **options: Any) -> Any:
    """Build a model in float32: the same weights for the same family and options."""
    name, own = {**FAMILIES, **LATE_ROPE}[family]
    config = getattr(transformers, name)(**{**SIZES, **own, **options})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases, which start as ones and zeros
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def exact_model(family: str, **options: Any) -> Any:
    """Build the oracle: the same weights in float64, with eager attention."""
    return tiny_model(family, "eager", **options).double()


def prompt(n: int, *, rows: int = 1, seed: int = 0) -> Tensor:
    """Draw token ids, special ones left out."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (rows, n), generator=generator)


def pad(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Put prompts of different lengths into one batch: its ids and its attention mask."""
    n = max(row.shape[1] for row in rows)
    gaps = [n - row.shape[1] for row in rows]
    places = [(gap, 0) if side == "left" else (0, gap) for gap in gaps]
    ids = [torch.nn.functional.pad(row, place) for row, place in zip(rows, places, strict=True)]
    masks = [
        torch.nn.functional.pad(torch.ones_like(row), place)
        for row, place in zip(rows, places, strict=True)
    ]
    return torch.cat(ids), torch.cat(masks)


def logits_of(model: Any, ids: Tensor, **options: Any) -> Tensor:
    """Read a prompt at once and return the logits of every position."""
    with torch.no_grad():
        return model(ids, **options).logits


def logits_in_chunks(
    model: Any, ids: Tensor, sizes: list[int], *, mask: Tensor | None = None, cache: Any = None
) -> Tensor:
    """Read a prompt in chunks of the given sizes, the last one taking what is left."""
    ends = [*torch.tensor(sizes).cumsum(0).tolist(), ids.shape[1]]
    parts, first = [], 0
    with torch.no_grad():
        for end in ends:
            own = {} if mask is None else {"attention_mask": mask[:, :end]}
            if mask is not None:
                own["position_ids"] = positions(mask)[:, first:end]
            result = model(ids[:, first:end], past_key_values=cache, use_cache=True, **own)
            parts.append(result.logits)
            cache, first = result.past_key_values, end
    return torch.cat(parts, dim=1)


def generate(model: Any, ids: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """Generate 8 tokens greedily; return prompt and tokens, and the logits they came from."""
    fixed: Any = {"max_new_tokens": 8, "do_sample": False, "output_logits": True}
    result = model.generate(ids, return_dict_in_generate=True, **fixed, **options)
    return result.sequences, torch.stack(result.logits, dim=1)


def positions(mask: Tensor) -> Tensor:
    """Count the real tokens before each one, as `generate` does."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def static_cache(model: Any, *, rows: int, slots: int) -> Any:
    """Preallocate a cache; older releases want to know the batch and the dtype."""
    return transformers.StaticCache(
        config=model.config,
        max_batch_size=rows,
        max_cache_len=slots,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def error(x: Tensor, exact: Tensor) -> float:
    """Return the largest deviation from the oracle."""
    return float((x.double() - exact).abs().max())


def assert_logits_close(logits: Tensor, stock: Tensor, exact: Tensor) -> None:
    """Apply the error-budget rule to float32 logits.

    Args:
        stock: logits of plain eager attention over the same cells, in float32.
        exact: the same in float64.
    """
    rounding = torch.finfo(torch.float32).eps * float(exact.abs().max())
    assert error(logits, exact) <= 2 * (error(stock, exact) + rounding)
