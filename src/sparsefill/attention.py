"""The front door: check, estimate, attend. The one place that sees all stages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsefill._checks import check_finite, check_lengths, check_maths, check_qkv
from sparsefill.errors import ShapeError
from sparsefill.estimate import Cells, estimate_cells
from sparsefill.index import SparseIndex
from sparsefill.kernels import Attended, BackendName, attend_unchecked
from sparsefill.patterns import Dense, Pattern
from sparsefill.tile import TILE


class Stages(NamedTuple):
    """What the stages made, and how long each took in seconds."""

    attended: Attended
    cells: Cells
    estimate_s: float
    attend_s: float


def sparse_attention(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m d"],
    pattern: Pattern | Sequence[Pattern],
    *,
    scale: float | None = None,
    softcap: float | None = None,
    query_lengths: Int[Tensor, " b"] | None = None,
    key_lengths: Int[Tensor, " b"] | None = None,
    backend: BackendName = "auto",
) -> Float[Tensor, "b h n d"]:
    """Attend causally over the cells that a pattern finds on this input.

    The last query of a sequence stands at its last key, so `n < m` is a chunk of
    queries after cached keys.

    Args:
        pattern: one for all query heads, or one for each of the `h` query heads.
        scale: what scores are multiplied by; `d ** -0.5` when None.
        softcap: scores are bounded to `softcap * tanh(score / softcap)` when given.
        query_lengths: queries of each sequence, the rest is padding; all `n` when None.
        key_lengths: keys of each sequence; all `m` when None.
        backend: which kernels attend; `sparsefill info` tells what `"auto"` picks.

    Raises:
        ShapeError: a tensor does not fit the others.
        InputError: a tensor holds NaN or infinity.
        UnsupportedError: the backend cannot serve this call.

    Example:
        >>> import torch
        >>> from sparsefill import VerticalSlash
        >>> q, k = torch.randn(1, 8, 300, 64), torch.randn(1, 2, 300, 64)
        >>> sparse_attention(q, k, k, VerticalSlash(verticals=50, slashes=100)).shape
        torch.Size([1, 8, 300, 64])
    """
    stages = attend_in_stages(
        q,
        k,
        v,
        pattern,
        scale=scale,
        softcap=softcap,
        query_lengths=query_lengths,
        key_lengths=key_lengths,
        backend=backend,
    )
    return stages.attended.out


def attend_in_stages(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m d"],
    pattern: Pattern | Sequence[Pattern] | SparseIndex,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    query_lengths: Int[Tensor, " b"] | None = None,
    key_lengths: Int[Tensor, " b"] | None = None,
    backend: BackendName = "auto",
    rows: Sequence[slice] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Stages:
    """Do what `sparse_attention` does, and return the cells, the LSE and the times.

    Args:
        pattern: one for all query heads, one for each of them, or what an estimate gave for
            these lengths.
        rows: queries to attend with, one span after the other, each from the start of a row
            block; all when None. The cells are those of all queries either way.
        clock: reads the time in seconds; on an accelerator it should wait for the
            device first.
    """
    check_qkv(q, k, v)
    b, n, m = q.shape[0], q.shape[2], k.shape[2]
    queries = check_lengths(query_lengths, name="query_lengths", b=b, longest=n, device=q.device)
    keys = check_lengths(key_lengths, name="key_lengths", b=b, longest=m, device=q.device)
    check_finite(q, k, v, queries, keys)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    check_maths(scale, softcap)
    started = clock()
    if isinstance(pattern, SparseIndex):
        cells = Cells(index=pattern)
    else:
        cells = estimate_cells(
            pattern,
            q,
            k,
            scale=scale,
            softcap=softcap,
            query_lengths=queries,
            key_lengths=keys,
            backend=backend,
        )
    estimated = clock()
    maths: dict[str, Any] = {"scale": scale, "softcap": softcap, "backend": backend}
    if rows is None:
        attended = attend_cells(q, k, v, cells, **maths)
    else:
        attended = attend_rows(q, k, v, cells, rows, **maths)
    return Stages(attended, cells, estimated - started, clock() - estimated)


def attend_cells(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m d"],
    cells: Cells,
    *,
    scale: float,
    softcap: float | None,
    backend: BackendName,
) -> Attended:
    """Attend over all cells of a layer, on inputs that were checked already.

    Parts of interleaved heads read every second query and key in place.
    """
    maths: dict[str, Any] = {"scale": scale, "softcap": softcap, "backend": backend}
    whole = attend_unchecked(q, k, v, cells.index, **maths)
    for (sequence, first), parts in groupby(cells.parts, lambda p: (p.sequence, p.rows.start)):
        own, found = slice(sequence, sequence + 1), []
        rows = slice(first, None, 2)
        for part in parts:
            rows = part.rows
            keys = (own, slice(None), part.keys)
            found.append(attend_unchecked(q[own, :, rows], k[keys], v[keys], part.index, **maths))
        before = Attended(*(t[own, :, rows] for t in whole))
        for to, merged in zip(before, merge_attended([before, *found]), strict=True):
            to.copy_(merged)
    return whole


def attend_rows(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m d"],
    cells: Cells,
    rows: Sequence[slice],
    *,
    scale: float,
    softcap: float | None,
    backend: BackendName,
) -> Attended:
    """Attend with some of the queries, over the cells that are theirs, on checked inputs.

    Args:
        rows: spans of queries, each from the start of a row block.

    Returns:
        What the spans found, one after the other.

    Raises:
        ShapeError: there is no span, or one begins inside a row block.
    """
    maths: dict[str, Any] = {"scale": scale, "softcap": softcap, "backend": backend}
    if not rows or any((span.start or 0) % TILE for span in rows):
        raise ShapeError(
            f"rows must be spans of queries that begin at multiples of {TILE}, got {list(rows)}"
        )
    if cells.parts:  # every second query: not spans of one index
        whole = attend_cells(q, k, v, cells, **maths)
        found = [Attended(*(part[:, :, span] for part in whole)) for span in rows]
    else:
        found = []
        for span in rows:
            index = cells.index.of_rows(span)
            found.append(attend_unchecked(q[:, :, span], k, v, index, **maths))
    return Attended(*(torch.cat(parts, dim=2) for parts in zip(*found, strict=True)))


def attend_rows_densely(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m d"],
    rows: slice,
    *,
    scale: float,
    softcap: float | None,
    backend: BackendName,
) -> Attended:
    """Attend to all keys with some of the queries, to tell what others left out.

    Nothing is padding, and the inputs were checked already.

    Args:
        rows: the queries, of those of `q`.
    """
    keys = slice(k.shape[2] - q.shape[2] + rows.stop)
    own = q[:, :, rows], k[:, :, keys]
    maths: dict[str, Any] = {"scale": scale, "softcap": softcap, "backend": backend}
    return attend_cells(*own, v[:, :, keys], estimate_cells(Dense(), *own, **maths), **maths)


def merge_attended(parts: Sequence[Attended]) -> Attended:
    """Join what the same queries found among disjoint keys, by the mass of each.

    Example:
        >>> one = Attended(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1))
        >>> none = Attended(torch.zeros(1, 1, 1, 2), torch.tensor([[[-torch.inf]]]))
        >>> merge_attended([one, Attended(one.out * 3, one.lse), none]).out
        tensor([[[[2., 2.]]]])
    """
    lse = torch.stack([part.lse for part in parts]).logsumexp(0)
    base = lse.masked_fill(lse == -torch.inf, 0)
    out = sum(part.out * torch.exp(part.lse - base)[..., None] for part in parts)
    assert isinstance(out, Tensor)
    return Attended(out.to(parts[0].out.dtype), lse)
