"""Launch the Hopper kernel: the same results as `attend`, two row blocks for a program.

Nothing chooses it by itself. It was emulated and compiled, and has not run on any GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from sparsefill.gpu import describable_strides, readable, strides_of
from sparsefill.index import SparseIndex
from sparsefill.kernels.triton import Plan, empty_results, index_arguments, lists_there
from sparsefill.kernels.triton.hopper_kernel import hopper_kernel
from sparsefill.tile import TILE

DTYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}
# Slots of the ring: as many as shared memory has room for at head_dim 128. Columns are told of
# one turn late, so a ring has two slots at least.
STAGES = {64: 8, 128: 5}
# Of a thread. Three partitions of 128 threads share 512, in steps of 8; with 72 for the producer
# one register spills at head_dim 64 (Triton 3.8).
CONSUMER_REGISTERS, PRODUCER_REGISTERS = 208, 88
launch: Any = hopper_kernel


def attend_on_hopper(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m d"],
    index: SparseIndex,
    plan: Plan,
    maths: tuple[float, float, float],
    capped: bool,
) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b h n"]]:
    """Attend over the cells of `index`, on the current GPU, of compute capability 9.0.

    Args:
        plan: what `make_plan` found for this index.
        maths: what `maths_of` returned.
        capped: whether there is a soft cap.
    """
    b, h, _, d = q.shape
    q, k, v = (readable(t, descriptors=True) for t in (q, k, v))
    out, lse = empty_results(q)
    pairs = -(-index.row_blocks // 2)
    launch[(b * h * pairs,)](
        _tiles(q), _tiles(k), _tiles(v),
        k, *strides_of(k),
        v, *strides_of(v),
        out, *strides_of(out),
        lse,
        *index_arguments(index, plan),
        *maths,
        H=h, G=k.shape[1], X=index.x, D=d,
        **lists_there(index),
        SOFTCAP=capped,
        STAGES=STAGES[d],
        CONSUMER_REGISTERS=CONSUMER_REGISTERS, PRODUCER_REGISTERS=PRODUCER_REGISTERS,
        num_warps=4,
    )  # fmt: skip
    return out, lse


def _tiles(tensor: Float[Tensor, "b heads length d"]) -> TensorDescriptor:
    """Describe a tensor to the copy engine, one head's 64 rows at a time."""
    block = [1, 1, TILE, tensor.shape[-1]]
    layout: Any = gl.NVMMASharedLayout.get_default_for(block, DTYPES[tensor.dtype])
    strides = describable_strides(tensor)
    return TensorDescriptor(tensor, list(tensor.shape), strides, block, layout)
