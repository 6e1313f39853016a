"""Read one prompt with a model, timed: the unit that comparisons are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparsefill.errors import InputError, UnsupportedError
from sparsefill.integrations.transformers import attention_layers, sparse_prefill
from sparsefill.integrations.transformers.rope import positions_of_the_whole
from sparsefill.integrations.transformers.run import LayerCall, OnAttended, OnQKV, Run
from sparsefill.kernels import BackendName
from sparsefill.patterns import Pattern
from sparsefill.profile import Profile
from sparsefill.static import StaticIndices
from sparsefill.tile import TILE


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


class Prefilled(NamedTuple):
    """A prompt that was read: what decoding goes on from, and what reading it took."""

    cache: Any  # of transformers; None where the model keeps none
    logits: Float[Tensor, "positions vocabulary"]  # float32
    ttft_s: float
    run: Run
    position: int | None = None  # of the next token, where the cache lacks keys before it


def prefill_prompt(
    model: nn.Module,
    input_ids: Int[Tensor, "1 n"],
    pattern: Profile | Pattern | None,
    *,
    backend: BackendName = "auto",
    min_length: int | None = None,
    positions: int = 1,
    chunk: int | None = None,
    measure_recall: bool = False,
    static: StaticIndices | None = None,
    on_call: Callable[[LayerCall], None] | None = None,
    on_qkv: OnQKV | None = None,
    on_attended: OnAttended | None = None,
) -> Prefilled:
    """Prefill a prompt, timed to its first new token.

    Args:
        pattern: a profile, one pattern for all heads, or None for the default profile.
        min_length: keys below which a layer stays dense; predicted for each head when None.
        positions: how many last positions to return logits of.
        chunk: tokens that are read at a time, each chunk by cells of its own; all when None.
        static: cells kept from another prompt, as of `sparse_prefill`.

    Raises:
        InputError: the prompt is empty.
        UnsupportedError: the model cannot read in chunks.
    """
    if input_ids.shape[1] == 0:
        raise InputError("the prompt must have at least one token, got an empty prompt")
    with (
        torch.inference_mode(),
        sparse_prefill(
            model,
            pattern,
            backend=backend,
            measure_recall=measure_recall,
            static=static,
            on_call=on_call,
            on_qkv=on_qkv,
            on_attended=on_attended,
            min_length=min_length,
        ) as run,
    ):
        clock = run.clock(input_ids.device)
        started = clock()
        cache, logits = None, torch.empty(0)
        for part in read_parts(model, input_ids, chunk, use_cache=True, logits_to_keep=positions):
            cache, own = part.past_key_values, part.logits[0]
            logits = torch.cat([logits, own])[-positions:] if len(logits) else own
        int(logits[-1].argmax())  # the first new token is known
        ttft_s = clock() - started
    return Prefilled(cache, logits.float(), ttft_s, run)


def read_parts(
    model: nn.Module, input_ids: Int[Tensor, "1 n"], chunk: int | None, **options: Any
) -> Iterator[Any]:
    """Call a model with one chunk of a prompt after the other; yield what it returns.

    Args:
        chunk: tokens of each but the last, which takes those that would be too few for a row
            block of their own; all when None.
        options: of each call; chunks need `use_cache=True`.

    Raises:
        UnsupportedError: a layer of the model is no attention, and may forget the chunk before.
    """
    call: Any = model
    if chunk is None:
        yield call(input_ids, **options)
        return
    _require_attention_alone(model)
    tokens = input_ids.shape[1]
    starts = [s for s in range(0, tokens, chunk) if s == 0 or tokens - s >= TILE]
    cache: dict[str, Any] = {}
    with positions_of_the_whole(model, tokens):
        for start, end in pairwise([*starts, tokens]):
            result = call(input_ids[:, start:end], **cache, **options)
            cache = {"past_key_values": result.past_key_values}
            yield result


def _require_attention_alone(model: nn.Module) -> None:
    """Refuse models with layers that some releases start anew with every call."""
    config: Any = model.config
    layers, found = config.get_text_config().num_hidden_layers, len(attention_layers(model))
    if found != layers:
        raise UnsupportedError(
            f"reading in chunks needs causal attention in every layer, got {found} of {layers} in"
            f" {type(model).__name__}; use a method without @CHUNK"
        )


def read_prompt(
    model: nn.Module,
    input_ids: Int[Tensor, "1 n"],
    pattern: Profile | Pattern | None,
    *,
    positions: int = 256,
    new_tokens: int = 0,
    **settings: Any,
) -> Reading:
    """Prefill a prompt, then decode greedily and densely.

    Args:
        positions: how many last positions to return logits of.
        new_tokens: how many tokens to decode.
        settings: further ones of `prefill_prompt`.

    Raises:
        InputError: the prompt is empty.
    """
    read = prefill_prompt(model, input_ids, pattern, positions=positions, **settings)
    tokens = list(islice(greedy_tokens(model, read.cache, read.logits), new_tokens))
    return Reading(ttft_s=read.ttft_s, logits=read.logits, tokens=tokens, run=read.run)


def greedy_tokens(
    model: nn.Module,
    cache: Any,
    logits: Float[Tensor, "positions vocabulary"],
    *,
    position: int | None = None,
) -> Iterator[int]:
    """Decode the tokens that follow a prompt, each time the likeliest, as many as are taken.

    Args:
        cache: keys and values of the prompt; without them the first token is all there is.
        logits: of the prompt's last positions.
        position: of the first new token, where the cache does not hold all keys before it.
    """
    call: Any = model
    token, device = int(logits[-1].argmax()), next(model.parameters()).device
    yield token
    own: dict[str, Tensor] = {}
    while cache is not None:
        if position is not None:
            own = {"position_ids": torch.tensor([[position]], device=device)}
            position += 1
        with torch.inference_mode():
            result = call(
                torch.tensor([[token]], device=device), past_key_values=cache, use_cache=True, **own
            )
        token, cache = int(result.logits[0, -1].argmax()), result.past_key_values
        yield token
