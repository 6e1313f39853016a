"""The paper's models with random weights: their exact shapes, to measure speed without a download.

What such a model predicts means nothing, and what its heads attend to is noise: times and
memory are real, recall and density of methods that look at the prompt are not those of the
trained model.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GlmConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from sparsefill.errors import InputError

PREFIX = "random:"
STD = 0.02  # of the weights, as the models' own initialisation has it

LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
}
# config class, sizes, base of the rotary embedding; from the config.json of each model
ARCHITECTURES: dict[str, tuple[Any, dict[str, Any], float]] = {
    "llama-3-8b-262k": (LlamaConfig, {**LLAMA, "max_position_embeddings": 262144}, 283461213.0),
    "llama-3-8b-1048k": (LlamaConfig, {**LLAMA, "max_position_embeddings": 1048576}, 3580165449.0),
    "yi-9b-200k": (
        LlamaConfig,
        {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "vocab_size": 64000,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 262144,
        },
        10000000.0,
    ),
    "glm-4-9b-1m": (
        GlmConfig,
        {
            "hidden_size": 4096,
            "intermediate_size": 13696,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "vocab_size": 151552,
            "attention_bias": True,
            "partial_rotary_factor": 0.5,
            "max_position_embeddings": 1048576,
        },
        100000000.0,
    ),
    "phi-3-mini-128k": (
        Phi3Config,
        {
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32064,
            "max_position_embeddings": 131072,
            "sliding_window": None,
        },
        10000.0,
    ),
    "qwen2-7b-128k": (
        Qwen2Config,
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "max_position_embeddings": 131072,
        },
        1000000.0,
    ),
}


def random_config(spec: str) -> Any:
    """Return the config that a spec such as `random:llama-3-8b-1048k` names.

    Args:
        spec: `random:NAME`, or `random:NAME/LAYERS` for the first layers alone.

    Raises:
        InputError: there is no such architecture, or it has not so many layers.

    Example:
        >>> random_config("random:yi-9b-200k/2").num_hidden_layers
        2
    """
    name, slash, layers = spec.removeprefix(PREFIX).partition("/")
    if name not in ARCHITECTURES:
        raise InputError(
            f"a model of random weights must be one of {', '.join(ARCHITECTURES)}, with"
            f" /LAYERS for fewer layers, got {spec!r}"
        )
    factory, sizes, base = ARCHITECTURES[name]
    most = sizes["num_hidden_layers"]
    if slash and not (layers.isascii() and layers.isdigit() and 1 <= int(layers) <= most):
        raise InputError(f"{name} has 1 to {most} layers to build, got {layers!r} in {spec!r}")
    count = int(layers) if slash else most
    same = {"rope_theta": base, "tie_word_embeddings": False, "pad_token_id": None}
    return factory(**{**sizes, **same, "num_hidden_layers": count})


def random_model(
    spec: str, *, dtype: torch.dtype = torch.bfloat16, device: str = "cpu", seed: int = 0
) -> nn.Module:
    """Build a model of random weights in place.

    Args:
        spec: as of `random_config`.
        dtype: of the weights.
        device: where they are drawn: nothing is copied.
        seed: of the weights.

    Raises:
        InputError: there is no such architecture.
    """
    config = random_config(spec)
    factory: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = factory.from_config(config, attn_implementation="sdpa").to(dtype)
    model.to_empty(device=device)
    for name, module in list(model.named_modules()):
        if next(module.buffers(recurse=False), None) is not None:  # rotary tables: not weights
            model.set_submodule(name, type(module)(config).to(device))
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, STD, generator=generator)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
    return model.eval()


def byte_tokenizer() -> Any:
    """Make a tokenizer of one token for each byte: text is only there to be of some length."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=own, clean_up_tokenization_spaces=False)
