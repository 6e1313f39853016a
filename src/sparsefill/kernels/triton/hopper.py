"""Launch the Hopper kernel: the same results as `attend`, two row blocks for a program.

Nothing chooses it by itself. It was emulated and compiled, and has not run on any GPU.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from sparsefill.index import SparseIndex
from sparsefill.kernels.triton.hopper_kernel import hopper_kernel
from sparsefill.tile import TILE

DTYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}
# Slots of the ring: as many as shared memory has room for at head_dim 128. Columns are told of
# one turn late, so a ring has two slots at least.
STAGES = {64: 8, 128: 5}
HEAD_DIMS = tuple(STAGES)
# Of a thread. Three partitions of 128 threads share 512, in steps of 8; with 72 for the producer
# one register spills at head_dim 64 (Triton 3.8).
CONSUMER_REGISTERS, PRODUCER_REGISTERS = 208, 88
LOG2_E = math.log2(math.e)
launch: Any = hopper_kernel


class Planned(Protocol):
    """What the kernel reads of a plan: `Plan` of this package tells what it is."""

    @property
    def rows(self) -> Int32[Tensor, "b x i planned"]:
        """Slash tiles and columns in reach of each row block, first of three entries."""
        ...

    @property
    def covered(self) -> Int32[Tensor, "b x words"]:
        """32 distances in a word, 1 where a slash tile covers them."""
        ...

    @property
    def steps(self) -> int:
        """Bits of the longest list."""
        ...


def attend_on_hopper(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m d"],
    index: SparseIndex,
    plan: Planned,
    *,
    scale: float,
    softcap: float | None,
) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b h n"]]:
    """Attend over the cells of `index`, on the current GPU, of compute capability 9.0.

    Inputs are bfloat16 or float16, of a head_dim in `HEAD_DIMS`.

    Args:
        plan: what `make_plan` found for this index.
    """
    b, h, n, d = q.shape
    g = k.shape[1]
    q, k, v = (_readable(t) for t in (q, k, v))
    out = torch.empty(b, n, h, d, dtype=q.dtype, device=q.device).transpose(1, 2)
    lse = torch.empty(b, h, n, dtype=torch.float32, device=q.device)
    index = index.contiguous()
    pairs = -(-index.row_blocks // 2)
    launch[(b * h * pairs,)](
        _tiles(q), _tiles(k), _tiles(v),
        k, *_strides(k),
        v, *_strides(v),
        out, *_strides(out),
        lse,
        index.query_lengths, index.key_lengths,
        index.slash_tiles, index.column_indices, index.row_ptr, index.tile_starts,
        plan.rows, plan.covered,
        n, index.row_blocks, index.slash_tiles.shape[-1], index.column_indices.shape[-1],
        plan.covered.shape[-1], plan.steps,
        scale * LOG2_E,
        2 * LOG2_E * scale / softcap if softcap else 0.0, (softcap or 0.0) * LOG2_E,
        H=h, G=g, X=index.x, D=d,
        HAS_SLASHES=index.slash_tiles.shape[-1] > 0,
        HAS_COLUMNS=index.column_indices.shape[-1] > 0,
        HAS_TILES=index.tile_starts is not None,
        SOFTCAP=softcap is not None,
        STAGES=STAGES[d],
        CONSUMER_REGISTERS=CONSUMER_REGISTERS, PRODUCER_REGISTERS=PRODUCER_REGISTERS,
        num_warps=4,
    )  # fmt: skip
    return out, lse


def _tiles(tensor: Float[Tensor, "b heads length d"]) -> TensorDescriptor:
    """Describe a tensor to the copy engine, one head's 64 rows at a time."""
    d = tensor.shape[-1]
    block = [1, 1, TILE, d]
    layout: Any = gl.NVMMASharedLayout.get_default_for(block, DTYPES[tensor.dtype])
    strides = [step or d for step in _strides(tensor)]  # 0 cannot be described
    return TensorDescriptor(tensor, list(tensor.shape), [*strides, 1], block, layout)


def _readable(tensor: Float[Tensor, "b heads length d"]) -> Float[Tensor, "b heads length d"]:
    """Return the tensor itself, or a copy where the copy engine or wide loads cannot read it."""
    *others, last = zip(tensor.shape, tensor.stride(), strict=True)
    aligned = all(size == 1 or (step > 0 and step % 16 == 0) for size, step in others)
    usable = aligned and last[1] == 1 and tensor.data_ptr() % 16 == 0
    return tensor if usable else tensor.clone(memory_format=torch.contiguous_format)


def _strides(tensor: Float[Tensor, "b heads length d"]) -> tuple[int, ...]:
    """Return the strides of all axes but the last; 0, which fits all kernels, for axes of one."""
    sizes = zip(tensor.shape[:-1], tensor.stride(), strict=False)
    return tuple(0 if size == 1 else step for size, step in sizes)
