"""Other people's attention, timed in the same rounds: torch SDPA and FlexAttention."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.problem import Problem, Qkv
from sparsefill import SparseIndex
from sparsefill.errors import UnsupportedError
from sparsefill.tile import TILE


def sdpa(qkv: Qkv) -> Float[Tensor, "1 h n d"]:
    """Attend densely with torch's own kernel; grouped heads without copies of the keys."""
    return scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=True)


def compile_flex() -> Callable[..., Tensor]:
    """Compile FlexAttention for the next shape: static sizes, compiled at the first call.

    Raises:
        UnsupportedError: this torch has no FlexAttention, or there is no compiler.
    """
    try:
        from torch.nn.attention.flex_attention import flex_attention
    except ImportError as error:
        raise UnsupportedError(f"FlexAttention needs torch 2.6 or later, got {error}") from None
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UnsupportedError("FlexAttention needs a C++ compiler to compile, got none on PATH")
    torch.compiler.reset()  # otherwise it gives up on compiling after some shapes
    return torch.compile(flex_attention, dynamic=False)


def flex_blocks(problem: Problem, index: SparseIndex) -> Any:
    """Turn an index of aligned tiles into FlexAttention's block mask, without n * n.

    The diagonal tile of a row block is masked, all others are whole. Lists of one shape
    at every density let one compiled kernel serve them all.
    """
    from torch.nn.attention.flex_attention import BlockMask

    if problem.n % TILE or index.row_ptr is None or index.tile_starts is None:
        raise UnsupportedError(
            f"FlexAttention is compared on whole aligned tiles, got {problem};"
            f" pass lengths that are multiples of {TILE} and --patterns block"
        )
    rows, x = index.row_blocks, index.x
    counts = index.row_ptr[0].diff() - 1  # the diagonal tile, always the last, stands apart
    columns = torch.zeros(x, rows, rows, dtype=torch.int32, device=index.device)
    step = torch.arange(rows, device=index.device)
    there = step < counts[..., None]
    first = index.row_ptr[0, :, :-1, None].long()
    columns[there] = index.tile_starts[(first + step)[there]] // TILE
    diagonal = torch.zeros_like(columns)
    diagonal[..., 0] = step.int()

    def causal(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return q_idx >= kv_idx

    return BlockMask.from_kv_blocks(
        torch.ones_like(counts[None]),
        diagonal[None],
        counts[None],
        columns[None],
        BLOCK_SIZE=(TILE, TILE),
        mask_mod=causal,
        seq_lengths=(problem.n, problem.n),
        compute_q_blocks=False,
    )
