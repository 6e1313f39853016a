"""Sparse prefill inside Hugging Face transformers, by registration and reversibly.

An adapter only: it reads what transformers passes and hands it to `sparsefill`. Nothing
of transformers is patched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from sparsefill.errors import InputError, UnsupportedError
from sparsefill.estimate import estimate
from sparsefill.integrations.transformers.hook import runs, sparsefill_attention
from sparsefill.integrations.transformers.layers import softcap_of
from sparsefill.integrations.transformers.masks import padding_mask
from sparsefill.integrations.transformers.run import (
    LayerCall,
    OnAttended,
    OnQKV,
    Run,
    architecture_of,
    layer_of,
)
from sparsefill.kernels import BackendName
from sparsefill.patterns import Dense, Pattern, TriShape
from sparsefill.profile import Profile, profile_for
from sparsefill.static import StaticIndices
from sparsefill.tile import TILE

__all__ = [
    "LayerCall",
    "Run",
    "Shown",
    "architecture_of",
    "freeze",
    "register",
    "show_layers",
    "sparse_prefill",
]

NAME = "sparsefill"  # without "flash", "sdpa" or "/": transformers reads meaning into those


def register() -> None:
    """Make `attn_implementation="sparsefill"` known to transformers.

    A model loaded with it uses the default profile of its architecture. Registering
    twice is harmless.
    """
    AttentionInterface.register(NAME, sparsefill_attention)
    AttentionMaskInterface.register(NAME, padding_mask)


@contextmanager
def sparse_prefill(
    model: nn.Module,
    pattern: Profile | Pattern | None = None,
    *,
    backend: BackendName = "auto",
    min_length: int | None = None,
    record: bool = True,
    measure_recall: bool = False,
    static: StaticIndices | None = None,
    on_call: Callable[[LayerCall], None] | None = None,
    on_qkv: OnQKV | None = None,
    on_attended: OnAttended | None = None,
) -> Iterator[Run]:
    """Read long prompts sparsely with this model inside the `with` block.

    On exit the model is as it was. Decode, short prompts and layers that are not plain
    causal attention stay dense.

    Args:
        pattern: a profile, or one pattern for all heads; the default profile of the
            model's architecture when None.
        backend: which kernels attend.
        min_length: keys below which a layer stays dense; when None, each head stays dense
            where sparse is not predicted to be faster.
        record: keep times and densities of every prefill call in the run.
        measure_recall: also measure the attention mass kept (slow).
        static: what `freeze` kept from another prompt: every head of the profile then uses
            those cells, whatever this prompt holds.
        on_call: called after each attention call of a prefill.
        on_qkv: called with (attention module, q, k, v, scale) before each unpadded
            attention call of a prefill, to study it.
        on_attended: called with (the call, its output and log-sum-exps) after each unpadded
            call of a prefill that attended sparsely; its time counts as no part of reading.

    Raises:
        InputError: the model has no attention layers that transformers can redirect, or
            `min_length` is below 1.
        ProfileError: the profile is for another architecture.
    """
    if min_length is not None and min_length < 1:
        raise InputError(
            f"min_length must be at least 1, got {min_length}; pass None to predict for each head"
        )
    modules = attention_layers(model)
    run = Run(
        profile=profile_for(architecture_of(modules[0].config), pattern),
        backend=backend,
        min_length=min_length,
        record=record,
        measure_recall=measure_recall,
        static=static,
        on_call=on_call,
        on_qkv=on_qkv,
        on_attended=on_attended,
    )
    register()
    configs: dict[int, Any] = {id(module.config): module.config for module in modules}
    before = [(config, config._attn_implementation) for config in configs.values()]
    outer = {module: runs.get(module) for module in modules}
    try:
        for config, _ in before:
            config._attn_implementation = NAME
        for module in modules:
            runs[module] = run
        yield run
    finally:
        for config, name in before:
            config._attn_implementation = name
        for module, previous in outer.items():
            if previous is None:
                runs.pop(module, None)
            else:
                runs[module] = previous


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """What a layer attends with while a prompt is read densely.

    Args:
        module: the attention module.
        layer: its number.
        scale: what scores are multiplied by.
        softcap: bound of the scores, or None.
    """

    module: nn.Module
    layer: int
    q: Float[Tensor, "b h n d"]
    k: Float[Tensor, "b g n d"]
    v: Float[Tensor, "b g n d"]
    scale: float
    softcap: float | None


def show_layers(
    model: nn.Module,
    ids: Int[Tensor, "b n"],
    look: Callable[[Shown], None],
    *,
    backend: BackendName = "auto",
) -> None:
    """Read prompts densely, and show what each attention layer attends with.

    Args:
        ids: tokens, at least 64 of each prompt: shorter ones show nothing.
        look: called for one layer after the other.

    Raises:
        InputError: the model has no attention layers that transformers can redirect.
    """

    def show(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
        own = {"layer": layer_of(module), "softcap": softcap_of(module)}
        look(Shown(module=module, q=q, k=k, v=v, scale=scale, **own))

    call: Any = model
    dense = sparse_prefill(model, Dense(), backend=backend, record=False, on_qkv=show)
    with torch.inference_mode(), dense:
        call(ids.to(next(model.parameters()).device), logits_to_keep=1, use_cache=False)


def freeze(
    model: nn.Module,
    pattern: Profile | Pattern | None,
    ids: Int[Tensor, "b n"],
    *,
    backend: BackendName = "auto",
) -> StaticIndices:
    """Find the cells of a profile on one prompt, to use them on others.

    The prompt is read densely. The paper's ablation of its estimate; see `StaticIndices`.

    Args:
        pattern: a profile, or one pattern for all heads; the default profile of the
            model's architecture when None.
        ids: tokens of one prompt.

    Raises:
        InputError: more than one prompt, or one of fewer than 64 tokens.
        UnsupportedError: a head has a tri-shape, whose last queries are not those of others.
    """
    if ids.ndim != 2 or ids.shape[0] != 1 or ids.shape[1] < TILE:
        raise InputError(
            f"freeze needs one prompt of at least {TILE} tokens, shape (1, n), got"
            f" {tuple(ids.shape)}"
        )
    first: Any = attention_layers(model)[0]
    profile = profile_for(architecture_of(first.config), pattern)
    layers = {}

    def keep(shown: Shown) -> None:
        own = profile[shown.layer]
        if any(isinstance(head, TriShape) for head in own):
            raise UnsupportedError(
                f"layer {shown.layer} has a tri-shape, which depends on no prompt but on its"
                " length, and cannot be frozen; use the profile without static indices"
            )
        layers[shown.layer] = estimate(
            own, shown.q, shown.k, scale=shown.scale, softcap=shown.softcap, backend=backend
        )

    show_layers(model, ids, keep, backend=backend)
    return StaticIndices(layers=layers)


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """List the attention modules of a decoder.

    Raises:
        InputError: the model has none that transformers can redirect.
    """
    modules = [m for m in _modules(model) if is_causal_attention(m)]
    if not modules:
        raise InputError(
            f"{type(model).__name__} has no causal attention layers to make sparse;"
            " pass a transformers decoder model"
        )
    return modules


def _modules(module: nn.Module, found: dict[nn.Module, None] | None = None) -> Iterable[nn.Module]:
    """List each module once: what `modules()` does, in a third of the time."""
    found = {} if found is None else found
    found[module] = None
    for child in vars(module)["_modules"].values():
        if child is not None and child not in found:
            _modules(child, found)
    return found


def is_causal_attention(module: nn.Module) -> bool:
    """Tell whether a module is a decoder's self-attention layer."""
    own = vars(module)  # asking a module for what it lacks is slow
    if "layer_idx" not in own or "config" not in own:
        return False
    # some old models attend by themselves and would never call what is registered
    redirects = hasattr(sys.modules[type(module).__module__], "ALL_ATTENTION_FUNCTIONS")
    return redirects and bool(getattr(module, "is_causal", False))
