"""How far a model strays from its own dense self: no labels, no benchmark.

Rows of logits and greedy outputs of the same prompt, dense and sparse, are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsefill.errors import InputError
from sparsefill.metrics import kl_divergence

ROWS = 128  # compared at once: 128 MiB for each float64 copy of 128 K tokens
TOP = 5


class Rows(NamedTuple):
    """What each position says about the next token, dense against sparse.

    Args:
        kl: KL(dense || sparse), in nats.
        top1: both name the same most likely token.
        top5: share of the five most likely tokens that both name.
        dense_nll: of the true next token, in nats; NaN where it is not known.
        sparse_nll: likewise.
    """

    kl: Float[Tensor, " rows"]
    top1: Bool[Tensor, " rows"]
    top5: Float[Tensor, " rows"]
    dense_nll: Float[Tensor, " rows"]
    sparse_nll: Float[Tensor, " rows"]


@dataclass(frozen=True, kw_only=True)
class LogitFidelity:
    """What rows of logits have in common.

    Args:
        kl_mean: KL(dense || sparse), in nats, as are its median, 99th percentile and maximum.
        top1: share of positions at which both name the same most likely token.
        top5: mean share of the five most likely tokens that both name.
        delta_p_rms: root mean square change of the true next token's probability; None where
            true tokens are not known.
        perplexity_ratio: perplexity of true tokens, sparse over dense; None likewise.
        rows: how many there were.
    """

    kl_mean: float
    kl_median: float
    kl_p99: float
    kl_max: float
    top1: float
    top5: float
    delta_p_rms: float | None
    perplexity_ratio: float | None
    rows: int


def compare_rows(
    dense: Float[Tensor, "rows vocabulary"],
    sparse: Float[Tensor, "rows vocabulary"],
    following: Int[Tensor, " rows"] | None = None,
) -> Rows:
    """Compare logits position by position, in float64.

    Args:
        dense: logits of the model with dense attention.
        sparse: logits at the same positions.
        following: the true next tokens, if they are known: the prompt goes on.

    Example:
        >>> same = compare_rows(torch.eye(6), torch.eye(6))
        >>> float(same.kl.max()), bool(same.top1.all()), float(same.top5.min())
        (0.0, True, 1.0)
    """
    parts = []
    for first in range(0, len(dense), ROWS):
        part = slice(first, first + ROWS)
        true = None if following is None else following[part]
        parts.append(_compare(dense[part], sparse[part], true))
    return join_rows(parts)


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Put the rows of several prompts together."""
    if not parts:
        raise InputError("there are no rows to compare; pass one position or more")
    return Rows(*(torch.cat(column) for column in zip(*parts, strict=True)))


def summarise(rows: Rows) -> LogitFidelity:
    """Summarise compared rows.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
        >>> summarise(compare_rows(logits, logits, torch.tensor([0, 1]))).perplexity_ratio
        1.0
    """
    known = ~rows.dense_nll.isnan()
    dense, sparse = rows.dense_nll[known], rows.sparse_nll[known]
    delta = (-sparse).exp() - (-dense).exp()
    any_known = bool(known.any())
    return LogitFidelity(
        kl_mean=float(rows.kl.mean()),
        kl_median=float(rows.kl.quantile(0.5)),
        kl_p99=float(rows.kl.quantile(0.99)),
        kl_max=float(rows.kl.max()),
        top1=float(rows.top1.double().mean()),
        top5=float(rows.top5.mean()),
        delta_p_rms=float(delta.square().mean().sqrt()) if any_known else None,
        perplexity_ratio=float((sparse.mean() - dense.mean()).exp()) if any_known else None,
        rows=len(rows.kl),
    )


def _compare(dense: Tensor, sparse: Tensor, following: Tensor | None) -> Rows:
    top = min(TOP, dense.shape[-1])
    both = dense.topk(top).indices[:, :, None] == sparse.topk(top).indices[:, None]
    unknown = dense.new_full((len(dense),), torch.nan, dtype=torch.float64)
    return Rows(
        kl=kl_divergence(dense, sparse),
        top1=dense.argmax(-1) == sparse.argmax(-1),
        top5=both.any(-1).double().mean(-1),
        dense_nll=unknown if following is None else _nll(dense, following),
        sparse_nll=unknown if following is None else _nll(sparse, following),
    )


def _nll(logits: Tensor, following: Tensor) -> Tensor:
    return -logits.double().log_softmax(-1).gather(1, following.long()[:, None])[:, 0]


def first_divergence(dense: Sequence[int], sparse: Sequence[int]) -> int | None:
    """Return the first position at which two greedy answers differ; None if they do not.

    An answer that ends while the other goes on differs there.

    Example:
        >>> first_divergence([5, 6, 7], [5, 6, 8]), first_divergence([5], [5, 6])
        (2, 1)
    """
    for at, (one, other) in enumerate(zip(dense, sparse, strict=False)):
        if one != other:
            return at
    return None if len(dense) == len(sparse) else min(len(dense), len(sparse))
