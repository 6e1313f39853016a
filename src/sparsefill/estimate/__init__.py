"""Turn patterns, queries and keys into the sparse index of this input.

Second of the three stages. Each family lives in its own file and registers one
function; heads of one family are estimated together, whatever their budgets.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import cast, get_args

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

from sparsefill import abi, gpu
from sparsefill.errors import InputError, ShapeError, UnsupportedError
from sparsefill.estimate import (
    a_shape,
    block_topk,
    dense,
    fixed_slash,
    infllm,
    interleaved,
    tri_shape,
    vertical_slash,
)
from sparsefill.estimate.cells import Cells
from sparsefill.estimate.heads import EstimateKernels, Heads, estimate_heads
from sparsefill.estimate.interleaved import parity_parts
from sparsefill.estimate.merge import Part, merge_heads, no_cells
from sparsefill.index import SparseIndex
from sparsefill.patterns import InfLLM, Interleaved, Pattern

__all__ = ["Cells", "estimate", "estimate_cells", "estimate_parts", "merge_cells"]

# importing registers them
FAMILIES = (
    a_shape,
    block_topk,
    dense,
    fixed_slash,
    infllm,
    interleaved,
    tri_shape,
    vertical_slash,
)

BACKENDS = (
    "auto",
    "reference",
    "torch",
    *("triton", *(f"triton-{variant}" for variant in get_args(gpu.Variant))),
    *("cpu", *(f"cpu-{isa}" for isa in abi.ISAS)),
)
KERNELS = {  # by backend, the fastest first
    "triton": "sparsefill.estimate.triton",
    "cpu": "sparsefill.estimate.compiled",
}


def estimate(
    pattern: Pattern | Sequence[Pattern],
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    *,
    scale: float | None = None,
    softcap: float | None = None,
    query_lengths: Int[Tensor, " b"] | None = None,
    key_lengths: Int[Tensor, " b"] | None = None,
    backend: str = "auto",
) -> SparseIndex:
    """Find which cells each query head keeps on this input.

    Args:
        pattern: one for all query heads, or one for each of the `h` query heads.
        scale: what scores are multiplied by; `d ** -0.5` when None.
        softcap: scores are bounded to `softcap * tanh(score / softcap)` when given.
        query_lengths: queries of each sequence, the rest is padding; all `n` when None.
        key_lengths: keys of each sequence; all `m` when None. The last query of a
            sequence stands at its last key.
        backend: "auto" estimates by Triton or compiled kernels where they serve, else by torch
            operations; "triton", "cpu" (or "cpu-<instruction set>") and "torch" ask for one.

    Raises:
        UnsupportedError: the kernels that were asked for cannot serve, or a head is
            interleaved, which takes more than an index.

    Example:
        >>> from sparsefill import AShape
        >>> q = torch.randn(1, 2, 128, 64)
        >>> estimate(AShape(sink=1, window=1), q, q).slash_tiles.tolist()
        [[[0], [0]]]
    """
    parts = estimate_parts(
        _by_head(pattern, q.shape[1]),
        q,
        k,
        scale=scale,
        softcap=softcap,
        query_lengths=query_lengths,
        key_lengths=key_lengths,
        backend=backend,
    )
    return parts[0][1] if len(parts) == 1 else merge_heads(parts, q.shape[1])


def estimate_cells(
    pattern: Pattern | Sequence[Pattern],
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    *,
    scale: float | None = None,
    softcap: float | None = None,
    query_lengths: Int[Tensor, " b"] | None = None,
    key_lengths: Int[Tensor, " b"] | None = None,
    backend: str = "auto",
) -> Cells:
    """Do what `estimate` does, for interleaved heads too.

    Example:
        >>> q = torch.randn(1, 1, 4, 8)
        >>> estimate_cells(Interleaved(sink=0), q, q).to_mask()[0, 0].int()
        tensor([[1, 0, 0, 0],
                [0, 1, 0, 0],
                [1, 0, 1, 0],
                [0, 1, 0, 1]], dtype=torch.int32)
    """
    patterns = _by_head(pattern, q.shape[1])
    interleaved = {head: own for head, own in patterns.items() if isinstance(own, Interleaved)}
    parts = estimate_parts(
        {head: own for head, own in patterns.items() if head not in interleaved},
        q,
        k,
        scale=scale,
        softcap=softcap,
        query_lengths=query_lengths,
        key_lengths=key_lengths,
        backend=backend,
    )
    return merge_cells(
        parts,
        interleaved,
        q.shape[1],
        n=q.shape[2],
        m=k.shape[2],
        query_lengths=_lengths(query_lengths, q),
        key_lengths=_lengths(key_lengths, k),
    )


def merge_cells(
    parts: Sequence[Part],
    interleaved: Mapping[int, Interleaved],
    h: int,
    *,
    n: int,
    m: int,
    query_lengths: Int32[Tensor, " b"],
    key_lengths: Int32[Tensor, " b"],
) -> Cells:
    """Join what was estimated with what interleaved heads keep.

    Args:
        parts: as `merge_heads` has them.
        interleaved: patterns of the other heads, by query head.
        h: query heads of the layer.
    """
    lengths = {"query_lengths": query_lengths, "key_lengths": key_lengths}
    if not parts:
        index = no_cells(h, n=n, m=m, **lengths)
    elif len(parts) == 1 and not interleaved:
        index = parts[0][1]
    else:
        index = merge_heads(parts, h)
    if not interleaved:
        return Cells(index=index)
    return Cells(index=index, parts=tuple(parity_parts(interleaved, h, **lengths)))


def _by_head(pattern: Pattern | Sequence[Pattern], h: int) -> dict[int, Pattern]:
    """Give each query head its pattern."""
    patterns = list(pattern) if isinstance(pattern, Sequence) else [pattern] * h
    if len(patterns) != h:
        raise ShapeError(
            f"expected one pattern per query head, got {len(patterns)} patterns for h={h};"
            " pass one pattern for all heads or a sequence of h"
        )
    return dict(enumerate(patterns))


def estimate_parts(
    patterns: Mapping[int, Pattern],
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    *,
    scale: float | None = None,
    softcap: float | None = None,
    query_lengths: Int[Tensor, " b"] | None = None,
    key_lengths: Int[Tensor, " b"] | None = None,
    backend: str = "auto",
) -> list[Part]:
    """Find the cells of some query heads, family by family; `merge_heads` puts them together.

    Args:
        patterns: by query head.
    """
    kernels, isa = _implementation(backend, q)
    queries, keys = _lengths(query_lengths, q), _lengths(key_lengths, k)
    families: dict[object, list[int]] = {}
    for head, own in patterns.items():  # heads that can be estimated together
        shared = isinstance(own, InfLLM)  # heads of this very pattern choose together
        family = own if shared else (type(own), getattr(own, "block", None))
        families.setdefault(family, []).append(head)
    parts = []
    for members in families.values():
        heads = Heads(
            q=q,
            k=k,
            members=torch.tensor(members, device=q.device),
            scale=q.shape[3] ** -0.5 if scale is None else scale,
            softcap=softcap,
            query_lengths=queries,
            key_lengths=keys,
            kernels=kernels,
            isa=isa,
        )
        own = [patterns[head] for head in members]
        parts.append((heads.members, estimate_heads(own[0], own, heads)))
    return parts


def _lengths(given: Int[Tensor, " b"] | None, x: Float[Tensor, "b x n d"]) -> Int32[Tensor, " b"]:
    """Return how many queries or keys each sequence has: all of them where none are given."""
    if given is None:
        return torch.full(x.shape[:1], x.shape[2], dtype=torch.int32, device=x.device)
    return given.int().contiguous()


def _implementation(
    backend: str, q: Float[Tensor, "b h n d"]
) -> tuple[EstimateKernels | None, str | None]:
    """Resolve a backend to: kernels, or None for torch operations, and the instruction set."""
    if backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}; use one of {', '.join(BACKENDS)}")
    name, _, variant = backend.partition("-")
    isa = variant or None if name == "cpu" else None
    for own in KERNELS if name == "auto" else KERNELS.keys() & {name}:
        refusal = gpu.refusal(q) if own == "triton" else abi.refusal(q, isa)
        if refusal is None:
            return cast("EstimateKernels", importlib.import_module(KERNELS[own])), isa
        if name != "auto":
            raise UnsupportedError(f"{backend} backend {refusal}; pass backend='torch'")
    return None, None
