"""How much was kept and what that cost: density, recall, output error.

One home for search, tests, evaluations and pictures.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsefill.density import density

__all__ = [
    "dense_lse",
    "density",
    "kl_divergence",
    "output_error",
    "recall",
    "top1_agreement",
]

MAX_SCORES = 2**22  # scores held at once: 16 MiB in float32


def recall(
    lse: Float[Tensor, "*shape"], dense_lse: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Return the attention mass that each query kept, from its two log-sum-exps.

    The kept keys' share of a softmax is `exp(lse - dense_lse)` exactly, so recall costs
    no attention matrix. A query without keys has recall 1: nothing was lost.

    Example:
        >>> recall(torch.tensor([0.0]), torch.tensor([2.0]).log()).item()
        0.5
    """
    return torch.exp(lse - dense_lse).masked_fill(dense_lse == -torch.inf, 1.0)


def dense_lse(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    *,
    scale: float | None = None,
    softcap: float | None = None,
    query_lengths: Int[Tensor, " b"] | None = None,
    key_lengths: Int[Tensor, " b"] | None = None,
) -> Float[Tensor, "b h n"]:
    """Compute the log-sum-exp of dense causal attention, in blocks of queries.

    Costs half of dense attention. Queries past their sequence's length get minus
    infinity.

    Example:
        >>> dense_lse(torch.zeros(1, 1, 3, 8), torch.zeros(1, 1, 3, 8)).exp()
        tensor([[[1., 2., 3.]]])
    """
    b, h, n, d = q.shape
    g, m = k.shape[1], k.shape[2]
    full = torch.ones(b, dtype=torch.long, device=q.device)
    queries = full * n if query_lengths is None else query_lengths
    keys = full * m if key_lengths is None else key_lengths
    shift = (keys - queries).long()
    dtype = torch.promote_types(q.dtype, torch.float32)
    rows = max(1, min(n, MAX_SCORES // (b * h * m)))
    lse = torch.full((b, h, n), -torch.inf, dtype=dtype, device=q.device)
    for first in range(0, n, rows):
        query = torch.arange(first, min(n, first + rows), device=q.device)
        position = (query + shift[:, None]).masked_fill(query >= queries[:, None], -1)
        seen = int(position.max()) + 1
        if seen <= 0:
            continue
        own = q[:, :, query].to(dtype).unflatten(1, (g, -1)).flatten(2, 3)
        scores = own * (d**-0.5 if scale is None else scale)
        scores = scores @ k[:, :, :seen].to(dtype).transpose(-1, -2)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        future = torch.arange(seen, device=q.device) > position[..., None]
        scores = scores.unflatten(2, (h // g, -1)).masked_fill_(future[:, None, None], -torch.inf)
        lse[:, :, query] = scores.logsumexp(-1).flatten(1, 2)
    return lse


def output_error(
    out: Float[Tensor, "b h n d"], dense_out: Float[Tensor, "b h n d"]
) -> Float[Tensor, "b h"]:
    """Return each head's relative output error, |out - dense| / |dense| in the L2 norm.

    Example:
        >>> output_error(torch.zeros(1, 1, 2, 4), torch.ones(1, 1, 2, 4)).item()
        1.0
    """
    wide = torch.promote_types(out.dtype, torch.float32)
    difference = (out.to(wide) - dense_out.to(wide)).flatten(2).norm(dim=-1)
    return difference / dense_out.to(wide).flatten(2).norm(dim=-1).clamp(min=1e-30)


def kl_divergence(
    dense_logits: Float[Tensor, "positions vocabulary"],
    logits: Float[Tensor, "positions vocabulary"],
) -> Float[Tensor, " positions"]:
    """Return KL(dense || sparse) of the next-token distributions, in nats.

    Example:
        >>> same = torch.zeros(1, 5)
        >>> kl_divergence(same, same).item()
        0.0
    """
    dense = dense_logits.double().log_softmax(-1)
    return (dense.exp() * (dense - logits.double().log_softmax(-1))).sum(-1)


def top1_agreement(
    dense_logits: Float[Tensor, "positions vocabulary"],
    logits: Float[Tensor, "positions vocabulary"],
) -> float:
    """Return the share of positions at which both name the same most likely token.

    Example:
        >>> top1_agreement(torch.eye(4), torch.eye(4).roll(1, 0))
        0.0
    """
    return float((dense_logits.argmax(-1) == logits.argmax(-1)).float().mean())
