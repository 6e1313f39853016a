"""The engine inside a model: whoever calls it, or `generate()`, gets long prompts read so."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from sparsefill.engine import Prefilled, prefill
from sparsefill.engine.lockstep import replaced_forward
from sparsefill.errors import InputError
from sparsefill.integrations.transformers import sparse_prefill
from sparsefill.patterns import Pattern
from sparsefill.profile import Profile

UNUSUAL = ("inputs_embeds", "labels", "output_attentions", "output_hidden_states")


@contextmanager
def opened(
    model: nn.Module, pattern: Profile | Pattern | None, *, at_least: int, **options: Any
) -> Iterator[list[Prefilled]]:
    """Let the model read prompts with the engine; what `engine_prefill` says."""
    if at_least < 1:
        raise InputError(f"at_least must be 1 token or more, got {at_least}")
    forward: Any = model.forward
    signature = inspect.signature(forward)
    reads: list[Prefilled] = []
    busy = False  # the engine calls the model itself

    def instead(*args: Any, **kwargs: Any) -> Any:
        nonlocal busy
        given = {**signature.bind(*args, **kwargs).arguments, **kwargs}
        ids: Any = given.get("input_ids")
        if busy or not _is_prompt(given, ids, at_least):
            return forward(*args, **kwargs)
        drop = given.get("use_cache") is False and options.get("order") != "chunks"
        busy = True
        try:
            read = prefill(
                model,
                ids,
                pattern,
                attention_mask=given.get("attention_mask"),
                logits_to_keep=given.get("logits_to_keep") or ids.shape[1],
                **{**options, **({"kv": "drop"} if drop else {})},
            )
        finally:
            busy = False
        reads.append(read)
        return CausalLMOutputWithPast(logits=read.logits, past_key_values=read.cache)

    hook = sparse_prefill(
        model,
        pattern,
        backend=options.get("backend", "auto"),
        min_length=options.get("min_length"),
        record=False,
    )
    with hook, replaced_forward(model, instead):
        yield reads


def _is_prompt(given: dict[str, Any], ids: Tensor | None, at_least: int) -> bool:
    """Tell whether a call reads a long prompt from its beginning, and nothing unusual is asked."""
    if ids is None or ids.ndim != 2 or ids.shape[1] < at_least:
        return False
    past = given.get("past_key_values")
    if past is not None and past.get_seq_length() > 0:
        return False
    kept = given.get("logits_to_keep", 0)
    asked = [given.get(name) for name in UNUSUAL]
    return isinstance(kept, int) and all(own is None or own is False for own in asked)
