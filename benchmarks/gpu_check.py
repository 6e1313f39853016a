"""The GPU check: right first, then how fast. `python -m benchmarks.gpu_check --out DIR`.

Needs torch, Triton, numpy and jaxtyping, nothing compiled, and no package index. Works against
a clock, cheapest and most telling rows first, and appends each row as soon as it is known: a run
that is cut short still tells.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.rows import environment
from sparsefill import AShape, Attended, BlockTopK, SparseIndex, VerticalSlash, estimate
from sparsefill.density import density
from sparsefill.kernels import triton as backend
from sparsefill.tile import TILE
from tests.support.closeness import assert_attended
from tests.support.inputs import PATTERNS, Qkv, patterns_of, random_qkv

Heads = tuple[int, int, int]
LLAMA_3_8B: Heads = (32, 8, 128)  # query heads, KV heads, head dimension
LENGTHS = (8192, 131072, 32768, 1048576, 524288)  # in the order of what they tell
DENSITIES = (0.05, 0.02, 0.01)
A_SHAPE = AShape(sink=1024, window=4096)  # the budgets of MInference's search space
VERTICAL_SLASH = ((1000, 6096), (30, 2048))  # (verticals, slashes); the first also at 1M
DENSE_PEERS = {
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
}


@dataclass
class Check:
    """One run: where rows go, and the time that is left."""

    out: Path
    device: torch.device
    until: float
    heads: Heads = LLAMA_3_8B
    repeats: int = 7
    rows: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=environment)

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.until - time.monotonic()

    def add(self, case: str, **values: Any) -> None:
        """Append a row at once."""
        row = {"case": case, **values}
        self.rows.append(row)
        with (self.out / "gpu_check.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "environment": self.environment}) + "\n")

    @contextlib.contextmanager
    def refusals(self, case: str, **values: Any) -> Iterator[None]:
        """Record what fails and go on: the next row may tell why."""
        try:
            yield
        except (
            RuntimeError,
            AssertionError,
            ValueError,
            ImportError,
            NotImplementedError,
        ) as error:
            text = str(error).strip().partition("\n")[0]
            self.add(case, **values, error=f"{type(error).__name__}: {text}"[:300])
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def seconds(self, function: Callable[[], object]) -> float:
        """Time one call, waiting for the device."""
        if self.device.type != "cuda":
            started = time.perf_counter()
            function()
            return time.perf_counter() - started
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def medians(self, functions: dict[str, Callable[[], object]]) -> dict[str, tuple[float, float]]:
        """Time functions in turn; return medians and distances of the quartiles."""
        samples: dict[str, list[float]] = {name: [] for name in functions}
        for function in functions.values():
            function()  # compiles, and does not count
        for turn in range(self.repeats):
            for name, function in functions.items():
                if turn == 0 or sum(samples[name]) < min(3.0, self.left / 8):
                    samples[name].append(self.seconds(function))
        return {name: (statistics.median(own), _spread(own)) for name, own in samples.items()}


def main() -> None:
    """Run everything that the time allows; exit code 1 if a value was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu_check.jsonl")
    parser.add_argument("--seconds", type=float, default=440, help="stop beginning new rows then")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--device", default="cuda", help="cpu: in Triton's interpreter")
    parser.add_argument("--heads", default="x".join(map(str, LLAMA_3_8B)))
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "error: no GPU that torch can use; pass --device cpu to try the script\n")
    given.out.mkdir(parents=True, exist_ok=True)
    h, g, d = map(int, given.heads.split("x"))
    check = Check(
        out=given.out,
        device=torch.device(given.device),
        until=time.monotonic() + given.seconds,
        heads=(h, g, d),
        repeats=given.repeats,
    )
    lengths = [int(n) for n in given.lengths.split(",")]
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # eager is judged by
    try:
        check_values(check)
        for n in lengths:
            with check.refusals("attend", n=n):
                time_attend(check, n)
        for n in lengths[:3]:
            with check.refusals("estimate", n=n):
                time_estimate(check, n)
        check_memory(check)
    finally:
        print(table(check.rows))
    values = [row for row in check.rows if row["case"] == "values"]
    sys.exit(not values or any("error" in row for row in values))


def check_values(check: Check) -> None:
    """Compare with the float64 oracle, by the error-budget rule."""
    shapes = [(1, 1), (64, 64), (65, 65), (127, 127), (1000, 1000), (65, 190), (200, 77)]
    for dtype in (torch.bfloat16, torch.float16):
        for d in (64, 80, 96, 128, 256):
            for n, m in shapes if d in (64, 128) else shapes[3:5]:
                if check.left < 0:
                    return
                name = f"n={n} m={m} d={d} {dtype}"
                with check.refusals("values", problem=name):
                    for shared in (False, True):
                        judge(check, n=n, m=m, d=d, dtype=dtype, shared=shared)
                    check.add("values", problem=name, within_budget=True)
    judge_timed(check, 8192, check.heads[2])


def judge_timed(check: Check, n: int, d: int) -> None:
    """Judge the kernels that are timed: four query heads on one KV head, one kind of list each."""
    qkv = random_qkv(h=4, g=1, n=n, d=d, dtype=torch.bfloat16).map(lambda t: t.to(check.device))
    for name, index in indices(n, 1, check.device):
        with check.refusals("values", problem=f"{name} n={n} d={d}"):
            got = Attended(*backend.attend(*qkv, index, scale=d**-0.5, softcap=None))
            assert_attended(got, qkv, index)
            check.add("values", problem=f"{name} n={n} d={d}", within_budget=True)


def judge(check: Check, *, n: int, m: int, d: int, dtype: torch.dtype, shared: bool) -> None:
    """Fail unless a layer with a head of every pattern is within the error budget."""
    h, g = 2 * len(PATTERNS), len(PATTERNS)
    b = 1 + 32 // min(n, m)
    qkv = random_qkv(b=b, h=h, g=g, n=n, m=m, d=d, dtype=dtype).map(lambda t: t.to(check.device))
    step = h // g if shared else 1
    index = estimate(patterns_of("mixed", h // step), qkv.q[:, ::step], qkv.k, backend="torch")
    got = Attended(*backend.attend(*qkv, index, scale=d**-0.5, softcap=None))
    assert_attended(got, qkv, index)


def time_attend(check: Check, n: int) -> None:
    """Time a layer at one length: dense by all, then every index."""
    if check.left < 0:
        return
    h, g, d = check.heads
    generator = torch.Generator(check.device).manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, n, d, device=check.device, dtype=torch.bfloat16, generator=generator)
        for heads in (h, g, g)
    )
    qkv, best = Qkv(q, k, v), None
    for name, kind in DENSE_PEERS.items():
        with check.refusals("attend", backend=name, n=n):
            found = check.medians({name: partial(dense, qkv, kind)})[name]
            best = min(best or found, found)
            record(check, name, "dense", n, 1.0, found, best[0])
    for name, index in indices(n, g, check.device):
        if check.left < 0:
            return
        with check.refusals("attend", backend="triton", pattern=name, n=n):
            kept = float(density(one_head(index)).mean())
            attend = partial(backend.attend, *qkv, index, scale=d**-0.5, softcap=None)
            found = check.medians({"triton": attend})["triton"]
            record(check, "triton", name, n, kept, found, best[0] if best else None)


def dense(qkv: Qkv, kind: SDPBackend) -> Tensor:
    """Attend densely with one of torch's own kernels."""
    with sdpa_kernel(kind):
        return scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=True)


def record(
    check: Check,
    name: str,
    pattern: str,
    n: int,
    kept: float,
    found: tuple[float, float],
    best: float | None,
) -> None:
    """Append a row of `attend`."""
    h, g, d = check.heads
    flops = 4.0 * d * h * n * (n + 1) / 2 * kept
    check.add(
        "attend",
        backend=name,
        pattern=pattern,
        dtype="bf16",
        n=n,
        h=h,
        g=g,
        d=d,
        density=kept,
        median_s=found[0],
        iqr_s=found[1],
        tflops=flops / found[0] / 1e12,
        speedup=None if best is None else best / found[0],
        efficiency=None if best is None else best * kept / found[0],
    )


def indices(n: int, g: int, device: torch.device) -> Iterator[tuple[str, SparseIndex]]:
    """Build one index after the other, shared by the query heads of a group."""
    for target in DENSITIES:
        yield f"block {target:.0%}", blocks(n, g, target, device)
    for verticals, slashes in VERTICAL_SLASH:
        if n > slashes:
            yield f"vertical-slash {verticals}+{slashes}", lines(n, g, verticals, slashes, device)
    if n > A_SHAPE.window:
        yield "a-shape", lines(n, g, A_SHAPE.sink, A_SHAPE.window, device)
    tiles = torch.arange(0, n, TILE, device=device)
    yield "dense", _index(n, g, device, slash_tiles=tiles)


def lines(n: int, g: int, verticals: int, slashes: int, device: torch.device) -> SparseIndex:
    """Make `slashes` neighbouring diagonals and `verticals` columns spread evenly."""
    tiles = torch.arange(0, slashes, TILE, device=device)
    columns = torch.linspace(0, n - 1, verticals, device=device).long().unique()
    return _index(n, g, device, slash_tiles=tiles, column_indices=columns)


def blocks(n: int, g: int, target: float, device: torch.device) -> SparseIndex:
    """Make evenly spread aligned tiles in every row block, the diagonal one always."""
    rows = n // TILE
    row = torch.arange(rows, device=device)
    counts = (target * (row + 1)).ceil().long()
    starts = torch.cumsum(counts, 0) - counts
    of = torch.repeat_interleave(row, counts)
    place = torch.arange(int(counts.sum()), device=device) - starts[of]
    others = counts[of] - 1  # beside the diagonal tile, which is the last
    tiles = torch.where(place == others, of, place * of // others.clamp(min=1)) * TILE
    ends = torch.cat([torch.zeros(1, device=device).long(), torch.cumsum(counts, 0)])
    row_ptr = ends + torch.arange(g, device=device)[:, None] * int(ends[-1])
    return _index(n, g, device, row_ptr=row_ptr[None], tile_starts=tiles.repeat(g))


def one_head(index: SparseIndex) -> SparseIndex:
    """Cut out the first head of an index whose heads are all alike, on the CPU."""
    values: dict[str, Any] = {}
    for name, tensor in index.lists().items():
        heads = None if tensor is None else tensor if name == "tile_starts" else tensor[:, :1]
        values[name] = None if heads is None else heads.cpu()
    lengths = {"query_lengths": index.query_lengths.cpu(), "key_lengths": index.key_lengths.cpu()}
    return SparseIndex(n=index.n, m=index.m, **lengths, **values)


def _index(n: int, x: int, device: torch.device, **lists: Tensor) -> SparseIndex:
    empty = torch.zeros(0, dtype=torch.long, device=device)
    slashes, columns = (lists.pop(name, empty) for name in ("slash_tiles", "column_indices"))

    def every(own: Tensor) -> Tensor:
        return own.int().expand(1, x, -1).contiguous()

    length = torch.full((1,), n, dtype=torch.int32, device=device)
    return SparseIndex(
        n=n,
        m=n,
        query_lengths=length,
        key_lengths=length,
        slash_tiles=every(slashes),
        slash_counts=torch.full((1, x), len(slashes), dtype=torch.int32, device=device),
        column_indices=every(columns),
        column_counts=torch.full((1, x), len(columns), dtype=torch.int32, device=device),
        **{name: own.int() for name, own in lists.items()},  # pyright: ignore[reportArgumentType]
    )


def time_estimate(check: Check, n: int) -> None:
    """Time finding the cells of a layer."""
    if check.left < 0:
        return
    h, g, d = check.heads
    q, k = (
        torch.randn(1, heads, n, d, device=check.device, dtype=torch.bfloat16) for heads in (h, g)
    )
    patterns = {
        "vertical-slash": VerticalSlash(verticals=1000, slashes=min(n, 6096)),
        "block-topk": BlockTopK(blocks=max(1, n // TILE // 20), block=64),
    }
    for name, pattern in patterns.items():
        with check.refusals("estimate", pattern=name, n=n):
            run = partial(estimate, pattern, q, k, backend="torch")
            median, spread = check.medians({name: run})[name]
            check.add("estimate", backend="torch", pattern=name, n=n, median_s=median, iqr_s=spread)


def check_memory(check: Check) -> None:
    """Run the smallest values under compute-sanitizer, where it is installed."""
    tool = shutil.which("compute-sanitizer")
    if tool is None or check.left < 40:
        why = "not installed" if tool is None else "no time left"
        check.add("memory", skipped=f"compute-sanitizer: {why}")
        return
    with check.refusals("memory"):
        command = [tool, "--error-exitcode", "9", sys.executable, "-c", SMALLEST]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=check.left, check=False
        )
        assert done.returncode == 0, (done.stdout + done.stderr).strip().splitlines()[-1]
        check.add("memory", clean=True)


SMALLEST = """
import time, torch
from pathlib import Path
from benchmarks.gpu_check import Check, judge
check = Check(out=Path("."), device=torch.device("cuda"), until=time.monotonic() + 100)
judge(check, n=130, m=190, d=64, dtype=torch.bfloat16, shared=False)
"""


def table(rows: list[dict[str, Any]]) -> str:
    """Lay rows out for reading: failures first, then times."""
    good = sum(row["case"] == "values" and "error" not in row for row in rows)
    total = sum(row["case"] == "values" for row in rows)
    text = [f"values: {good} of {total} within the error budget"]
    text += [f"FAILED {row}" for row in rows if "error" in row]
    for row in rows:
        if "median_s" not in row:
            continue
        parts = [f"{row['case']:9}{row['n']:>8} {row['backend']:11}{row['pattern']:26}"]
        parts.append(f"{row['median_s'] * 1e3:10.3f} ms")
        if "tflops" in row:
            parts.append(f"{row['density']:8.2%} {row['tflops']:7.1f} TFLOP/s")
            if row["speedup"] is not None:
                parts.append(f"{row['speedup']:7.2f}x {row['efficiency']:5.2f} of proportional")
        text.append(" ".join(parts))
    return "\n".join(text)


def _spread(samples: list[float]) -> float:
    if len(samples) < 2:
        return 0.0
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return high - low


if __name__ == "__main__":
    main()
