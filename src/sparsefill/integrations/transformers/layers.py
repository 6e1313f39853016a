"""What an attention module of transformers knows beside its queries, keys and values."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsefill.errors import UnsupportedError

PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # weights, not codes
PROJECTIONS = ("o_proj", "out_proj", "dense", "wo")  # as transformers' models call it


def output_projection(module: nn.Module, *, h: int, d: int) -> Float[Tensor, "o h d"]:
    """Return the weights that a layer's output projection has for each head.

    Raises:
        UnsupportedError: the module has no such projection.
    """
    for name in PROJECTIONS:
        weight = getattr(getattr(module, name, None), "weight", None)
        if not isinstance(weight, Tensor) or weight.dtype not in PLAIN:
            continue
        if weight.ndim == 2 and weight.shape[1] == h * d:
            return weight.detach().unflatten(1, (h, d))
    raise UnsupportedError(
        f"{type(module).__name__} has no output projection of {h} heads of {d}, looked for"
        f" {', '.join(PROJECTIONS)}; load the model with plain (unquantized) linear layers"
    )


def softcap_of(module: Any) -> float | None:
    """Return the bound of a layer's scores, if it has one."""
    return getattr(module, "attn_logit_softcapping", None)


def window_of(module: Any) -> int | None:
    """Return how many keys a layer's sliding window shows, if it has one."""
    own = vars(module)
    if "sliding_window" in own:
        return own["sliding_window"]
    uniform = getattr(module.config, "layer_types", None) is None
    return getattr(module.config, "sliding_window", None) if uniform else None
