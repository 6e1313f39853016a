"""What candidates cost a layer, and what they lose against dense attention on one input.

Of a long prompt, losses are those of `SPANS` spans of queries, evenly spread up to its last one:
attending grows as the prompt does, not as its square. What candidates cost is exact.

Memory is that of the layer's own tensors, times a few: recall comes from log-sum-exps, and
the error after the output projection from d x d products, never from an n x n matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sparsefill.attention import attend_in_stages
from sparsefill.estimate import Cells
from sparsefill.index import SparseIndex
from sparsefill.kernels import Attended, BackendName
from sparsefill.metrics import recall
from sparsefill.patterns import Dense, Pattern
from sparsefill.search.space import dense_keys
from sparsefill.tile import TILE

SPANS, SPAN_BLOCKS = 16, 8  # 8,192 queries: a prompt of that length is scored whole

Candidate = tuple[Pattern, ...] | SparseIndex  # one pattern for each head, or given cells
KINDS = ("cost", "density", "lost", "error", "added")


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """What a layer of a model attends with on one prompt.

    Args:
        number: of the layer.
        scale: what scores are multiplied by.
        projection: weights of the layer's output projection, for each head's output.
        softcap: bound of the scores, or None.
        windowed: a sliding window hides keys, so that the layer stays as it is.
    """

    number: int
    q: Float[Tensor, "1 h n d"]
    k: Float[Tensor, "1 g n d"]
    v: Float[Tensor, "1 g n d"]
    scale: float
    projection: Float[Tensor, "o h d"]
    softcap: float | None = None
    windowed: bool = False

    @property
    def tokens(self) -> int:
        """Length of the prompt."""
        return self.q.shape[2]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """What each candidate costs each head, and what it loses.

    Args:
        cost: keys read as a share of those that dense attention reads, tiles whole.
        density: kept share of the causal cells.
        lost: attention mass not kept, the mean over the queries that were scored: 1 - recall.
        error: |output - dense output| / |dense output| of the head itself (L2).
        added: what the head adds to the relative squared error of the layer's output.
    """

    cost: Float64[Tensor, "c h"]
    density: Float64[Tensor, "c h"]
    lost: Float64[Tensor, "c h"]
    error: Float64[Tensor, "c h"]
    added: Float64[Tensor, "c h"]


def score_layer(
    layer: Layer, candidates: Sequence[Candidate], *, backend: BackendName = "auto"
) -> Scores:
    """Score candidates on a layer, all heads at once."""
    dense = _attend(layer, Dense(), backend)[0]
    layer_energy = _layer_energy(layer, dense.out[0])
    head_energy = torch.linalg.vector_norm(dense.out[0].float(), dim=(1, 2)).square()
    weight = layer.projection.float()
    gram = torch.einsum("ohd,ohe->hde", weight, weight)
    known: dict[Candidate, dict[str, Tensor]] = {}
    for candidate in candidates:
        if candidate in known:
            continue
        attended, cells = _attend(layer, candidate, backend)
        missed = attended.out[0].float() - dense.out[0]
        squares = missed.mT @ missed  # (h, d, d)
        missed_energy = squares.diagonal(dim1=1, dim2=2).sum(-1)
        known[candidate] = {
            "cost": cells.keys_read()[0] / dense_keys(layer.tokens),
            "density": cells.density()[0],
            "lost": (1 - recall(attended.lse, dense.lse)[0].mean(-1)).clamp(min=0),
            "error": (missed_energy / head_energy.clamp(min=1e-30)).sqrt(),
            "added": (gram * squares).sum((-1, -2)).clamp(min=0) / layer_energy,
        }
    rows = [known[candidate] for candidate in candidates]
    return Scores(**{kind: torch.stack([row[kind] for row in rows]).double() for kind in KINDS})


def _attend(
    layer: Layer, pattern: Dense | Candidate, backend: BackendName
) -> tuple[Attended, Cells]:
    stages = attend_in_stages(
        layer.q,
        layer.k,
        layer.v,
        pattern,
        rows=scored_rows(layer.tokens),
        scale=layer.scale,
        softcap=layer.softcap,
        backend=backend,
    )
    return stages.attended, stages.cells


def scored_rows(tokens: int) -> list[slice] | None:
    """Return the queries whose losses are measured; None for all."""
    blocks = -(-tokens // TILE)
    if blocks <= SPANS * SPAN_BLOCKS:
        return None
    ends = (TILE * (blocks * span // SPANS) for span in range(1, SPANS + 1))
    return [slice(end - TILE * SPAN_BLOCKS, min(end, tokens)) for end in ends]


def _layer_energy(layer: Layer, out: Float[Tensor, "h n d"]) -> Float[Tensor, ""]:
    """Return the squared norm of the layer's dense output after its projection."""
    heads = out.float().transpose(0, 1).flatten(1)  # (n, h * d)
    weight = layer.projection.float().flatten(1)
    return ((weight @ (heads.mT @ heads)) * weight).sum().clamp(min=1e-30)
