"""What vLLM hands to a backend, as small stand-ins: steps, pages, and dense attention."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from typing import Any

import torch
from torch import Tensor

from sparsefill.integrations.vllm.heads import RankHeads
from sparsefill.patterns import Pattern
from sparsefill.profile import Architecture, Profile

PAGE = 16
SHAPE = Architecture(layers=2, heads=4, kv_heads=2, head_dim=32)


@dataclass
class Common:
    """vLLM's `CommonAttentionMetadata`, as far as we know it."""

    query_start_loc: Tensor
    query_start_loc_cpu: Tensor
    seq_lens: Tensor
    num_reqs: int
    num_actual_tokens: int
    max_query_len: int
    max_seq_len: int
    block_table_tensor: Tensor
    slot_mapping: Tensor
    causal: Any = True
    logits_indices_padded: Tensor | None = None
    is_prefilling: Tensor | None = None
    positions: Tensor | None = None
    seq_lens_cpu_upper_bound: Tensor | None = None
    req_idx: Any = None
    _token_to_req_indices_cache: Tensor | None = None


OLD = make_dataclass(  # of a release that lacks what came later
    "OLD",
    [*list(Common.__dataclass_fields__)[:9], ("causal", Any, field(default=True))],
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A request in a step: its keys before the step, its queries, its pages, its prompt."""

    context: int
    queries: int
    pages: tuple[int, ...]
    prompt: int = 10**6

    @property
    def keys(self) -> int:
        return self.context + self.queries

    def slot(self, at: int) -> int:
        return self.pages[at // PAGE] * PAGE + at % PAGE


def row(context: int, queries: int, first_page: int = 2, prompt: int = 10**6) -> Row:
    """Give a request pages of its own from an even `first_page` on, not quite in order."""
    count = -(-(context + queries) // PAGE)
    pages = tuple(first_page + (i ^ 1) for i in range(count))
    return Row(context=context, queries=queries, pages=pages, prompt=prompt)


def step_of(rows: list[Row], *, padding: int = 0) -> Common:
    """Flatten requests into a step; rows of padding have no queries."""
    starts = torch.tensor([0, *(r.queries for r in rows), *[0] * padding], dtype=torch.int32)
    starts = starts.cumsum(0).int()
    width = max(len(r.pages) for r in rows) + 3  # tables are as wide as the longest prompt
    table = torch.zeros(len(rows) + padding, width, dtype=torch.int32)
    for i, r in enumerate(rows):
        table[i, : len(r.pages)] = torch.tensor(r.pages, dtype=torch.int32)
    slots = [
        r.pages[at // PAGE] * PAGE + at % PAGE for r in rows for at in range(r.context, r.keys)
    ]
    lengths = torch.tensor([r.keys for r in rows] + [0] * padding, dtype=torch.int32)
    reading = [r.context < r.prompt for r in rows] + [False] * padding
    return Common(
        query_start_loc=starts,
        query_start_loc_cpu=starts.clone(),
        seq_lens=lengths,
        num_reqs=len(rows) + padding,
        num_actual_tokens=int(starts[-1]),
        max_query_len=max(r.queries for r in rows),
        max_seq_len=int(lengths.max()),
        block_table_tensor=table,
        slot_mapping=torch.tensor(slots),
        is_prefilling=torch.tensor(reading),
        positions=torch.cat([torch.arange(r.context, r.keys) for r in rows]),
        seq_lens_cpu_upper_bound=lengths.clone(),
    )


def rank_heads(pattern: Pattern, *, min_length: int | None = 1, first: int = 0, count: int = 4):
    """Give all heads of a model of two layers one pattern."""
    profile = Profile.uniform(pattern, SHAPE)
    return RankHeads(
        profile=profile, first=first, count=count, min_length=min_length, backend="torch"
    )


def dense(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attend causally, queries (n h d) standing at the end of keys (m g d)."""
    n, m = len(q), len(k)
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    scores = torch.einsum("nhd,mhd->hnm", q, k) * scale
    hidden = torch.arange(m) > torch.arange(n)[:, None] + m - n
    return torch.einsum("hnm,mhd->nhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)
