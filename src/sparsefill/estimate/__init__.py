"""Turn patterns, queries and keys into the sparse index of this input.

Second of the three stages. Each family lives in its own file and registers one
function; heads of one family are estimated together, whatever their budgets.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsefill import abi, gpu
from sparsefill.errors import InputError, ShapeError, UnsupportedError
from sparsefill.estimate import a_shape, block_topk, dense, fixed_slash, tri_shape, vertical_slash
from sparsefill.estimate.heads import EstimateKernels, Heads, estimate_heads
from sparsefill.estimate.merge import Part, merge_heads
from sparsefill.index import SparseIndex
from sparsefill.patterns import Pattern

__all__ = ["estimate", "estimate_parts", "merge_heads"]

# importing registers them
FAMILIES = (a_shape, block_topk, dense, fixed_slash, tri_shape, vertical_slash)

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
        UnsupportedError: the kernels that were asked for cannot serve.

    Example:
        >>> from sparsefill import AShape
        >>> q = torch.randn(1, 2, 128, 64)
        >>> estimate(AShape(sink=1, window=1), q, q).slash_tiles.tolist()
        [[[0], [0]]]
    """
    h = q.shape[1]
    patterns = list(pattern) if isinstance(pattern, Sequence) else [pattern] * h
    if len(patterns) != h:
        raise ShapeError(
            f"expected one pattern per query head, got {len(patterns)} patterns for h={h};"
            " pass one pattern for all heads or a sequence of h"
        )
    parts = estimate_parts(
        dict(enumerate(patterns)),
        q,
        k,
        scale=scale,
        softcap=softcap,
        query_lengths=query_lengths,
        key_lengths=key_lengths,
        backend=backend,
    )
    return parts[0][1] if len(parts) == 1 else merge_heads(parts, h)


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
    b, n, d = q.shape[0], q.shape[2], q.shape[3]
    kernels, isa = _implementation(backend, q)
    full = torch.ones(b, dtype=torch.int32, device=q.device)
    queries = full * n if query_lengths is None else query_lengths.int().contiguous()
    keys = full * k.shape[2] if key_lengths is None else key_lengths.int().contiguous()
    families: dict[object, list[int]] = {}
    for head, own in patterns.items():  # heads that can be estimated together
        families.setdefault((type(own), getattr(own, "block", None)), []).append(head)
    parts = []
    for members in families.values():
        heads = Heads(
            q=q,
            k=k,
            members=torch.tensor(members, device=q.device),
            scale=d**-0.5 if scale is None else scale,
            softcap=softcap,
            query_lengths=queries,
            key_lengths=keys,
            kernels=kernels,
            isa=isa,
        )
        own = [patterns[head] for head in members]
        parts.append((heads.members, estimate_heads(own[0], own, heads)))
    return parts


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
