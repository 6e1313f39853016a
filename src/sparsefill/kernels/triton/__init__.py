"""The GPU backend: Triton kernels, three launches for a whole layer.

    plan (two small launches): what each row block reads, what slash tiles cover
    attend: one program for each row block of each query head

Keys and values are read in place, by every query head of their group. Accumulates in
float32. Kernels are chosen by what the device can do, never by its name.
"""
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import importlib
from typing import NamedTuple

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sparsefill.gpu import (
    Variant,
    describable_strides,
    launched_on,
    maths_of,
    readable,
    strides_of,
)
from sparsefill.index import SparseIndex
from sparsefill.kernels.triton.attend import attend_kernel
from sparsefill.kernels.triton.launch import Settings, settings_for
from sparsefill.kernels.triton.plan import PLANNED, plan_covered, plan_rows
from sparsefill.tile import TILE

PLAN_BLOCK, COVER_BLOCK = 128, 256  # row blocks, and words, of one small program


class Plan(NamedTuple):
    """What the attend kernel reads beside the index.

    Args:
        rows: slash tiles and columns in reach, and the first further tile that needs a mask.
        covered: 32 distances in a word, 1 where a slash tile covers them.
        steps: bits of the longest list, which bounds a binary search.
    """

    rows: Int32[Tensor, "b x i planned"]
    covered: Int32[Tensor, "b x words"]
    steps: int


def attend(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m d"],
    index: SparseIndex,
    *,
    scale: float,
    softcap: float | None,
    variant: Variant | None = None,
) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b h n"]]:
    """Attend over the cells of `index`.

    Args:
        variant: how whole tiles are loaded, or the kernel for Hopper; None takes what the device
            is best at.
    """
    index = index.contiguous()
    with launched_on(q.device):
        plan = make_plan(index)
        maths = maths_of(scale, softcap)
        if variant == "hopper":
            # imported when asked for: Gluon is an experimental part of Triton
            hopper = importlib.import_module("sparsefill.kernels.triton.hopper")
            return hopper.attend_on_hopper(q, k, v, index, plan, maths, capped=softcap is not None)
        return attend_planned(q, k, v, index, plan, maths, softcap is not None, variant)


def attend_planned(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m d"],
    index: SparseIndex,
    plan: Plan,
    maths: tuple[float, float, float],
    capped: bool,
    variant: Variant | None,
) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b h n"]]:
    """Attend by one program for each row block of each query head."""
    b, h, _, d = q.shape
    settings = settings_for(d, variant)
    q, k, v = (readable(t, descriptors=settings.descriptors) for t in (q, k, v))
    out, lse = empty_results(q)
    attend_kernel[(b * h * index.row_blocks,)](
        q, *strides_of(q),
        k, *strides_of(k),
        v, *strides_of(v),
        out, *strides_of(out),
        lse,
        *_descriptors(k, settings), *_descriptors(v, settings),
        *index_arguments(index, plan),
        *maths,
        H=h, G=k.shape[1], X=index.x, D=d, D0=settings.parts[0], D1=settings.parts[1],
        **lists_there(index),
        SOFTCAP=capped, DESCRIPTORS=settings.descriptors,
        BLOCK_Q=TILE, BLOCK_K=TILE,
        STAGES=settings.stages, COLUMN_STAGES=settings.column_stages,
        num_warps=settings.warps,
    )  # fmt: skip
    return out, lse


def make_plan(index: SparseIndex) -> Plan:
    """Find what each row block reads, and which distances slash tiles cover."""
    b, x, rows = index.b, index.x, index.row_blocks
    there = lists_there(index)
    capacities = index.slash_tiles.shape[-1], index.column_indices.shape[-1]
    longest = max(*capacities, 0 if index.tile_starts is None else index.m // TILE + 2)
    steps = longest.bit_length()
    planned = torch.empty(b, x, rows, PLANNED.value, dtype=torch.int32, device=index.device)
    plan_rows[(b * x, -(-rows // PLAN_BLOCK))](
        index.slash_tiles, index.slash_counts, index.column_indices, index.column_counts,
        index.row_ptr, index.tile_starts,
        index.query_lengths, index.key_lengths,
        planned,
        x, rows, *capacities, steps,
        **there, BLOCK=PLAN_BLOCK,
    )  # fmt: skip
    looked_up = there["HAS_SLASHES"] and there["HAS_COLUMNS"]
    words = (index.m + TILE) // 32 + 1 if looked_up else 1
    covered = torch.empty(b, x, words, dtype=torch.int32, device=index.device)
    if looked_up:
        plan_covered[(b * x, -(-words // COVER_BLOCK))](
            index.slash_tiles, index.slash_counts, covered, words, capacities[0], steps,
            BLOCK=COVER_BLOCK,
        )  # fmt: skip
    return Plan(planned, covered, steps)


def _descriptors(
    tensor: Float[Tensor, "b heads length d"], settings: Settings
) -> tuple[TensorDescriptor | None, TensorDescriptor | None]:
    """Describe a tensor for the device to load tiles of, one part of the rows each."""
    if not settings.descriptors:
        return None, None
    strides = describable_strides(tensor)
    first, second = (
        TensorDescriptor(tensor, list(tensor.shape), strides, [1, 1, TILE, width])
        for width in (settings.parts[0], settings.parts[1] or settings.parts[0])
    )
    return first, second


def empty_results(
    q: Float[Tensor, "b h n d"],
) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b h n"]]:
    """Make room for the output, heads last in memory as models want it, and for the LSE."""
    b, h, n, d = q.shape
    out = torch.empty(b, n, h, d, dtype=q.dtype, device=q.device).transpose(1, 2)
    return out, torch.empty(b, h, n, dtype=torch.float32, device=q.device)


def index_arguments(index: SparseIndex, plan: Plan) -> tuple[Tensor | int | None, ...]:
    """Return lengths, lists, plan and sizes in the order in which both attend kernels take them."""
    return (
        index.query_lengths, index.key_lengths,
        index.slash_tiles, index.column_indices, index.row_ptr, index.tile_starts,
        plan.rows, plan.covered,
        index.n, index.row_blocks, index.slash_tiles.shape[-1], index.column_indices.shape[-1],
        plan.covered.shape[-1], plan.steps,
    )  # fmt: skip


def lists_there(index: SparseIndex) -> dict[str, bool]:
    """Tell which lists an index may use, from shapes alone."""
    return {
        "HAS_SLASHES": index.slash_tiles.shape[-1] > 0,
        "HAS_COLUMNS": index.column_indices.shape[-1] > 0,
        "HAS_TILES": index.tile_starts is not None,
    }
