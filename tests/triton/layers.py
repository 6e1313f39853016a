"""Layers of attention at a million tokens, compiled and never launched."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch

from sparsefill import BlockTopK, SparseIndex, VerticalSlash
from sparsefill.estimate.heads import Heads
from sparsefill.gpu import Variant
from sparsefill.kernels import triton as backend
from tests.triton.compile import Launch, Report, compile_for, report

estimates = importlib.import_module("sparsefill.estimate.triton")

DIMS = (64, 80, 96, 128, 256)
MILLION = 1 << 20
SHIPPED = ("lines", "blocks", "mixed")
LISTS = {  # what the index of a layer may use
    "lines": {"slashes": 6096, "columns": 1000},
    "few-lines": {"slashes": 208, "columns": 32},
    "one-line": {"slashes": 40000, "columns": 1},
    "blocks": {"tiles": MILLION},
    "mixed": {"slashes": 6096, "columns": 1000, "tiles": MILLION},
}


def meta_index(*, b: int, x: int, n: int, slashes: int = 0, columns: int = 0, tiles: int = 0):
    """Make an index without contents."""
    size: dict[str, tuple[int, ...]] = {
        "query_lengths": (b,),
        "key_lengths": (b,),
        "slash_counts": (b, x),
        "slash_tiles": (b, x, slashes),
        "column_counts": (b, x),
        "column_indices": (b, x, columns),
    }
    if tiles:
        size |= {"row_ptr": (b, x, -(-n // 64) + 1), "tile_starts": (tiles,)}
    lists: dict[str, Any] = {
        name: torch.empty(shape, dtype=torch.int32, device="meta") for name, shape in size.items()
    }
    return SparseIndex(n=n, m=n, **lists)


@cache
def compiled(
    target: str, lists: str, d: int = 128, dtype: torch.dtype = torch.bfloat16, *,
    n: int = MILLION, softcap: float | None = None, heads_last: bool = False,
    variant: Variant | None = None,
) -> tuple[Launch, ...]:  # fmt: skip
    """Compile a layer of Llama-3-8B's heads."""
    b, h, g = 1, 32, 8

    def tensor(heads: int) -> torch.Tensor:
        if heads_last:
            return torch.empty(b, n, heads, d, dtype=dtype, device="meta").transpose(1, 2)
        return torch.empty(b, heads, n, d, dtype=dtype, device="meta")

    index = meta_index(b=b, x=h, n=n, **LISTS[lists])
    with compile_for(target) as launches:
        backend.attend(
            tensor(h), tensor(g), tensor(g), index, scale=0.1, softcap=softcap, variant=variant
        )
    return tuple(launches)


def attend_report(*arguments: Any, **options: Any) -> tuple[Launch, Report]:
    launch = compiled(*arguments, **options)[-1]
    assert launch.name in ("attend_kernel", "hopper_kernel")
    return launch, report(launch)


@cache
def compiled_estimates(
    target: str,
    d: int = 128,
    *,
    n: int = MILLION,
    softcap: float | None = None,
    probe: int = 64,
    block: int = 64,
) -> tuple[Launch, ...]:
    """Compile both dynamic estimates of Llama-3-8B's heads; of blocks, each kernel once."""
    length = torch.empty(1, dtype=torch.int32, device="meta")
    q, k = (torch.empty(1, h, n, d, dtype=torch.bfloat16, device="meta") for h in (32, 8))
    heads = Heads(
        q=q,
        k=k,
        members=torch.empty(32, dtype=torch.long, device="meta"),
        scale=0.1,
        softcap=softcap,
        query_lengths=length,
        key_lengths=length,
    )
    row_ptr = torch.empty(1, 32, -(-n // 64) + 1, dtype=torch.int32, device="meta")
    with compile_for(target) as launches:
        estimates.vertical_slash([VerticalSlash(probe=probe)] * 32, heads)
        lines = len(launches)
        kept, _ = estimates.choose_blocks([BlockTopK(block=block)] * 32, heads, block)
        estimates.list_tiles(kept, row_ptr, n, block)
    blocks = {launch.kernel.hash: launch for launch in launches[lines:]}
    return (*launches[:lines], *blocks.values())
