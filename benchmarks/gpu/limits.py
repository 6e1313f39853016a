"""What attention must compute and move, and how fast a device could do that at best.

Operations: 4 d for each kept causal cell of each query head, as `sparsefill.density` counts
cells. Bytes: q, k, v, out and lse once, as if all else stayed in caches. The limit is the
longer of the two at the published rates.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from benchmarks.problem import Problem
from sparsefill import BlockTopK, Pattern, SparseIndex, VerticalSlash
from sparsefill.tile import TILE

ELEMENT = 2  # bytes of bf16 and fp16
LSE_ELEMENT = 4


@dataclass(frozen=True)
class Rates:
    """Dense 16-bit matrix operations and bytes of device memory, per second."""

    flops: float
    bytes: float


PUBLISHED = (  # vendor's data sheets: compute capability, part of the name, rates
    ((8, 0), "A100 80GB PCIe", Rates(312e12, 1.935e12)),
    ((8, 0), "A100-SXM4-80GB", Rates(312e12, 2.039e12)),
    ((8, 0), "A100", Rates(312e12, 1.555e12)),
    ((9, 0), "H200", Rates(989e12, 4.8e12)),
    ((9, 0), "H100 PCIe", Rates(756e12, 2.0e12)),
    ((9, 0), "H100 NVL", Rates(835e12, 3.9e12)),
    ((9, 0), "H100", Rates(989e12, 3.35e12)),
    ((10, 0), "B200", Rates(2250e12, 8.0e12)),
)


def published_rates(capability: tuple[int, int], name: str) -> Rates | None:
    """Look a device up; None if it is not in the table.

    Example:
        >>> published_rates((9, 0), "NVIDIA H100 80GB HBM3")
        Rates(flops=989000000000000.0, bytes=3350000000000.0)
        >>> published_rates((7, 5), "Tesla T4")
    """
    for known, part, rates in PUBLISHED:
        if capability == known and part in name:
            return rates
    return None


def rates_of(device: torch.device) -> Rates | None:
    """Return the published rates of a device; None on a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return published_rates(torch.cuda.get_device_capability(device), name)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What was counted.

    Args:
        flops: operations on kept causal cells.
        bytes: each tensor once.
        tile_flops: operations on whole tiles and all columns, as the matrix units do them.
        tile_bytes: keys and values of every tile and column for each row block of each query
            head, which come from the L2 or from memory, besides q, out and lse.
    """

    flops: float
    bytes: float
    tile_flops: float | None = None
    tile_bytes: float | None = None

    def least_seconds(self, rates: Rates | None) -> float | None:
        """Return the limit: no kernel is faster at these rates."""
        return rates and max(self.flops / rates.flops, self.bytes / rates.bytes)

    def fields(self, rates: Rates | None, seconds: float) -> dict[str, float | None]:
        """Return what a row stores of it."""
        least = self.least_seconds(rates)
        return {**asdict(self), "limit_s": least, "of_limit": least and least / seconds}


def attend_work(problem: Problem, density: float, index: SparseIndex | None = None) -> Work:
    """Count what attending takes.

    Args:
        density: share of the causal cells that are kept.
        index: None for somebody else's kernel, whose tiles are not known.
    """
    h, g, d = problem.shape
    ends = (2 * ELEMENT * d + LSE_ELEMENT) * h * problem.n  # q, out and lse
    once = ends + 2 * ELEMENT * d * g * problem.n
    flops = problem.flops * density
    if index is None:
        return Work(flops=flops, bytes=once)
    keys = int(index.keys_read().sum()) * h // index.x  # over the row blocks of query heads
    return Work(
        flops=flops,
        bytes=once,
        tile_flops=4.0 * d * TILE * keys,
        tile_bytes=ends + 2.0 * ELEMENT * d * keys,
    )


def estimate_work(problem: Problem, pattern: Pattern) -> Work | None:
    """Count what finding the cells takes; None for a pattern without such a count.

    Vertical-slash scores the last queries against all keys, which it reads once; block
    top-k reads q and k once and scores their means, those of the causal half.
    """
    (h, g, d), n = problem.shape, problem.n
    if isinstance(pattern, VerticalSlash):
        probe = min(pattern.probe, n)
        read = ELEMENT * d * (g * n + h * probe)
        return Work(flops=2.0 * d * h * probe * n, bytes=read)
    if isinstance(pattern, BlockTopK):
        blocks = -(-n // pattern.block)
        return Work(flops=d * h * float(blocks) ** 2, bytes=ELEMENT * d * (h + g) * n)
    return None
