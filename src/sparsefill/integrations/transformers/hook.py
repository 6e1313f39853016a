"""The attention function that transformers calls, and the path that each call takes.

encoder, cross-attention, 4-D mask            → stock: transformers' own kernel
causal, with a window that hides keys         → dense: blocks of queries, no n * m mask
prefill with heads whose pattern should pay   → sparse
else, not short: our compiled kernels serve   → dense: those
else, plain decode or prefill                 → stock
else: padding, soft cap, chunk of a prompt    → dense: blocks of queries
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sparsefill._checks import check_qkv
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
from sparsefill.metrics import recall
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


class Path(NamedTuple):
    """How a causal call is served.

    Args:
        name: as `LayerCall` has it.
        backend: which of our backends attends; None for stock and for blocks of queries.
        patterns: of each head, in a sparse call.
    """

    name: str
    backend: str | None = None
    patterns: tuple[Pattern, ...] = ()


STOCK, BLOCKS = Path("stock"), Path("dense")


def choose_path(
    run: Run, module: nn.Module, q: Tensor, n: int, m: int, *, plain: bool, windowed: bool
) -> Path:
    """Choose how to serve a causal call: the module's table from its second line on.

    Args:
        n: queries.
        m: keys.
        plain: no padding, soft cap or window.
        windowed: some keys are hidden by a window.
    """
    not_ours = STOCK if plain and n in (1, m) else BLOCKS
    may_be_sparse = n >= TILE and m >= run.sparse_from
    may_be_compiled = n > 1 and (n < m or n >= COMPILED_FROM)
    if windowed or not (may_be_sparse or may_be_compiled):
        return not_ours
    backend = choose_backend(run.backend, q)
    if may_be_sparse:
        patterns = run.profile[layer_of(module)]
        if run.min_length is None and run.static is None:
            patterns = dense_where_cheaper(patterns, n, m, backend)
        if any(pattern != Dense() for pattern in patterns):
            return Path("sparse", backend, patterns)
    if may_be_compiled and backend.startswith("cpu"):
        return Path("dense", backend)
    return not_ours


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One causal attention call of a layer, its padding understood."""

    module: nn.Module
    run: Run
    path: Path
    q: Float[Tensor, "b h n d"]
    k: Float[Tensor, "b g m d"]
    v: Float[Tensor, "b g m d"]
    spans: Spans | None
    scale: float
    softcap: float | None
    window: int | None

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

    def note(self, **found: Any) -> None:
        """Tell whoever watches the run what this call took and found."""
        if self.run.watches(self.q.shape[2]):
            self.run.note(
                LayerCall(
                    layer=layer_of(self.module),
                    path=self.path.name,
                    n=self.q.shape[2],
                    m=self.k.shape[2],
                    backend=self.path.backend,
                    **found,
                )
            )

    def back(self, out: Float[Tensor, "b h n d"]) -> Float[Tensor, "b n h d"]:
        """Return outputs to their places, in the layout of transformers."""
        return (out if self.spans is None else self.spans.back(out)).transpose(1, 2).contiguous()


def sparsefill_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    *,
    scaling: float | None = None,
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
    if not causal or (attention_mask is not None and attention_mask.ndim == 4):
        mask = _stock_mask(attention_mask, causal, sliding_window, softcap)
        return sdpa_attention_forward(
            module, query, key, value, mask, scaling=scaling, is_causal=False
        )
    run, n = run_of(module), query.shape[2]
    if module not in run.admitted:
        _refuse_chunked(module)
        run.admitted.add(module)
    spans = None
    if attention_mask is not None:
        key, value = (t[:, :, : attention_mask.shape[1]] for t in (key, value))
        spans = None if bool(attention_mask.all()) else Spans(attention_mask, n)
    m = key.shape[2]
    if spans is None and n == m and run.is_news(others.get("position_ids"), module):
        require_one_sequence(others.get("position_ids"))
    sizes = (n, m) if run.whole is None else (run.whole.tokens, run.whole.tokens)
    window = None if sliding_window is None or sliding_window >= sizes[1] else sliding_window
    plain = spans is None and window is None and softcap is None
    path = choose_path(run, module, query, *sizes, plain=plain, windowed=window is not None)
    if path is STOCK and run.whole is None and not run.watches(n):
        # at once: on short prompts each microsecond of a layer counts
        return _stock(module, query, key, value, scaling), None
    call = Call(
        module=module,
        run=run,
        path=path,
        q=query,
        k=key,
        v=value,
        spans=spans,
        scale=query.shape[3] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
        window=window,
    )
    if run.whole is not None:
        return run.whole.attend(call), None
    if run.on_qkv is not None and spans is None and n >= TILE:
        run.on_qkv(module, query, key, value, call.scale)
    return _sparse(call) if path.name == "sparse" else _dense(call), None


def _stock_mask(
    mask: Tensor | None, causal: bool, window: int | None, softcap: float | None
) -> Tensor | None:
    """Return the mask of a call that is not causal, or whose 4-D mask says it all.

    Raises:
        UnsupportedError: the mask would not tell everything.
    """
    own_mask = mask is not None and mask.ndim == 4
    if softcap is not None or (window is not None and not own_mask):
        raise UnsupportedError(
            "sliding_window and softcap need plain causal attention, got"
            f" is_causal={causal} and a {'4-D' if own_mask else '2-D or no'} mask;"
            " use attn_implementation='eager' for this model"
        )
    return mask if mask is None or own_mask else mask[:, None, None]


def _sparse(call: Call) -> Float[Tensor, "b n h d"]:
    """Estimate and attend, with the patterns of the call's path."""
    run = call.run
    q, k, v = call.tensors()
    maths = {"scale": call.scale, "softcap": call.softcap, **call.lengths()}
    cells = call.path.patterns
    if run.static is not None:
        layer, n, m = layer_of(call.module), q.shape[2], k.shape[2]
        cells = run.static.index(layer, n=n, m=m, **call.lengths())
    clock = run.clock(q.device)
    stages = attend_in_stages(q, k, v, cells, backend=run.backend, clock=clock, **maths)
    kept, recall_s = None, 0.0
    if run.measure_recall:
        started = clock()
        dense = attend_in_stages(q, k, v, Dense(), backend=run.backend, **maths)
        kept = recall(stages.attended.lse, dense.attended.lse)
        recall_s = clock() - started
    if run.on_attended is not None and call.spans is None:
        started = clock()
        run.on_attended(call, stages.attended)
        recall_s += clock() - started
    call.note(
        estimate_s=stages.estimate_s,
        attention_s=stages.attend_s,
        density=stages.cells.density() if run.record else None,
        recall=kept,
        recall_s=recall_s,
    )
    return call.back(stages.attended.out)


def _dense(call: Call) -> Float[Tensor, "b n h d"]:
    """Attend to all keys, by one of the kernels that do."""
    clock = call.run.clock(call.q.device)
    started = clock()
    if call.path is STOCK:
        out = _stock(call.module, call.q, call.k, call.v, call.scale)
    else:
        out = attend_densely(call)
    call.note(estimate_s=0.0, attention_s=clock() - started)
    return out


def attend_densely(call: Call) -> Float[Tensor, "b n h d"]:
    """Attend to all keys by our own means: the backend of the call's path, or in blocks."""
    return call.back(_in_blocks(call) if call.path.backend is None else _compiled(call))


def _stock(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float | None
) -> Float[Tensor, "b n h d"]:
    """Let transformers' kernel attend causally, whatever the module says of itself."""
    causal = bool(q.shape[2] > 1)  # older releases take it as said, for one query too
    return sdpa_attention_forward(module, q, k, v, None, scaling=scale, is_causal=causal)[0]


def _in_blocks(call: Call) -> Float[Tensor, "b h n d"]:
    """Attend in blocks of queries: whatever the call asks for."""
    return dense_attention(
        *call.tensors(),
        scale=call.scale,
        softcap=call.softcap,
        window=call.window,
        **call.lengths(),
    )


def _compiled(call: Call) -> Float[Tensor, "b h n d"]:
    """Attend by our compiled kernels, all heads of a group at once."""
    q, k, v = call.tensors()
    check_qkv(q, k, v)
    index = estimate(Dense(), q[:, : k.shape[1]], k, **call.lengths())  # one for each KV head
    return attend_unchecked(
        q, k, v, index, scale=call.scale, softcap=call.softcap, backend=call.run.backend
    ).out


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
    unknown = [name for name, it in others.items() if it is not None and name not in HARMLESS]
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
