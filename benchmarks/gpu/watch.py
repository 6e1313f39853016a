"""Our kernels under tools that watch memory and races, on the smallest layer."""

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

from benchmarks.gpu.check import Check, variants
from benchmarks.gpu.values import EACH, attend_and_judge, problem_of
from sparsefill import estimate
from sparsefill.errors import UnsupportedError
from tests.support.inputs import patterns_of
from tests.support.table import case_inputs

SMALLEST = EACH._replace(n=130, m=190, d=64)
CUDA_TOOLS = "/usr/local/cuda/bin"
TOOL_SECONDS = 90  # that one tool may take, which makes kernels slow


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
            attend_and_judge(backend, there, SMALLEST)
    qkv, _ = case_inputs(SMALLEST)
    estimate(patterns_of(SMALLEST.pattern, SMALLEST.h), qkv.q.to(there), qkv.k.to(there))


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
    script = "from benchmarks.gpu.watch import judge_smallest; judge_smallest()"
    seconds = min(TOOL_SECONDS, check.left)
    backend, problem = next(variants()), problem_of(SMALLEST)
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
    check.add(case, next(variants()), "mixed", problem_of(SMALLEST), skipped=why)
