"""Read one prompt with a model, timed: the unit that comparisons are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparsefill.errors import InputError
from sparsefill.integrations.transformers import sparse_prefill
from sparsefill.integrations.transformers.run import LayerCall, Run
from sparsefill.kernels import BackendName
from sparsefill.patterns import Pattern
from sparsefill.profile import Profile
from sparsefill.static import StaticIndices


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What reading a prompt gave.

    Args:
        ttft_s: seconds from the start of prefill to the first new token.
        logits: of the last prompt positions, in float32.
        tokens: new tokens, greedily.
        run: what the layers did.
    """

    ttft_s: float
    logits: Float[Tensor, "positions vocabulary"]
    tokens: list[int]
    run: Run


def read_prompt(
    model: nn.Module,
    input_ids: Int[Tensor, "1 n"],
    pattern: Profile | Pattern | None,
    *,
    backend: BackendName = "auto",
    min_length: int | None = None,
    positions: int = 256,
    new_tokens: int = 0,
    measure_recall: bool = False,
    static: StaticIndices | None = None,
    on_call: Callable[[LayerCall], None] | None = None,
) -> Reading:
    """Prefill a prompt, then decode greedily and densely.

    Args:
        pattern: a profile, one pattern for all heads, or None for the default profile.
        min_length: keys below which a layer stays dense; predicted for each head when None.
        positions: how many last positions to return logits of.
        new_tokens: how many tokens to decode.
        static: cells kept from another prompt, as of `sparse_prefill`.

    Raises:
        InputError: the prompt is empty.
    """
    if input_ids.shape[1] == 0:
        raise InputError("the prompt must have at least one token, got an empty prompt")
    call: Any = model
    with (
        torch.inference_mode(),
        sparse_prefill(
            model,
            pattern,
            backend=backend,
            measure_recall=measure_recall,
            static=static,
            on_call=on_call,
            min_length=min_length,
        ) as run,
    ):
        clock = run.clock(input_ids.device)
        started = clock()
        result = call(input_ids, use_cache=True, logits_to_keep=positions)
        first = int(result.logits[0, -1].argmax())
        ttft_s = clock() - started
        logits = result.logits[0].float()
        tokens = decode_greedily(model, result.past_key_values, first, new_tokens)
    return Reading(ttft_s=ttft_s, logits=logits, tokens=tokens, run=run)


def decode_greedily(model: nn.Module, cache: Any, first: int, count: int) -> list[int]:
    """Decode the tokens that follow a prompt, each time the likeliest.

    Args:
        cache: keys and values of the prompt; without them the first token is all there is.
        first: the first new token, which the prompt's logits gave.
        count: how many tokens to return, the first among them.
    """
    call: Any = model
    tokens, device = [first], next(model.parameters()).device
    with torch.inference_mode():
        while cache is not None and len(tokens) < count:
            latest = torch.tensor([tokens[-1:]], device=device)
            result = call(latest, past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            tokens.append(int(result.logits[0, -1].argmax()))
    return tokens[:count]
