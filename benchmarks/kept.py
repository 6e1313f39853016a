"""What an index keeps: density exactly, recall on a sample of row blocks."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.problem import Qkv
from sparsefill import SparseIndex
from sparsefill.engine import RECALL_SAMPLES
from sparsefill.metrics import dense_lse, density, recall
from sparsefill.tile import TILE, sample_row_blocks


def mean_density(index: SparseIndex) -> float:
    """Return the share of causal cells kept, over all heads."""
    return float(density(index).mean())


def dense_sample(qkv: Qkv) -> dict[int, Float[Tensor, "1 h rows"]]:
    """Compute the dense log-sum-exp of some row blocks, by row block, in float32.

    Up to 1,024 tokens these are all row blocks. A row block is the end of a prompt that
    stops there, so each is one small call whose memory is bounded.
    """
    n = qkv.q.shape[2]
    sample = {}
    for i in sample_row_blocks(n, RECALL_SAMPLES):
        end = min(n, (i + 1) * TILE)
        q, k = qkv.q[:, :, i * TILE : end], qkv.k[:, :, :end]
        sample[i] = dense_lse(q.float(), k.float())
    return sample


def mean_recall(lse: Float[Tensor, "1 h n"], sample: dict[int, Float[Tensor, "1 h rows"]]) -> float:
    """Average the attention mass kept by the sampled queries, all heads alike."""
    kept = [
        recall(lse[..., i * TILE : i * TILE + dense.shape[-1]].float(), dense)
        for i, dense in sample.items()
    ]
    return float(torch.cat(kept, dim=-1).double().mean().clamp(max=1.0))
