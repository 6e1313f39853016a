"""Right first: our kernels against the float64 oracle, by the error-budget rule of the tests."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.arguments import DTYPES, Shape
from benchmarks.gpu.attend import attend_by
from benchmarks.gpu.check import Check, variants
from benchmarks.problem import Problem, Qkv
from sparsefill import Attended, SparseIndex, estimate
from tests.support.closeness import assert_attended
from tests.support.inputs import PATTERNS, patterns_of, random_qkv

LENGTHS = ((1, 1), (64, 64), (65, 65), (127, 127), (1000, 1000), (65, 190), (200, 77))
TIMED_DIM = 128  # of the layers that are timed
DIMS = {64: LENGTHS, 128: LENGTHS, 80: LENGTHS[2:4], 96: LENGTHS[2:4], 256: LENGTHS[2:4]}
H, G = 2 * len(PATTERNS), len(PATTERNS)  # a head of every pattern, of the first of a group too


def check_timed(check: Check) -> None:
    """Judge every variant as it is timed: bfloat16, head dimension 128."""
    for backend in variants():
        for n, m in LENGTHS:
            judge(check, backend, n=n, m=m, d=TIMED_DIM, dtype="bf16")


def check_others(check: Check) -> None:
    """Judge the default on the other head dimensions and dtypes, until time is up."""
    backend = next(variants())
    for dtype in ("bf16", "fp16"):
        for d, lengths in DIMS.items():
            for n, m in lengths:
                if check.left > 0 and (dtype, d) != ("bf16", TIMED_DIM):
                    judge(check, backend, n=n, m=m, d=d, dtype=dtype)


def judge(check: Check, backend: str, *, n: int, m: int, d: int, dtype: str) -> None:
    """Append a row that says whether a layer is within the error budget.

    Once with an index per query head, once with one per KV head.
    """
    problem = Problem(n, Shape(H, G, d), dtype)
    with check.attempt("values", backend, "mixed", problem, parameters={"m": m}):
        for shared in (False, True):
            attend_and_judge(backend, check.device, n=n, m=m, d=d, dtype=dtype, shared=shared)
        check.add("values", backend, "mixed", problem, parameters={"m": m})


def attend_and_judge(
    backend: str, device: torch.device, *, n: int, m: int, d: int, dtype: str, shared: bool
) -> None:
    """Attend on a device, and fail unless the CPU's oracle says that it is right."""
    b = 1 + 32 // min(n, m)
    qkv = random_qkv(b=b, h=H, g=G, n=n, m=m, d=d, dtype=DTYPES[dtype])
    step = H // G if shared else 1
    index = estimate(patterns_of("mixed", H // step), qkv.q[:, ::step], qkv.k, backend="torch")
    there = Qkv(*(t.to(device) for t in qkv))
    got = attend_by(backend, there, moved(index, device))()
    assert_attended(Attended(*(t.cpu() for t in got)), qkv, index)


def moved(index: SparseIndex, device: torch.device) -> SparseIndex:
    """Copy an index to a device."""
    lists = {
        **index.lists(),
        "query_lengths": index.query_lengths,
        "key_lengths": index.key_lengths,
    }
    there: dict[str, Any] = {k: v if v is None else v.to(device) for k, v in lists.items()}
    return SparseIndex(n=index.n, m=index.m, **there)
