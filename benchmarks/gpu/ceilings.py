"""What this device reaches at best today: a large matrix product, and a large copy."""

from __future__ import annotations

import torch

from benchmarks.gpu.check import Check
from benchmarks.gpu.limits import ELEMENT, Work, rates_of

SIZE = 8192  # of the square matrices
COPIED = 2**31  # bytes


def measure_ceilings(check: Check) -> None:
    """Append the two rows to hold beside the published rates."""
    device = check.device
    a, b = (torch.randn(SIZE, SIZE, device=device).to(torch.bfloat16) for _ in range(2))
    source = torch.empty(COPIED, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    functions = {"matmul": lambda: a @ b, "copy": lambda: target.copy_(source)}
    works = {
        "matmul": Work(flops=2.0 * SIZE**3, bytes=3.0 * ELEMENT * SIZE**2),
        "copy": Work(flops=0.0, bytes=2.0 * COPIED),
    }
    for function in functions.values():
        function()
    first = {name: check.run(function)[1] for name, function in functions.items()}
    for name, timing in check.interleave(functions, first).items():
        work = works[name]
        check.add(
            "ceiling",
            "torch",
            name,
            check.problem(SIZE),
            median_s=timing.median_s,
            iqr_s=timing.iqr_s,
            repeats=len(timing.samples),
            tflops=work.flops / timing.median_s / 1e12,
            work=work.fields(rates_of(device), timing.median_s),
        )
