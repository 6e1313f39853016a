"""Which requests of a step are read sparsely, and what is left to vLLM's own backend.

A step is a batch of requests, flattened: some bring one token (decode), some a chunk of their
prompt, which follows keys that lie in pages already. Knows no vLLM: its metadata are taken as
what they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sparsefill.integrations.vllm.heads import RankHeads
from sparsefill.integrations.vllm.requests import Request

BY_REQUEST = ("seq_lens", "block_table_tensor", "is_prefilling", "seq_lens_cpu_upper_bound")
BY_TOKEN = ("slot_mapping", "positions")
REBUILT = {  # fields of vLLM's metadata that `split` makes for a part of a step, or may keep
    *BY_REQUEST,
    *BY_TOKEN,
    "query_start_loc",
    "query_start_loc_cpu",
    "num_reqs",
    "num_actual_tokens",
    "max_query_len",
    "max_seq_len",  # an upper bound
    "causal",
    "req_idx",
}


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Queries of one request in a step.

    Args:
        row: of the batch.
        start, stop: its tokens among those of the step.
        context: keys before its first query.
        request: what is known of the request.
    """

    row: int
    start: int
    stop: int
    context: int
    request: Request | None = None

    @property
    def queries(self) -> int:
        """Count the queries."""
        return self.stop - self.start

    @property
    def keys(self) -> int:
        """Count the keys, those of the chunk included."""
        return self.context + self.queries


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """How a step is read.

    Args:
        chunks: those that we read.
        rest: tokens of the step that are not theirs, ascending; None if there are none.
        rest_metadata: what vLLM's backend made for those alone.
        heads: those of this rank.
    """

    chunks: Sequence[Chunk]
    rest: Int[Tensor, " tokens"] | None
    rest_metadata: Any
    heads: RankHeads


def chunks_of(starts: Sequence[int], lengths: Sequence[int]) -> list[Chunk]:
    """List the requests of a step.

    Args:
        starts: first token of each request, and the end of the last.
        lengths: keys of each request, those of the step included.

    Example:
        >>> [(c.queries, c.context) for c in chunks_of([0, 1, 300], [80, 1323])]
        [(1, 79), (299, 1024)]
    """
    return [
        Chunk(row=row, start=start, stop=stop, context=keys - (stop - start))
        for row, (start, stop, keys) in enumerate(zip(starts, starts[1:], lengths, strict=False))
    ]


def foreign_fields(common: Any) -> list[str]:
    """List what a step carries that we cannot rebuild for a part of it.

    Releases add fields. Those that are set and that we do not know make a step vLLM's own: it
    would be read wrongly otherwise.
    """
    names = (own.name for own in fields(common) if not own.name.startswith("_"))
    return [n for n in names if n not in REBUILT and getattr(common, n) is not None]


def split(
    common: Any, chosen: Sequence[Chunk], build: Callable[[Any], Any]
) -> tuple[Int[Tensor, " tokens"] | None, Any]:
    """Rebuild a step's metadata for the requests that were not chosen.

    Args:
        common: vLLM's `CommonAttentionMetadata`, whose fields differ by release.
        build: makes a backend's metadata.

    Returns:
        the tokens left, and their metadata; None and None if there are none.
    """
    taken = {chunk.row for chunk in chosen}
    starts = common.query_start_loc_cpu.tolist()
    rows = [row for row in range(common.num_reqs) if row not in taken]
    left = [row for row in rows if starts[row + 1] > starts[row]]  # without those of padding
    if not left:
        return None, None
    device = common.query_start_loc.device
    counts = torch.tensor([starts[row + 1] - starts[row] for row in left])
    tokens = torch.cat([torch.arange(starts[row], starts[row + 1]) for row in left]).to(device)
    own_starts = torch.zeros(len(left) + 1, dtype=common.query_start_loc_cpu.dtype)
    own_starts[1:] = counts.cumsum(0)
    there = {own.name for own in fields(common) if own.init}
    changed: dict[str, Any] = {
        "query_start_loc": own_starts.to(device),
        "query_start_loc_cpu": own_starts,
        "num_reqs": len(left),
        "num_actual_tokens": len(tokens),
        "max_query_len": int(counts.max()),
    }
    for names, index in ((BY_REQUEST, torch.tensor(left)), (BY_TOKEN, tokens)):
        for name in names:
            value = getattr(common, name, None)
            if value is not None:
                changed[name] = value[index.to(value.device)]
    if getattr(common, "req_idx", None) is not None:
        changed["req_idx"] = common.req_idx[left]
    # caches that an instance fills for itself
    changed |= {name: None for name in there if name.startswith("_")}
    return tokens, build(replace(common, **{k: v for k, v in changed.items() if k in there}))
