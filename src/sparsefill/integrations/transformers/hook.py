"""The attention function that transformers calls, and the path that each call takes.

encoder, cross-attention, 4-D mask        → stock: transformers' own kernel
decode, short or plain dense prefill      → stock
window, soft cap, padding, query chunk    → dense: blocks of queries, no n * m mask
causal prefill with a sparse pattern      → sparse, where that is predicted to pay
the same, where it is not                 → dense: our compiled kernels if they serve
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sparsefill.attention import attend_in_stages
from sparsefill.cost import dense_where_cheaper
from sparsefill.errors import UnsupportedError
from sparsefill.estimate import estimate
from sparsefill.integrations.transformers.masks import Spans, require_one_sequence
from sparsefill.integrations.transformers.run import (
    COMPILED_FROM,
    LayerCall,
    Run,
    architecture_of,
    layer_of,
)
from sparsefill.kernels import attend_unchecked, choose_backend
from sparsefill.kernels.dense import dense_attention
from sparsefill.metrics import density, recall
from sparsefill.patterns import Dense, Pattern
from sparsefill.profile import default_profile
from sparsefill.tile import TILE

HARMLESS = frozenset(  # keywords that layers pass along and that do not change the maths
    {
        "cache_position",
        "layer_idx",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)

runs: WeakKeyDictionary[nn.Module, Run] = WeakKeyDictionary()  # of each attention module


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One attention call of a layer, its padding understood."""

    module: nn.Module
    run: Run
    q: Float[Tensor, "b h n d"]
    k: Float[Tensor, "b g m d"]
    v: Float[Tensor, "b g m d"]
    spans: Spans | None
    scale: float
    softcap: float | None
    window: int | None

    def path(self) -> str:
        """Choose how to serve this call."""
        n, m = self.q.shape[2], self.k.shape[2]
        plain = self.spans is None and self.window is None and self.softcap is None
        if plain and self.run.leaves_to_stock(n, m):
            return "stock"
        if n >= TILE and self.window is None and any(p != Dense() for p in self.patterns()):
            return "sparse"
        return "stock" if plain and n == m and not self.compiled() else "dense"

    def patterns(self) -> tuple[Pattern, ...]:
        """Return the layer's patterns for this call: dense where sparse would not pay."""
        own = self.run.profile[layer_of(self.module)]
        n, m = self.q.shape[2], self.k.shape[2]
        if self.run.min_length is not None:
            return own if m >= self.run.min_length else (Dense(),) * len(own)
        if m < COMPILED_FROM:
            return (Dense(),) * len(own)  # nothing pays so early: do not even predict
        return dense_where_cheaper(own, n, m, choose_backend(self.run.backend, self.q))

    def compiled(self) -> bool:
        """Tell whether our compiled kernels serve this layer when it is dense."""
        n, m = self.q.shape[2], self.k.shape[2]
        if self.window is not None or n < 2 or (n == m and n < COMPILED_FROM):
            return False
        return choose_backend(self.run.backend, self.q).startswith("cpu")

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v with each sequence's real entries in front."""
        if self.spans is None:
            return self.q, self.k, self.v
        return self.spans.queries(self.q), self.spans.keys(self.k), self.spans.keys(self.v)

    def lengths(self) -> dict[str, Any]:
        """Return the number of real queries and keys of each sequence."""
        if self.spans is not None:
            return {
                "query_lengths": self.spans.query_lengths,
                "key_lengths": self.spans.key_lengths,
            }
        full = torch.ones(self.q.shape[0], dtype=torch.int32, device=self.q.device)
        return {"query_lengths": full * self.q.shape[2], "key_lengths": full * self.k.shape[2]}

    def back(self, out: Float[Tensor, "b h n d"]) -> Float[Tensor, "b n h d"]:
        """Return outputs to their places, in the layout of transformers."""
        return (out if self.spans is None else self.spans.back(out)).transpose(1, 2).contiguous()


def sparsefill_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention interface asks.

    Args:
        query: (b, h, n, d), rotated; key and value are (b, g, slots, d), cache included.
        attention_mask: what `padding_mask` returned, or a 4-D mask of the user's.

    Returns:
        The output, (b, n, h, d), and None for the weights.

    Raises:
        UnsupportedError: a keyword would change the result and is not supported.
    """
    _refuse_unknown(others, dropout)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    own_mask = attention_mask is not None and attention_mask.ndim == 4
    if not causal or own_mask:
        if (sliding_window is not None and not own_mask) or softcap is not None:
            raise UnsupportedError(
                "sliding_window and softcap need plain causal attention, got"
                f" is_causal={causal} and a {'4-D' if own_mask else '2-D or no'} mask;"
                " use attn_implementation='eager' for this model"
            )
        if attention_mask is not None and not own_mask:
            attention_mask = attention_mask[:, None, None]
        out, _ = sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            is_causal=causal and attention_mask is None,  # a 4-D mask says it all
        )
        return out, None

    run, n = run_of(module), query.shape[2]
    if module not in run.admitted:
        _refuse_chunked(module)
        run.admitted.add(module)
    spans = None
    if attention_mask is not None:
        key, value = (t[:, :, : attention_mask.shape[1]] for t in (key, value))
        spans = None if bool(attention_mask.all()) else Spans(attention_mask, n)
    if spans is None and n == key.shape[2] and run.is_news(others.get("position_ids"), module):
        require_one_sequence(others.get("position_ids"))
    m = key.shape[2]
    window = None if sliding_window is None or sliding_window >= m else sliding_window
    plain = spans is None and window is None and softcap is None
    unseen = not run.watched and run.on_qkv is None
    if plain and unseen and run.leaves_to_stock(n, m):
        # at once: on short prompts each microsecond of a layer counts
        return sdpa_attention_forward(module, query, key, value, None, scaling=scaling)[0], None
    call = Call(
        module=module,
        run=run,
        q=query,
        k=key,
        v=value,
        spans=spans,
        scale=query.shape[3] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
        window=window,
    )
    if run.on_qkv is not None and spans is None and n >= TILE:
        run.on_qkv(module, query, key, value, call.scale)
    path = call.path()
    if path == "sparse":
        return _sparse(call), None
    clock = run.clock(query.device)
    started = clock()
    out = _stock(call) if path == "stock" else _dense(call)
    if run.watched and n >= TILE:
        run.note(
            LayerCall(
                layer=layer_of(module),
                path=path,
                n=n,
                m=m,
                estimate_s=0.0,
                attention_s=clock() - started,
                backend=choose_backend(run.backend, query) if call.compiled() else None,
            )
        )
    return out, None


def _sparse(call: Call) -> Float[Tensor, "b n h d"]:
    """Estimate and attend, with the layer's patterns."""
    run, layer = call.run, layer_of(call.module)
    q, k, v = call.tensors()
    maths = {"scale": call.scale, "softcap": call.softcap, **call.lengths()}
    stages = attend_in_stages(
        q, k, v, call.patterns(), backend=run.backend, clock=run.clock(q.device), **maths
    )
    kept = None
    if run.measure_recall:
        dense = attend_in_stages(q, k, v, Dense(), backend=run.backend, **maths)
        kept = recall(stages.attended.lse, dense.attended.lse)
    run.note(
        LayerCall(
            layer=layer,
            path="sparse",
            n=q.shape[2],
            m=k.shape[2],
            estimate_s=stages.estimate_s,
            attention_s=stages.attend_s,
            backend=choose_backend(run.backend, q),
            density=density(stages.sparse_index) if run.record else None,
            recall=kept,
        )
    )
    return call.back(stages.attended.out)


def _stock(call: Call) -> Float[Tensor, "b n h d"]:
    """Let transformers' SDPA attend: the same kernel as the stock model."""
    out, _ = sdpa_attention_forward(
        call.module, call.q, call.k, call.v, None, scaling=call.scale, is_causal=None
    )
    return out


def _dense(call: Call) -> Float[Tensor, "b n h d"]:
    """Attend densely: by our compiled kernels, or in blocks of queries."""
    q, k, v = call.tensors()
    if call.compiled():
        index = estimate(Dense(), q[:, : k.shape[1]], k, **call.lengths())  # one for each KV head
        attended = attend_unchecked(
            q, k, v, index, scale=call.scale, softcap=call.softcap, backend=call.run.backend
        )
        return call.back(attended.out)
    out = dense_attention(
        q, k, v, scale=call.scale, softcap=call.softcap, window=call.window, **call.lengths()
    )
    return call.back(out)


def run_of(module: nn.Module) -> Run:
    """Return the settings that hold for an attention module, making the default once."""
    run = runs.get(module)
    if run is None:
        architecture = architecture_of(module.config)
        run = Run(profile=default_profile(architecture), record=False)
        runs[module] = run
    return run


def _refuse_unknown(others: dict[str, Any], dropout: float) -> None:
    """Raise for every keyword that might change the maths and is not supported."""
    unknown = [k for k, value in others.items() if value is not None and k not in HARMLESS]
    if dropout:
        unknown.append(f"dropout={dropout}")
    if unknown:
        raise UnsupportedError(
            f"sparsefill does not support the attention keyword {', '.join(sorted(unknown))},"
            " which may change the result; load the model with attn_implementation='eager',"
            " or leave the keyword out"
        )


def _refuse_chunked(module: Any) -> None:
    """Raise for a layer that sees only its own chunk of keys: no keyword tells."""
    kinds = getattr(module.config, "layer_types", None)
    if kinds is None:
        chunked = getattr(module, "use_rope", False) and hasattr(
            module.config, "attention_chunk_size"
        )
    else:
        chunked = kinds[layer_of(module)] == "chunked_attention"
    if chunked:
        raise UnsupportedError(
            "layers with chunked attention (Llama 4) are not supported;"
            " load the model with attn_implementation='sdpa'"
        )
