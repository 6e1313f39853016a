"""Right first: our kernels against the float64 oracle, by the error-budget rule of the tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import Any

import torch

from benchmarks.arguments import DTYPES, Shape
from benchmarks.gpu.attend import attend_by
from benchmarks.gpu.check import Check, variants
from benchmarks.problem import Problem, Qkv
from sparsefill import Attended, SparseIndex, estimate
from sparsefill.errors import UnsupportedError
from tests.support.closeness import assert_attended
from tests.support.inputs import PATTERNS, patterns_of, random_qkv

LENGTHS = ((1, 1), (64, 64), (65, 65), (127, 127), (1000, 1000), (65, 190), (200, 77))
TIMED_DIM = 128  # of the layers that are timed
DIMS = {64: LENGTHS, 128: LENGTHS, 80: LENGTHS[2:4], 96: LENGTHS[2:4], 256: LENGTHS[2:4]}
H, G = 2 * len(PATTERNS), len(PATTERNS)  # a head of every pattern, of the first of a group too
SMALLEST: dict[str, Any] = {"n": 130, "m": 190, "d": 64, "dtype": "bf16"}
CUDA_TOOLS = "/usr/local/cuda/bin"
TOOL_SECONDS = 90  # of one tool that watches the kernels, which makes them slow


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


def judge_smallest(device: str = "cuda") -> None:
    """Run every kernel once on the smallest layer: what the tools below watch."""
    there = torch.device(device)
    if os.environ.get("TRITON_INSTRUMENTATION_MODE"):  # its kernels keep notes in memory
        import triton

        def allocate(size: int, alignment: int, stream: int | None) -> Any:
            return torch.empty(size, dtype=torch.int8, device=there)

        triton.set_allocator(allocate)
    for backend in variants():
        with contextlib.suppress(UnsupportedError):
            attend_and_judge(backend, there, **SMALLEST, shared=False)
    sizes = {name: SMALLEST[name] for name in ("n", "m", "d")}
    q, k, _ = random_qkv(h=H, g=G, **sizes, dtype=DTYPES[SMALLEST["dtype"]]).map(
        lambda t: t.to(there)
    )
    estimate(patterns_of("mixed", H), q, k)


def check_memory(check: Check) -> None:
    """Watch the smallest layer with compute-sanitizer, where it is installed."""
    folders = os.pathsep.join((os.environ.get("PATH", ""), CUDA_TOOLS))
    tool = shutil.which("compute-sanitizer", path=folders)
    if tool is None:
        skip(check, "memory", "compute-sanitizer is not installed")
        return
    # without the allocator's cache, what lies behind a tensor is nobody's
    watch(check, "memory", [tool, "--error-exitcode", "9"], PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def check_races(check: Check) -> None:
    """Watch the smallest layer with Triton's concurrency sanitizer, which instruments kernels."""
    if check.device.type != "cuda":
        skip(check, "consan", "needs a GPU")
        return
    watch(check, "consan", [], TRITON_INSTRUMENTATION_MODE="consan", TRITON_ALWAYS_COMPILE="1")


def watch(check: Check, case: str, command: list[str], **environment: str) -> None:
    """Run the smallest layer in a process of its own, and append a row."""
    if check.left < TOOL_SECONDS / 2:
        skip(check, case, "no time left")
        return
    script = "from benchmarks.gpu.values import judge_smallest; judge_smallest()"
    seconds = min(TOOL_SECONDS, check.left)
    backend, problem = next(variants()), smallest_problem()
    with check.attempt(case, backend, "mixed", problem):
        code, said = run_for([*command, sys.executable, "-c", script], seconds, environment)
        if code is None:
            skip(check, case, f"did not end in {seconds:.0f} s")
        elif code:
            raise RuntimeError(f"exit code {code}; it said last: {said}")
        else:
            check.add(case, backend, "mixed", problem)


def run_for(
    command: list[str], seconds: float, environment: dict[str, str]
) -> tuple[int | None, str]:
    """Run a command and what it starts; return its exit code, None if late, and last line."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        with subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a tool's own child must end with it
        ) as process:
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        output.seek(0)
        return code, (output.read().strip().splitlines() or ["nothing"])[-1]


def skip(check: Check, case: str, why: str) -> None:
    """Append a row that says why something was not tried."""
    check.add(case, next(variants()), "mixed", smallest_problem(), skipped=why)


def smallest_problem() -> Problem:
    """Describe the smallest layer."""
    return Problem(SMALLEST["n"], Shape(H, G, SMALLEST["d"]), SMALLEST["dtype"])
