"""The table of patterns and shapes that every backend is judged on; needs torch alone."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sparsefill import SparseIndex, estimate
from tests.support.closeness import MEASURABLE
from tests.support.inputs import PATTERNS, Qkv, patterns_of, random_qkv

NAMES = [*PATTERNS, "mixed"]
DTYPES = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f64": torch.float64,
}


class Case(NamedTuple):
    """One row of the table."""

    pattern: str
    b: int = 1
    h: int = 4
    g: int = 2
    n: int = 127
    m: int | None = None
    d: int = 64
    dtype: str = "f32"
    shared: bool = False  # one index head per KV head
    softcap: float | None = None

    def __str__(self) -> str:
        keys = "" if self.m is None else f"-m{self.m}"
        shape = f"b{self.b}-h{self.h}g{self.g}-n{self.n}{keys}-d{self.d}-{self.dtype}"
        return f"{self.pattern}-{shape}{'-shared' * self.shared}{'-cap' * bool(self.softcap)}"


def rows(n: int, m: int | None = None) -> int:
    """Return how many sequences of 4 heads have enough rows with keys to judge."""
    return 1 + MEASURABLE // (4 * min(n, m or n))


LENGTHS = (1, 63, 64, 65, 127)
GROUPS = ((2, 2), (4, 2), (6, 2), (8, 1))  # r = 1, 2, 3, 8
CHUNKS = ((1, 130), (65, 190), (200, 77))
ODD_CHUNKS = ((63, 200), (64, 129), (127, 1000), (65, 64), (130, 1))
DIMS = (32, 64, 80, 96, 128, 256)
ALL = Case("mixed", h=6)  # one head of each pattern
CASES = [
    *(Case(p, b=rows(n), n=n) for p in PATTERNS for n in LENGTHS),
    *(Case(p, dtype=t) for p in PATTERNS for t in DTYPES),
    *(Case(p, b=2, h=h, g=g, shared=s) for p in NAMES for h, g in GROUPS for s in (False, True)),
    *(Case(p, b=rows(n, m), n=n, m=m) for p in PATTERNS for n, m in CHUNKS),
    *(Case(p, h=2, g=1, n=1000) for p in PATTERNS),
    *(ALL._replace(b=rows(n), n=n, dtype=t) for n in (*LENGTHS, 1000) for t in DTYPES),
    *(ALL._replace(b=rows(n, m), n=n, m=m) for n, m in (*CHUNKS, *ODD_CHUNKS)),
    *(ALL._replace(d=d, dtype=t) for d in DIMS for t in DTYPES),
    *(ALL._replace(n=200, dtype=t, softcap=2.0) for t in DTYPES),
]


def case_inputs(case: Case) -> tuple[Qkv, SparseIndex]:
    qkv = random_qkv(
        b=case.b, h=case.h, g=case.g, n=case.n, m=case.m, d=case.d, dtype=DTYPES[case.dtype]
    )
    step = case.h // case.g if case.shared else 1
    chosen = patterns_of(case.pattern, case.h // step)
    return qkv, estimate(chosen, qkv.q[:, ::step], qkv.k, softcap=case.softcap)
