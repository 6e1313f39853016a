"""The GPU backend: Triton kernels, one launch for a whole layer.

    plan (two small launches): what each row block reads, what slash tiles cover
    attend: one program for each row block of each query head

Keys and values are read in place, by every query head of their group. Accumulates in
float32. Kernels are chosen by what the device can do, never by its name.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from sparsefill.index import SparseIndex
from sparsefill.kernels.triton.attend import attend_kernel
from sparsefill.kernels.triton.launch import settings_for
from sparsefill.kernels.triton.plan import PLANNED, plan_covered, plan_rows
from sparsefill.tile import TILE

DTYPES = (torch.bfloat16, torch.float16)
HEAD_DIMS = (*range(16, 129, 16), 256)  # rows of others are loaded two bytes at a time
OLDEST = (8, 0)  # compute capability
SHARED_FOR_256 = 167936  # bytes of shared memory that a block needs at head_dim 256
FARTHEST = 1 << 25  # elements between rows: places in a tile are 32-bit
LOG2_E = 1.4426950408889634
# their arguments are typed as the constants that kernels see
launch_attend: Any = attend_kernel
launch_plan_rows: Any = plan_rows
launch_plan_covered: Any = plan_covered
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


def refusal(q: Float[Tensor, "b h n d"]) -> str | None:
    """Say why these kernels cannot serve `q`, or None if they can."""
    if q.dtype not in DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        return f"needs one of {allowed}, got {q.dtype}"
    if q.shape[-1] not in HEAD_DIMS:
        return f"needs a head_dim that is a multiple of 16 up to 128, or 256, got {q.shape[-1]}"
    if torch.version.hip is not None:
        return None
    capability = torch.cuda.get_device_capability(q.device)
    if capability < OLDEST:
        return f"needs a GPU of compute capability 8.0 or newer, got {capability}"
    shared = torch.cuda.get_device_properties(q.device).shared_memory_per_block_optin
    if q.shape[-1] > 128 and shared < SHARED_FOR_256 and capability != OLDEST:
        return f"needs {SHARED_FOR_256} bytes of shared memory at head_dim 256, got {shared}"
    return None


def attend(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m d"],
    index: SparseIndex,
    *,
    scale: float,
    softcap: float | None,
) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b h n"]]:
    """Attend over the cells of `index`."""
    b, h, n, d = q.shape
    g = k.shape[1]
    q, k, v = (_readable(t) for t in (q, k, v))
    out = torch.empty(b, n, h, d, dtype=q.dtype, device=q.device).transpose(1, 2)
    lse = torch.empty(b, h, n, dtype=torch.float32, device=q.device)
    index = index.contiguous()
    first, second = split_head_dim(d)
    with _on(q.device):
        settings = settings_for(d)
        plan = make_plan(index)
        launch_attend[(b * h * index.row_blocks,)](
            q, *_strides(q),
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
            H=h, G=g, X=index.x, D=d, D0=first, D1=second,
            **_lists_there(index),
            SOFTCAP=softcap is not None,
            BLOCK_Q=TILE, BLOCK_K=TILE,
            STAGES=settings.stages, COLUMN_STAGES=settings.column_stages,
            num_warps=settings.warps,
        )  # fmt: skip
    return out, lse


def make_plan(index: SparseIndex) -> Plan:
    """Find what each row block reads, and which distances slash tiles cover."""
    b, x, rows = index.b, index.x, index.row_blocks
    there = _lists_there(index)
    capacities = index.slash_tiles.shape[-1], index.column_indices.shape[-1]
    longest = max(*capacities, 0 if index.tile_starts is None else index.m // TILE + 2)
    steps = longest.bit_length()
    planned = torch.empty(b, x, rows, PLANNED, dtype=torch.int32, device=index.device)
    launch_plan_rows[(b * x, -(-rows // PLAN_BLOCK))](
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
        launch_plan_covered[(b * x, -(-words // COVER_BLOCK))](
            index.slash_tiles, index.slash_counts, covered, words, capacities[0], steps,
            BLOCK=COVER_BLOCK,
        )  # fmt: skip
    return Plan(planned, covered, steps)


def split_head_dim(d: int) -> tuple[int, int]:
    """Cut a head dimension into two parts that are powers of two; the second may be 0.

    Example:
        >>> [split_head_dim(d) for d in (64, 80, 96, 128, 256)]
        [(64, 0), (64, 16), (64, 32), (64, 64), (128, 128)]
    """
    first = 1 << (d.bit_length() - 1)
    if first == d and d > 64:
        first //= 2
    rest = d - first
    return first, max(16, 1 << (rest - 1).bit_length()) if rest else 0


def _readable(tensor: Float[Tensor, "b heads length d"]) -> Float[Tensor, "b heads length d"]:
    """Return the tensor itself, or a copy if its rows cannot be loaded 16 bytes at a time."""
    *others, row, last = tensor.stride()
    aligned = all(stride % 16 == 0 for stride in (*others, row)) and tensor.data_ptr() % 16 == 0
    return tensor if aligned and last == 1 and row < FARTHEST else tensor.contiguous()


def _strides(tensor: Float[Tensor, "b heads length d"]) -> tuple[int, int, int]:
    """Return the strides; 0 for a single sequence, whose stride would only pick a kernel."""
    sequence, head, row, _ = tensor.stride()
    return (0 if len(tensor) == 1 else sequence), head, row


def _lists_there(index: SparseIndex) -> dict[str, bool]:
    """Tell which lists an index may use, from shapes alone."""
    return {
        "HAS_SLASHES": index.slash_tiles.shape[-1] > 0,
        "HAS_COLUMNS": index.column_indices.shape[-1] > 0,
        "HAS_TILES": index.tile_starts is not None,
    }


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Launch on the tensors' device, which need not be the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
